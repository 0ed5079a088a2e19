"""One request through huggingface_hub's client, and what every kind of response means.

What surprises: without a token the library would send the one that `hf auth login` saved to any address at all, so a
placeholder is sent instead.
"""

from __future__ import annotations

import asyncio
import math
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from megapairs_hf.annotation.client.completion import (
    OVERLOAD,
    WORDS,
    FaultError,
    ServerFaultError,
    find_words,
    parse_body,
    read_completion,
    shorten,
)
from megapairs_hf.annotation.client.local_servers import ANNOTATE_FLAGS, LOOPBACK, find_local_servers, usage
from megapairs_hf.annotation.client.logprobs import REQUESTED
from megapairs_hf.annotation.client.messages import Response
from megapairs_hf.annotation.client.response_forms import FORM, RESPONSE_FORMS
from megapairs_hf.annotation.client.served_models import ServedModels
from megapairs_hf.core.errors import ConfigError, ServerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.annotation.client.endpoint import Endpoint
    from megapairs_hf.annotation.client.http_client import StatusError
    from megapairs_hf.annotation.client.messages import Request

# what a proxy says of a healthy server while its pod restarts
PASSING = frozenset({403, 404})
# 424 is TGI's status for a generation that failed
RETRIED = frozenset({408, 409, 424, 425, 429})
ADVICE = {
    401: "the token in {env} is missing or wrong; set it and run the same command again",
    402: "the account has no credit left; top it up and run the same command again",
    403: "the token in {env} may not use this model; ask for access or set another token",
    404: "there is no model {model!r} there, or the address lacks its /v1; check `model` and `urls`",
    405: "this is no chat-completions address; check `urls`",
}


class Transport:
    """Makes the library's clients, and sends one request through one of them."""

    def __init__(self, endpoint: Endpoint) -> None:
        from megapairs_hf.annotation.client.http_client import client_class

        self.endpoint = endpoint
        self.token = os.environ.get(endpoint.token_env, "").strip()
        if not (self.token.isascii() and self.token.isprintable()):
            raise ConfigError(f"{endpoint.token_env} holds a character that is in no token; set it again")
        self.client_class = client_class()
        self.forms: dict[str, int] = {}
        self.unscored: set[str] = set()
        self.models = ServedModels(self.token, endpoint.connect_timeout_s)

    def connect(self, url: str) -> Any:
        """A client of the library, with its own connections."""
        headers = {} if self.token else {"authorization": "Bearer none"}
        return self.client_class(
            base_url=url, api_key=self.token or "none", headers=headers, timeout=self.endpoint.timeout_s
        )

    async def send(self, client: Any, url: str, request: Request) -> Response:
        """Send a request.

        Args:
            client: as `connect` made it.
            url: for messages.
            request: the messages and parameters.

        Returns:
            The response; `refused` is set where the server refuses this request.

        Raises:
            FaultError: it failed in a way that may pass.
            ServerFaultError: the server fails every request like that.
            ServerUnavailableError: no server can be asked.
        """
        if "logprobs" in request.parameters:
            return await self._send_scored(client, url, request)
        if "response_format" not in request.parameters or url in self.forms:
            return await self._send(client, url, request, self.forms.get(url, 0))
        refusal = None
        for form in range(len(RESPONSE_FORMS)):
            response = await self._send(client, url, request, form)
            if not response.refused:
                # a form is known to serve only when a request with it was; a later refusal is the request's own
                self.forms[url] = form
                return response
            refusal = refusal or response
        assert refusal is not None
        return refusal

    async def _send_scored(self, client: Any, url: str, request: Request) -> Response:
        """Send a request for probabilities of tokens; without them to a server that refuses to say them."""
        plain = {name: value for name, value in request.parameters.items() if name not in REQUESTED}
        response = None
        if url not in self.unscored:
            response = await self._send(client, url, request, 0)
            if not response.refused:
                return response
        again = await self._send(client, url, replace(request, parameters=plain), 0)
        if response is not None and not again.refused:
            self.unscored.add(url)
        return again

    async def _send(self, client: Any, url: str, request: Request, form: int) -> Response:
        """Send a request with the schema of its response in one of the forms that servers know."""
        from megapairs_hf.annotation.client.http_client import StatusError

        schema = request.parameters.get("response_format")
        FORM.set(None if schema is None else RESPONSE_FORMS[form](schema["json_schema"]))
        model = self.models.instead.get(url, request.model)
        try:
            response = await self._send_once(client, url, request, model)
        except StatusError as error:
            served = await self.models.only_one(url) if error.status == 404 else ""
            if not served or served == model:
                return await self._refusal(url, model, error)
            model = self.models.take(url, served, request.model)
            try:
                response = await self._send_once(client, url, request, model)
            except StatusError as again:
                return await self._refusal(url, model, again)
        return response if model == request.model else replace(response, model=model)

    async def _send_once(self, client: Any, url: str, request: Request, model: str) -> Response:
        from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled

        from megapairs_hf.annotation.client.http_client import StatusError

        try:
            async with asyncio.timeout(self.endpoint.timeout_s):
                output = await client.chat_completion(request.messages, model=model, **request.parameters)
            return read_completion(output.body)
        except (StatusError, MemoryError):
            raise
        except FaultError as error:
            # a server may quote the request in what it says
            raise FaultError(self._hide(str(error)), error.wait_s, overload=error.overload) from None
        except TimeoutError as error:
            raise FaultError(f"no response within {self.endpoint.timeout_s:g} s", overload=True) from error
        except OfflineModeIsEnabled as error:
            raise ServerUnavailableError(
                f"HF_HUB_OFFLINE keeps requests from {url}; unset it and run again"
            ) from error
        except UnicodeEncodeError:
            return Response("the prompt holds half a surrogate pair", "error", refused="refused")
        except HTTPError as error:
            raise FaultError(f"the connection broke: {type(error).__name__}") from error
        except Exception as error:
            # whatever else goes wrong with one request must end neither the run nor the health check
            raise FaultError(f"the request failed: {type(error).__name__}") from error

    async def _refusal(self, url: str, model: str, error: StatusError) -> Response:
        """What a status means for this request, unless it is a fault."""
        status = error.status
        words, code = read_error(error.content)
        words = self._hide(words)
        if status in RETRIED or status >= 500:
            wait_s = retry_after(error.retry_after)
            if wait_s is not None and wait_s > self.endpoint.deadline_s:
                raise ServerFaultError(
                    f"{url} answers HTTP {status} and asks to wait {wait_s:,.0f} s, longer than `deadline_s`"
                    f" ({self.endpoint.deadline_s:g}); run the same command again later, responses so far are kept",
                    wait_s,
                    overload=status in OVERLOAD,
                    passing=True,
                ) from None
            raise FaultError(f"HTTP {status}", wait_s, overload=status in OVERLOAD)
        if status in ADVICE:
            advice = ADVICE[status].format(env=self.endpoint.token_env, model=model)
            if status == 404 and model not in (names := await self.models.names(url)):
                served = ", ".join(map(repr, names))
                advice = (
                    f"there is no model {model!r} there, but {served}; set `model` to one of them" if names else advice
                )
            # `from None`: the library's own message may quote the request
            raise ServerFaultError(f"{url} answers HTTP {status}: {advice}", passing=status in PASSING) from None
        refused = "content_filter" if code == "content_filter" else "refused"
        return Response(f"HTTP {status}: {words}", "error", refused=refused)

    def _hide(self, text: str) -> str:
        return text.replace(self.token, "…") if self.token else text


def read_error(content: bytes) -> tuple[str, str]:
    """The words of a refusal, and its code where it has one."""
    try:
        value = parse_body(content)
    except FaultError:
        value = None
    error = value.get("error") if isinstance(value, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    text = shorten(content[: 4 * WORDS].decode("utf-8", "replace"))
    return find_words(value) or text, code if isinstance(code, str) else ""


async def reach(url: str, timeout_s: float, flags: str = ANNOTATE_FLAGS) -> None:
    """Fail within seconds where nothing listens, instead of after all retries.

    Args:
        url: the address.
        timeout_s: time limit.
        flags: how a command names a model and an address, for what answers on this machine instead.

    Raises:
        ServerUnavailableError: nothing does.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme in getproxies() and not proxy_bypass(host):
            return
        port = parts.port or (443 if parts.scheme == "https" else 80)
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError, ValueError) as error:
        raise ServerUnavailableError(
            f"nothing answers at {url}; start the server or correct `urls`, then run the same command again"
            f"{await _instead(url, flags)}"
        ) from error
    writer.close()


async def _instead(url: str, flags: str) -> str:
    """What answers at another address of this machine, where the address was to be on it."""
    if (urlsplit(url).hostname or "") not in LOOPBACK:
        return ""
    ready = usage(await find_local_servers(), flags)
    return f", or use what answers on this machine: {ready}" if ready else ""


async def reach_any(urls: Sequence[str], timeout_s: float, flags: str = ANNOTATE_FLAGS) -> dict[str, str]:
    """Fail within seconds where nothing listens at any address.

    Args:
        urls: the addresses.
        timeout_s: time limit.
        flags: as in `reach`.

    Returns:
        What is wrong with the addresses at which nothing does.

    Raises:
        ServerUnavailableError: there is no other.
    """
    results = await asyncio.gather(*(reach(url, timeout_s, flags) for url in urls), return_exceptions=True)
    errors = {url: result for url, result in zip(urls, results, strict=True) if result is not None}
    unexpected = [error for error in errors.values() if not isinstance(error, ServerUnavailableError)]
    if len(errors) == len(set(urls)) or unexpected:
        raise (unexpected or list(errors.values()))[0]
    return {url: str(error) for url, error in errors.items()}


def retry_after(header: str) -> float | None:
    """Seconds from a `Retry-After` header, given as a number or as a date; None where it is neither."""
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    try:
        seconds = float(header)
        # 1e400 and nan are no time at all
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
