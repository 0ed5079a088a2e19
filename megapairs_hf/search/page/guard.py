"""What stands before every request: the host's name, one password for all, a limit on tries, and on size.

What surprises: a page on a loopback address can be reached by any web page that the visitor has open: under a name of
that page's own (DNS rebinding), so only the names of this machine are answered; and by requests of another site, which
would vote although it cannot read what comes back, so only links from other sites are followed.
"""

from __future__ import annotations

import base64
import hmac
import time
from typing import TYPE_CHECKING, Any

from megapairs_hf.search.page.config import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from megapairs_hf.search.page.config import ServedPage

    Scope = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
    Headers = tuple[tuple[bytes, bytes], ...]
    App = Callable[[Scope, Receive, Send], Awaitable[None]]

TRIES = 10
PAUSE_S = 60.0
ADDRESSES = 10_000
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Tries:
    """Wrong passwords by address; after ten within a minute an address waits for a minute.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.failures = clock, dict[str, list[float]]()

    def barred(self, address: str) -> bool:
        """Whether an address has to wait."""
        since = self.clock() - PAUSE_S
        recent = [at for at in self.failures.get(address, ()) if at > since]
        return len(recent) >= TRIES

    def fail(self, address: str) -> None:
        """Note a wrong password."""
        since = self.clock() - PAUSE_S
        recent = [at for at in self.failures.pop(address, ()) if at > since]
        self.failures[address] = [*recent, self.clock()][-TRIES:]
        if len(self.failures) > ADDRESSES:
            self.failures.pop(next(iter(self.failures)))


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: what it guards.
        auth: `user:password`; None asks for none.
        hosts: names under which the page answers; None for any.
        max_bytes: of a request.
        tries: wrong passwords so far.
        headers: of every response.
    """

    def __init__(
        self,
        app: App,
        *,
        auth: str | None = None,
        hosts: frozenset[str] | None = None,
        max_bytes: int,
        tries: Tries | None = None,
        headers: Headers = HEADERS,
    ) -> None:
        self.headers = headers
        self.app, self.hosts, self.max_bytes, self.tries = app, hosts, max_bytes, tries or Tries()
        self.expected = None if auth is None else auth.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        status, sentence = self._refusal(scope, headers)
        if status:
            await _refuse(scope, send, status, sentence)
            return
        body = _Limited(receive, self.max_bytes)
        response = _Response(send, body, self.headers)
        try:
            await self.app(scope, body, response)
        except Exception:
            # what it does without the rest of a body that is too long is no error of its own
            if not body.exceeded:
                raise
        if body.exceeded and not response.started:
            await _refuse(scope, send, 413, self._too_long())

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str]:
        """Status and sentence of a refusal; 0 where the request may pass."""
        if self.hosts is not None and host_name(headers.get(b"host", b"").decode("latin-1")) not in self.hosts:
            return 403, "this page answers under the names of this machine alone"
        if is_cross_site(scope, headers):
            return 403, "another site's page may link to this one, and do nothing else"
        if self.expected is not None:
            address = (scope.get("client") or ("", 0))[0]
            if self.tries.barred(address):
                return 429, "too many wrong passwords; wait a minute"
            if not self._authorized(headers.get(b"authorization", b"")):
                if b"authorization" in headers:
                    self.tries.fail(address)
                return 401, "a user name and a password are needed"
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.max_bytes:
            return 413, self._too_long()
        return 0, ""

    def _too_long(self) -> str:
        return f"at most {self.max_bytes // 1_000_000} MB are accepted"

    def _authorized(self, header: bytes) -> bool:
        assert self.expected is not None
        scheme, _, encoded = header.partition(b" ")
        try:
            named = base64.b64decode(encoded, validate=True)
        except ValueError:
            return False
        return scheme.lower() == b"basic" and hmac.compare_digest(named, self.expected)


class _Limited:
    """The body of a request, which ends where it is longer than allowed, whatever its header says.

    Attributes:
        exceeded: whether it was.
    """

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self.receive, self.left, self.exceeded = receive, max_bytes, False

    async def __call__(self) -> MutableMapping[str, Any]:
        message = await self.receive()
        self.left -= len(message.get("body", b""))
        self.exceeded = self.exceeded or self.left < 0
        # the application sees a visitor who went away
        return {"type": "http.disconnect"} if self.exceeded else message


class _Response:
    """What is sent: with headers of ours, and nothing where the body of the request was too long.

    The headers keep a browser from guessing types, from showing the page inside another, and from showing its images
    in another site's page.
    """

    def __init__(self, send: Send, body: _Limited, headers: Headers) -> None:
        self.send, self.body, self.headers, self.started = send, body, headers, False

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if self.body.exceeded and not self.started:
            return
        if message["type"] == "http.response.start":
            self.started = True
            message["headers"] = [*message.get("headers", ()), *self.headers]
        await self.send(message)


def host_name(header: str) -> str:
    """The name in a `Host` header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


def is_cross_site(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    """Whether a page of another site sent a request, other than by a link to this page."""
    site, mode = headers.get(b"sec-fetch-site"), headers.get(b"sec-fetch-mode")
    reads = scope["type"] == "http" and scope["method"] in {"GET", "HEAD"}
    if site is not None:
        return site not in {b"same-origin", b"none"} and not (reads and mode == b"navigate")
    # programs send neither; old browsers, and those at an address without TLS, send the origin alone
    origin = headers.get(b"origin")
    return origin is not None and origin.partition(b"://")[2] != headers.get(b"host", b"")


def guarded(app: App, config: ServedPage, headers: Headers = HEADERS) -> Guard:
    """An application behind the guard that the settings ask for."""
    hosts = frozenset(LOOPBACK) if config.is_local else None
    max_bytes = config.max_upload_mb * 1_000_000
    return Guard(app, auth=config.auth, hosts=hosts, max_bytes=max_bytes, headers=headers)


async def _refuse(scope: Scope, send: Send, status: int, sentence: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"x-content-type-options", b"nosniff")]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="search", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": sentence.encode()})
