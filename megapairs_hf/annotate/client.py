"""Asking an OpenAI-compatible endpoint (TGI, vLLM, SGLang, llama.cpp, Inference Providers), and surviving it.

Built on huggingface_hub's `AsyncInferenceClient`. Failures that may pass are asked again, with growing random waits;
a failure of one question is its pair's; a failure of every question stops the run with one sentence. What surprises:
which of the two it is cannot be told from the failure alone, so the client looks at whether other questions were
answered meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from megapairs_hf.annotate.journal import Reply
from megapairs_hf.errors import ServerUnavailableError

if TYPE_CHECKING:
    from megapairs_hf.annotate.config import Endpoint

PER_CLIENT = 16  # the HTTP library walks through all connections of a client for every request
RETRIED = frozenset({408, 409, 425, 429})
REFUSED_AT_FIRST = 10
ADVICE = {
    401: "the token in {env} is missing or wrong; set it and run the same command again",
    402: "the account has no credit left; top it up and run the same command again",
    403: "the token in {env} may not use this model; ask for access or set another token",
    404: "there is no model {model!r} there, or the address lacks its /v1; check `model` and `urls`",
    405: "this is no chat-completions address; check `urls`",
}


@dataclass(frozen=True)
class Question:
    """One request: chat messages and how the model is to sample."""

    messages: list[dict[str, Any]]
    model: str
    parameters: dict[str, Any]


class FaultError(Exception):
    """A request failed in a way that may pass."""

    def __init__(self, what: str, wait_s: float | None = None) -> None:
        super().__init__(what)
        self.wait_s = wait_s


@dataclass
class Counters:
    """What happened so far; for the progress line and for telling a bad question from a bad server."""

    answered: int = 0
    refused: int = 0
    retried: int = 0
    tokens: int = 0
    start: float = field(default_factory=time.monotonic)

    def line(self) -> str:
        """Speed and trouble in a few words."""
        seconds = max(time.monotonic() - self.start, 1e-9)
        return f"{self.tokens / seconds:,.0f} tokens/s, {self.retried:,} asked again"


class Client:
    """Several endpoints behind one `ask`. Use it as an asynchronous context."""

    def __init__(self, endpoint: Endpoint, counters: Counters) -> None:
        self.endpoint, self.counters = endpoint, counters
        self.stack = AsyncExitStack()
        self.clients: list[tuple[str, Any]] = []
        self.in_flight: list[int] = []

    async def __aenter__(self) -> Self:
        await asyncio.gather(*(self._reach(url) for url in self.endpoint.urls))
        from huggingface_hub import AsyncInferenceClient

        token = os.environ.get(self.endpoint.token_env, "").strip()
        # without a token of its own the library would send the one saved by `hf auth login` to any server at all
        headers = {} if token else {"authorization": "Bearer none"}
        share = -(-self.endpoint.concurrency // len(self.endpoint.urls))
        for url in self.endpoint.urls:
            for _ in range(-(-share // PER_CLIENT)):
                client = AsyncInferenceClient(
                    base_url=url, api_key=token or "none", headers=headers, timeout=self.endpoint.timeout_s
                )
                self.clients.append((url, await self.stack.enter_async_context(client)))
        self.in_flight = [0] * len(self.clients)
        return self

    async def __aexit__(self, *details: Any) -> None:
        await self.stack.__aexit__(*details)

    async def _reach(self, url: str) -> None:
        """Fail within seconds where nobody listens, instead of after all retries."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme in getproxies() and not proxy_bypass(host):
            return
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            async with asyncio.timeout(self.endpoint.connect_timeout_s):
                _, writer = await asyncio.open_connection(host, port)
        except (OSError, TimeoutError) as error:
            raise ServerUnavailableError(
                f"nothing answers at {url}; start the server or correct `urls`, then run the same command again"
            ) from error
        writer.close()

    async def ask(self, question: Question) -> Reply:
        """Ask until there is an answer.

        Returns:
            The reply; `refused` is set where the server will not answer this question.

        Raises:
            ServerUnavailableError: the server refuses or fails every question.
        """
        answered_before = self.counters.answered
        for attempt in range(self.endpoint.retries + 1):
            index = min(range(len(self.clients)), key=self.in_flight.__getitem__)
            self.in_flight[index] += 1
            try:
                reply = await self._once(index, question)
            except FaultError as error:
                fault = error
            else:
                return self._count(reply, self.clients[index][0])
            finally:
                self.in_flight[index] -= 1
            if attempt < self.endpoint.retries:
                self.counters.retried += 1
                await asyncio.sleep(self._wait(attempt, fault.wait_s))
        tries = f"{self.endpoint.retries + 1} times"
        if self.counters.answered > answered_before:
            return Reply(f"{fault} ({tries})", "error", refused="server_failed")
        raise ServerUnavailableError(
            f"{self.clients[index][0]} failed {tries} ({fault});"
            " look at the server's log, then run the same command again: answers so far are kept"
        )

    def _wait(self, attempt: int, asked_s: float | None) -> float:
        longest = self.endpoint.max_backoff_s
        drawn = min(longest, self.endpoint.backoff_s * 2**attempt) * random.uniform(0.5, 1.0)
        return min(longest, max(asked_s, drawn)) if asked_s is not None else drawn

    def _count(self, reply: Reply, url: str) -> Reply:
        if not reply.refused:
            self.counters.answered += 1
            self.counters.tokens += reply.completion_tokens or 0
            return reply
        self.counters.refused += 1
        if self.counters.answered == 0 and self.counters.refused >= REFUSED_AT_FIRST:
            raise ServerUnavailableError(
                f"{url} refused all of the first {REFUSED_AT_FIRST} requests ({reply.text});"
                " check that the model takes such input (pictures, `max_tokens`, `reply_format`)"
            )
        return reply

    async def _once(self, index: int, question: Question) -> Reply:
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

        url, client = self.clients[index]
        try:
            async with asyncio.timeout(self.endpoint.timeout_s):
                output = await client.chat_completion(question.messages, model=question.model, **question.parameters)
        except TimeoutError as error:
            raise FaultError(f"no answer within {self.endpoint.timeout_s:g} s") from error
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

    def _refusal(self, url: str, model: str, response: Any) -> Reply:
        status = int(response.status_code)
        if status in RETRIED or status >= 500:
            raise FaultError(f"HTTP {status}", retry_after(response.headers.get("retry-after", "")))
        if status in ADVICE:
            self._stop(url, status, model)
        return Reply(self._hide(f"HTTP {status}: {' '.join(response.text.split())[:300]}"), "error", refused="refused")

    def _stop(self, url: str, status: int, model: str) -> NoReturn:
        advice = ADVICE[status].format(env=self.endpoint.token_env, model=model)
        # `from None`: the library's own message may quote the request
        raise ServerUnavailableError(f"{url} answers HTTP {status}: {advice}") from None

    def _hide(self, text: str) -> str:
        token = os.environ.get(self.endpoint.token_env, "").strip()
        return text.replace(token, "…") if token else text


def read_output(output: Any) -> Reply:
    """The reply in a `ChatCompletionOutput`, whatever the server left out of it.

    Raises:
        FaultError: there is no choice or no message in it.
    """
    choices = output.choices
    message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
    if message is None:
        raise FaultError("the answer holds no choice")
    usage = output.usage
    return Reply(
        text=message.content or "",
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
