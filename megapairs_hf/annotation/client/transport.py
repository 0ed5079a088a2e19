"""One request through huggingface_hub's client, and what every kind of response means.

What surprises: without a token the library would send the one that `hf auth login` saved to any address at all, so a
placeholder is sent instead.
"""

from __future__ import annotations

import asyncio
import os
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from megapairs_hf.annotation.client.messages import Response
from megapairs_hf.core.errors import ServerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from megapairs_hf.annotation.client.endpoint import Endpoint
    from megapairs_hf.annotation.client.messages import Request

RETRIED = frozenset({408, 409, 425, 429})
OVERLOAD = frozenset({408, 429, 503, 504})
ADVICE = {
    401: "the token in {env} is missing or wrong; set it and run the same command again",
    402: "the account has no credit left; top it up and run the same command again",
    403: "the token in {env} may not use this model; ask for access or set another token",
    404: "there is no model {model!r} there, or the address lacks its /v1; check `model` and `urls`",
    405: "this is no chat-completions address; check `urls`",
}


# how a request may say what form the response is to have; TGI before 3.3 knows the second only
RESPONSE_FORMS: tuple[Callable[[dict[str, Any]], dict[str, Any] | None], ...] = (
    lambda schema: {"type": "json_schema", "json_schema": schema},
    lambda schema: {"type": "json_object", "value": schema["schema"]},
    lambda _: {"type": "json_object"},
    lambda _: None,
)
FORM: ContextVar[dict[str, Any] | None] = ContextVar("FORM", default=None)


class FaultError(Exception):
    """A request failed in a way that may pass.

    Attributes:
        wait_s: how long the server asks to wait; None where it does not say.
        overload: whether it is a sign of too many requests at once.
    """

    def __init__(self, what: str, wait_s: float | None = None, *, overload: bool = False) -> None:
        super().__init__(what)
        self.wait_s, self.overload = wait_s, overload


class Transport:
    """Makes the library's clients, and sends one request through one of them."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.token = os.environ.get(endpoint.token_env, "").strip()
        self.client_class = client_class()
        self.forms: dict[str, int] = {}

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
            ServerUnavailableError: it failed in a way that no retry helps.
        """
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

    async def _send(self, client: Any, url: str, request: Request, form: int) -> Response:
        """Send a request with the schema of its response in one of the forms that servers know."""
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

        schema = request.parameters.get("response_format")
        FORM.set(None if schema is None else RESPONSE_FORMS[form](schema["json_schema"]))
        try:
            async with asyncio.timeout(self.endpoint.timeout_s):
                output = await client.chat_completion(request.messages, model=request.model, **request.parameters)
        except TimeoutError as error:
            raise FaultError(f"no response within {self.endpoint.timeout_s:g} s", overload=True) from error
        except HfHubHTTPError as error:
            return self._refusal(url, request.model, error.response)
        except OfflineModeIsEnabled as error:
            raise ServerUnavailableError(
                f"HF_HUB_OFFLINE keeps requests from {url}; unset it and run again"
            ) from error
        except HTTPError as error:
            raise FaultError(f"the connection broke: {type(error).__name__}") from error
        except (ValueError, TypeError) as error:
            raise FaultError("the response is no chat completion in JSON") from error
        return read_output(output)

    def _refusal(self, url: str, model: str, response: Any) -> Response:
        status = int(response.status_code)
        if status in RETRIED or status >= 500:
            wait_s = retry_after(response.headers.get("retry-after", ""))
            if wait_s is not None and wait_s > self.endpoint.deadline_s:
                raise ServerUnavailableError(
                    f"{url} answers HTTP {status} and asks to wait {wait_s:,.0f} s, longer than `deadline_s`"
                    f" ({self.endpoint.deadline_s:g}); run the same command again later, responses so far are kept"
                ) from None
            raise FaultError(f"HTTP {status}", wait_s, overload=status in OVERLOAD)
        if status in ADVICE:
            self._stop(url, status, model)
        return Response(
            self._hide(f"HTTP {status}: {' '.join(response.text.split())[:300]}"), "error", refused="refused"
        )

    def _stop(self, url: str, status: int, model: str) -> NoReturn:
        advice = ADVICE[status].format(env=self.endpoint.token_env, model=model)
        # `from None`: the library's own message may quote the request
        raise ServerUnavailableError(f"{url} answers HTTP {status}: {advice}") from None

    def _hide(self, text: str) -> str:
        return text.replace(self.token, "…") if self.token else text


def client_class() -> type[Any]:
    """The library's client, so that all clients share the certificates, and a schema goes out in the form chosen.

    Reading certificates takes 25 ms per client, as long as a dozen requests; and the library turns every schema into
    the form of TGI, which other servers take for plain JSON. A later version of the library that does not call the
    methods which are overridden here would read them for each client and send that form, and otherwise work the same.
    """
    import httpx2
    from huggingface_hub import AsyncInferenceClient
    from huggingface_hub.utils._http import async_hf_request_event_hook, async_hf_response_event_hook

    certificates = httpx2.create_ssl_context()
    hooks = {"request": [async_hf_request_event_hook], "response": [async_hf_response_event_hook]}

    class SharingClient(AsyncInferenceClient):
        async def _get_async_client(self) -> Any:
            if self._async_client is None:  # type: ignore[has-type]
                client = httpx2.AsyncClient(
                    event_hooks=hooks,  # type: ignore[arg-type]
                    follow_redirects=True,
                    timeout=None,
                    verify=certificates,
                )
                self._async_client = await self.exit_stack.enter_async_context(client)
            return self._async_client

        async def _inner_post(self, request_parameters: Any, **options: Any) -> Any:
            body = request_parameters.json
            if isinstance(body, dict) and "response_format" in body:
                form = FORM.get()
                del body["response_format"]
                if form is not None:
                    body["response_format"] = form
            return await super()._inner_post(request_parameters, **options)

    return SharingClient


async def reach(url: str, timeout_s: float) -> None:
    """Fail within seconds where nothing listens, instead of after all retries.

    Raises:
        ServerUnavailableError: nothing does.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme in getproxies() and not proxy_bypass(host):
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError) as error:
        raise ServerUnavailableError(
            f"nothing answers at {url}; start the server or correct `urls`, then run the same command again"
        ) from error
    writer.close()


def read_output(output: Any) -> Response:
    """The response in a `ChatCompletionOutput`, whatever the server left out of it.

    Raises:
        FaultError: there is no choice or no message in it.
    """
    choices = output.choices
    message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
    if message is None:
        raise FaultError("the response holds no choice")
    usage = output.usage
    return Response(
        # half of a surrogate pair is legal in JSON, but no file can hold it
        text=(message.content or "").encode("utf-8", "replace").decode(),
        finish_reason=choices[0].finish_reason or "",
        prompt_tokens=getattr(usage, "prompt_tokens", None),
        completion_tokens=getattr(usage, "completion_tokens", None),
    )


def retry_after(header: str) -> float | None:
    """Seconds from a `Retry-After` header, given as a number or as a date."""
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
