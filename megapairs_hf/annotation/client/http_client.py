"""huggingface_hub's client with a limit on what is read, and with the body as the server sent it.

What surprises: the library's classes are made for well-formed responses, so the body passes through them as one extra
field, `body`, and `completion.py` reads it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import httpx2

from megapairs_hf.annotation.client.completion import FaultError, parse_body
from megapairs_hf.annotation.client.response_forms import put_form

if TYPE_CHECKING:
    import ssl

# 32,000 tokens of Chinese, each letter written as \\uXXXX, with as many of thoughts, are 1 MB
MAX_BODY_BYTES = 4 * 2**20


class StatusError(Exception):
    """A server answered with a status of 400 or above.

    Attributes:
        status: the status.
        retry_after: the header of that name, empty where there is none.
        content: the body, at most `MAX_BODY_BYTES`.
    """

    def __init__(self, status: int, retry_after: str, content: bytes) -> None:
        super().__init__(f"HTTP {status}")
        self.status, self.retry_after, self.content = status, retry_after, content


class BoundedClient(httpx2.AsyncClient):
    """An HTTP client that reads no more of a body than a response can need."""

    async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        """Send a request and read its body.

        Raises:
            FaultError: the body is longer than any response.
            StatusError: the status is 400 or above.
        """
        response = await super().send(request, stream=True, **options)
        try:
            content = await _read(response)
        except FaultError:
            # the status of an error says enough
            if response.status_code < 400:
                raise
            content = b""
        finally:
            await response.aclose()
        if response.status_code >= 400:
            raise StatusError(response.status_code, response.headers.get("retry-after", ""), content)
        return httpx2.Response(response.status_code, content=content, request=request)


async def _read(response: httpx2.Response) -> bytes:
    declared, size, parts = response.headers.get("content-length", ""), 0, []
    too_long = FaultError(f"the response is longer than {MAX_BODY_BYTES / 2**20:g} MiB")
    if declared.isdecimal() and int(declared[:20]) > MAX_BODY_BYTES:
        raise too_long
    async for part in response.aiter_bytes():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise too_long
        parts.append(part)
    return b"".join(parts)


@lru_cache(maxsize=1)
def certificates() -> ssl.SSLContext:
    """The certificates; reading them takes 25 ms, as long as a dozen requests, so all clients share them."""
    return httpx2.create_ssl_context()


def connect_http() -> BoundedClient:
    """An HTTP client that obeys `HF_HUB_OFFLINE`."""
    from huggingface_hub.utils._http import async_hf_request_event_hook

    hooks: dict[str, list[Any]] = {"request": [async_hf_request_event_hook]}
    return BoundedClient(event_hooks=hooks, follow_redirects=True, timeout=None, verify=certificates())


def client_class() -> type[Any]:
    """The library's client over `BoundedClient`."""
    from huggingface_hub import AsyncInferenceClient

    class ChatClient(AsyncInferenceClient):
        async def _get_async_client(self) -> Any:
            if self._async_client is None:  # type: ignore[has-type]
                self._async_client = await self.exit_stack.enter_async_context(connect_http())
            return self._async_client

        async def _inner_post(self, request_parameters: Any, *, stream: bool = False) -> Any:
            put_form(request_parameters.json)
            content = await super()._inner_post(request_parameters, stream=stream)
            return {"body": parse_body(content)}

    return ChatClient
