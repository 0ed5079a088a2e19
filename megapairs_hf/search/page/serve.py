"""Serve a page until it is ended."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.progress import note
from megapairs_hf.search.page.guard import HEADERS, guarded
from megapairs_hf.search.page.opening import OpeningApp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from megapairs_hf.search.page.config import ServedPage
    from megapairs_hf.search.page.guard import Headers
    from megapairs_hf.search.page.opening import Report

CONNECTIONS = 256
OPEN_HOST = (
    "--host {host}: every machine that reaches this one can search, see the images, and vote or mark{guard}; nothing"
    " is encrypted, so put it behind a server that does, or leave --host out"
)


def serve(
    make: Callable[[Report], Any], config: ServedPage, what: str = "search page", headers: Headers = HEADERS
) -> None:
    """Serve an application until Ctrl-C or SIGTERM; how far it is while it is made.

    Args:
        make: makes the application, as `OpeningApp` takes it.
        config: the settings.
        what: the page is, for the lines that say where it is.
        headers: of every response.

    Raises:
        ConfigError: the address or port cannot be used.
        MegaPairsError: the application could not be made; raised when the server is ended.
    """
    import uvicorn

    listener = _listen(config)
    port = listener.getsockname()[1]
    if not config.is_local:
        note(OPEN_HOST.format(host=config.host, guard="" if config.auth is None else ", with the password"))
    host = f"[{config.host}]" if ":" in config.host else config.host
    opening = OpeningApp(make)
    settings = uvicorn.Config(
        guarded(opening, config, headers),
        log_level="warning",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=3,
        lifespan="on",
    )
    with contextlib.suppress(KeyboardInterrupt), _ending():
        note(f"{what}: http://{host}:{port}/ (Ctrl-C ends it)")
        uvicorn.Server(settings).run(sockets=[listener])
    note(f"{what}: ended")
    if opening.error is not None:
        raise opening.error


@contextlib.contextmanager
def _ending() -> Iterator[None]:
    """SIGTERM ends the server as Ctrl-C does: uvicorn raises both again when it has ended."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _listen(config: ServedPage) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
        # from now on a visitor waits instead of being refused
        listener.listen(CONNECTIONS)
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot listen at {config.host}, port {config.port} ({reason}); name another --port"
        ) from error
    return listener
