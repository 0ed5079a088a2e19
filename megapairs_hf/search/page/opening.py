"""What is served while indexes are opened, built or brought up to date: how far that is, and then the page itself.

What surprises: the application that this gives way to is started by this one, because the server starts only what it
was given first.
"""

from __future__ import annotations

import asyncio
import json
import threading
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import MegaPairsError
from megapairs_hf.core.progress import note
from megapairs_hf.search.page.parts import asset

if TYPE_CHECKING:
    from collections.abc import Callable

    from megapairs_hf.search.page.guard import Receive, Scope, Send

    Report = Callable[[str, int, int], None]

STOP_S = 10.0


class Ended(BaseException):
    """Raised in the thread that builds, where the server has ended meanwhile."""


class OpeningApp:
    """An application that is made in a thread, and what is served until then.

    Args:
        make: makes it; is handed a function to call with what is done, how much of it, and of how much.

    Attributes:
        error: why it could not be made; None where it was, or is not yet.
    """

    def __init__(self, make: Callable[[Report], Any]) -> None:
        self.make, self.app = make, None
        self.state: dict[str, Any] = {"text": "getting ready", "done": 0, "total": 0, "error": "", "ready": False}
        self.error: BaseException | None = None
        self.ended = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve how far it is, or the application."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self.app is not None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1013})
        else:
            await _answer(send, *self._response(scope["path"]))

    def _response(self, path: str) -> tuple[int, bytes, bytes]:
        """Status, type and body while there is no application."""
        if path == "/progress":
            return 200, b"application/json", json.dumps(self.state).encode()
        if path == "/":
            return 200, b"text/html; charset=utf-8", asset("opening.html").encode()
        sentence = self.state["error"] or f"{self.state['text']}; try again soon"
        return 503, b"application/json", json.dumps({"error": sentence}).encode()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        loop, finished, closing = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        results: list[Any] = []
        thread = threading.Thread(target=self._run, args=(results, loop, finished), name="opening", daemon=True)
        thread.start()
        serving = asyncio.create_task(self._serve(results, finished, closing))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.ended.set()
        closing.set()
        finished.set()
        await serving
        # a daemon, so that a model that is being loaded holds nobody up
        await loop.run_in_executor(None, thread.join, STOP_S)
        await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, results: list[Any], finished: asyncio.Event, closing: asyncio.Event) -> None:
        await finished.wait()
        if results and not closing.is_set():
            app = results[0]
            async with app.router.lifespan_context(app):
                self.app = app
                await closing.wait()

    def _run(self, results: list[Any], loop: asyncio.AbstractEventLoop, finished: asyncio.Event) -> None:
        try:
            results.append(self.make(self._report))
        except Ended:
            return
        except MegaPairsError as error:
            self._fail(error, str(error))
            return
        except Exception as error:
            self._fail(error, f"the page cannot be opened ({type(error).__name__}: {error}); see the terminal")
            return
        if not self.ended.is_set():
            loop.call_soon_threadsafe(finished.set)

    def _fail(self, error: Exception, sentence: str) -> None:
        self.error = error
        self.state = {**self.state, "error": sentence[:1].upper() + sentence[1:]}
        note(f"search page: {sentence} (Ctrl-C ends the page)")

    def _report(self, text: str, done: int, total: int) -> None:
        if self.ended.is_set():
            raise Ended
        self.state = {**self.state, "text": text, "done": done, "total": total}


async def _answer(send: Send, status: int, kind: bytes, body: bytes) -> None:
    headers = [(b"content-type", kind), (b"cache-control", b"no-store")]
    if status == 503:
        headers.append((b"retry-after", b"2"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
