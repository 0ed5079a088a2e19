"""One request through huggingface_hub's client: what goes out, and what every kind of answer means.

What surprises: without a token of its own the library would send the one that `hf auth login` saved to any address at
all, so a placeholder goes out instead.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from megapairs_hf.annotation.client.messages import Response
from megapairs_hf.core.errors import ServerUnavailableError

if TYPE_CHECKING:
    from megapairs_hf.annotation.client.endpoint import Endpoint
    from megapairs_hf.annotation.client.messages import Request

OPENAI_FORM, TGI_FORM = "openai", "tgi"
RETRIED = frozenset({408, 409, 425, 429})
OVERLOAD = frozenset({408, 429, 503, 504})
ADVICE = {
    401: "the token in {env} is missing or wrong; set it and run the same command again",
    402: "the account has no credit left; top it up and run the same command again",
    403: "the token in {env} may not use this model; ask for access or set another token",
    404: "there is no model {model!r} there, or the address lacks its /v1; check `model` and `urls`",
    405: "this is no chat-completions address; check `urls`",
}


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
    """Makes the library's clients, and sends one question through one of them."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.token = os.environ.get(endpoint.token_env, "").strip()
        self.client_class = client_class()

    def connect(self, url: str) -> Any:
        """A client of the library, with its own connections."""
        headers = {} if self.token else {"authorization": "Bearer none"}
        return self.client_class(
            base_url=url, api_key=self.token or "none", headers=headers, timeout=self.endpoint.timeout_s
        )

    async def send(self, client: Any, url: str, question: Request, form: str = OPENAI_FORM) -> Response:
        """Send a question.

        Args:
            client: as `connect` made it.
            url: for messages.
            question: what to ask.
            form: how a JSON schema is written, `openai` or `tgi`.

        Returns:
            The reply; `refused` is set where the server will not answer this question.

        Raises:
            FaultError: it failed in a way that may pass.
            ServerUnavailableError: it failed in a way that no retry helps.
        """
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

        client.schema_form = form
        try:
            async with asyncio.timeout(self.endpoint.timeout_s):
                output = await client.chat_completion(question.messages, model=question.model, **question.parameters)
        except TimeoutError as error:
            raise FaultError(f"no answer within {self.endpoint.timeout_s:g} s", overload=True) from error
        except HfHubHTTPError as error:
            return self._refusal(url, question.model, error.response)
        except OfflineModeIsEnabled as error:
            raise ServerUnavailableError(
                f"HF_HUB_OFFLINE keeps requests from {url}; unset it and run again"
            ) from error
        except HTTPError as error:
            raise FaultError(f"the connection broke: {type(error).__name__}") from error
        except (ValueError, TypeError) as error:
            raise FaultError("the answer is no chat completion in JSON") from error
        return read_output(output)

    def _refusal(self, url: str, model: str, response: Any) -> Response:
        status = int(response.status_code)
        if status in RETRIED or status >= 500:
            asked = retry_after(response.headers.get("retry-after", ""))
            if asked is not None and asked > self.endpoint.deadline_s:
                raise ServerUnavailableError(
                    f"{url} answers HTTP {status} and asks to wait {asked:,.0f} s, longer than `deadline_s`"
                    f" ({self.endpoint.deadline_s:g}); run the same command again later, answers so far are kept"
                ) from None
            raise FaultError(f"HTTP {status}", asked, overload=status in OVERLOAD)
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
    """The library's client, made so that all of them share the certificates, and with both forms of a schema.

    Reading certificates takes 25 ms a client, as long as a dozen requests. The library rewrites a schema in OpenAI's
    form to TGI's wherever an address is given, and vLLM, SGLang and llama.cpp take that for "any JSON": it is written
    back for servers that keep to OpenAI's. A later version of the library that does not call the methods which are
    overridden here would read certificates for each client and speak TGI's form only, and otherwise work the same.
    """
    import httpx2
    from huggingface_hub import AsyncInferenceClient
    from huggingface_hub.utils._http import async_hf_request_event_hook, async_hf_response_event_hook

    certificates = httpx2.create_ssl_context()
    hooks = {"request": [async_hf_request_event_hook], "response": [async_hf_response_event_hook]}

    class SharingClient(AsyncInferenceClient):
        schema_form = TGI_FORM

        async def _inner_post(self, request_parameters: Any, *, stream: bool = False) -> Any:
            body = request_parameters.json or {}
            asked = body.get("response_format") or {}
            if self.schema_form == OPENAI_FORM and "value" in asked:
                schema = {"name": "reply", "schema": asked["value"], "strict": True}
                body["response_format"] = {"type": "json_schema", "json_schema": schema}
            return await super()._inner_post(request_parameters, stream=stream)  # type: ignore[misc]

        async def _get_async_client(self) -> Any:
            if self._async_client is None:  # type: ignore[has-type]
                made = httpx2.AsyncClient(
                    event_hooks=hooks,  # type: ignore[arg-type]
                    follow_redirects=True,
                    timeout=None,
                    verify=certificates,
                )
                self._async_client = await self.exit_stack.enter_async_context(made)
            return self._async_client

    return SharingClient


async def reach(url: str, timeout_s: float) -> None:
    """Fail within seconds where nobody listens, instead of after all retries.

    Raises:
        ServerUnavailableError: nobody does.
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
    """The reply in a `ChatCompletionOutput`, whatever the server left out of it.

    Raises:
        FaultError: there is no choice or no message in it.
    """
    choices = output.choices
    message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
    if message is None:
        raise FaultError("the answer holds no choice")
    usage = output.usage
    return Response(
        # half of a surrogate pair is legal in JSON and can be written in no file
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
