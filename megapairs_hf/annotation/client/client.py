"""Asking an OpenAI-compatible endpoint (TGI, vLLM, SGLang, llama.cpp, Inference Providers), and surviving it.

Built on huggingface_hub's `AsyncInferenceClient`. Failures that may pass are asked again, with growing random waits; a
server that fails everything is left alone until it answers again; a failure of one question is its pair's; a failure
of every question stops the run with one sentence. What surprises: whose failure it is cannot be told from the failure
alone, so the client then asks something that any server can answer.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from megapairs_hf.annotation.client.load_balancer import Pool, Server
from megapairs_hf.annotation.client.messages import Request, Response
from megapairs_hf.annotation.client.transport import OPENAI_FORM, TGI_FORM, FaultError, Transport, reach
from megapairs_hf.core.errors import BudgetSpentError, ServerUnavailableError
from megapairs_hf.core.progress import note

if TYPE_CHECKING:
    from collections.abc import Callable

    from megapairs_hf.annotation.client.budget import Tally
    from megapairs_hf.annotation.client.endpoint import Endpoint

REFUSED_AT_FIRST = 10
FAULTS_IN_A_ROW = 10
CANARY_WAIT_S = 5.0
COLORS = ["red", "green", "blue"]
PROBE_SCHEMA = {
    "type": "object",
    "properties": {
        # words to choose from: a small model that may write freely fills its tokens before it closes the list
        "instructions": {"type": "array", "items": {"type": "string", "enum": COLORS}, "minItems": 1, "maxItems": 3}
    },
    "required": ["instructions"],
}


class Client:
    """Several endpoints behind one `ask`. Use it as an asynchronous context."""

    def __init__(self, endpoint: Endpoint, tally: Tally, model: str) -> None:
        self.endpoint, self.tally, self.model = endpoint, tally, model
        self.transport = Transport(endpoint)
        self.checks: dict[str, asyncio.Task[bool]] = {}
        # the largest share that one address may take, so that all together stay under the cap
        share = -(-endpoint.concurrency // len(endpoint.urls))
        self.pool = Pool([Server(url, share, self._connect(url)) for url in endpoint.urls])

    def _connect(self, url: str) -> Callable[[], Any]:
        return lambda: self.transport.connect(url)

    async def __aenter__(self) -> Self:
        await asyncio.gather(*(reach(url, self.endpoint.connect_timeout_s) for url in self.endpoint.urls))
        return self

    async def __aexit__(self, *details: Any) -> None:
        for check in self.checks.values():
            check.cancel()
        await asyncio.gather(*self.checks.values(), return_exceptions=True)
        for server in self.pool.servers:
            await asyncio.gather(*(client.close() for client in server.clients))

    async def ask(self, make: Callable[[], Request]) -> Response:
        """Ask until there is an answer.

        Args:
            make: the question; called when there is a place for it, so that no image waits in memory.

        Returns:
            The reply; `refused` is set where the server will not answer this question.

        Raises:
            ServerUnavailableError: every server refuses or fails everything.
            BudgetSpentError: the budget allows no further request.
        """
        tries, start, downs = 0, time.monotonic(), self.pool.downs
        while True:
            server = await self.pool.take()
            if downs != self.pool.downs:
                # what failed because nobody was there is no fault of this question
                tries, start, downs = 0, time.monotonic(), self.pool.downs
            try:
                return await self._once(server, make)
            except FaultError as error:
                fault = error
            tries += 1
            wait = self._wait(tries - 1, fault)
            late = time.monotonic() + wait - start > self.endpoint.deadline_s
            if tries > self.endpoint.retries or late:
                if await self._well(server, fault):
                    told = f"{fault} ({tries} times in {time.monotonic() - start:.0f} s)"
                    return self._refuse(
                        Response(told, "error", refused="deadline" if late else "server_failed"), server
                    )
                continue
            if server.streak >= FAULTS_IN_A_ROW:
                self._check(server, fault)
            self.tally.retried += 1
            await asyncio.sleep(wait)

    async def _once(self, server: Server, make: Callable[[], Request]) -> Response:
        """One request at a place that is held for it."""
        spent = self.tally.spent()
        if spent:
            self.pool.wake()
            raise BudgetSpentError(spent)
        index, overloaded = server.take(), False
        self.tally.in_flight += 1
        start = time.monotonic()
        try:
            question = make()
            form = await self._form(server) if "response_format" in question.parameters else ""
            self.tally.sent += 1
            reply = await self.transport.send(server.clients[index], server.url, question, form or OPENAI_FORM)
        except FaultError as error:
            overloaded = error.overload
            server.streak += 1
            raise
        else:
            latency = time.monotonic() - start
            overloaded = latency > self.endpoint.timeout_s / 2
            server.streak = 0
            if reply.refused:
                return self._refuse(reply, server)
            self.tally.count(reply, latency, question.letters)
            return replace(reply, latency_s=round(latency, 3))
        finally:
            self.tally.in_flight -= 1
            server.give(index, overloaded=overloaded)
            self.pool.wake()

    def _wait(self, attempt: int, fault: FaultError) -> float:
        drawn = min(self.endpoint.max_backoff_s, self.endpoint.backoff_s * 2**attempt) * random.uniform(0.5, 1.0)
        # a little more than asked, so that a thousand who were told the same second do not come in the same
        return drawn if fault.wait_s is None else max(drawn, fault.wait_s * random.uniform(1.0, 1.1))

    def _refuse(self, reply: Response, server: Server) -> Response:
        self.tally.refused += 1
        if self.tally.answered == 0 and self.tally.before[0] == 0 and self.tally.refused >= REFUSED_AT_FIRST:
            raise ServerUnavailableError(
                f"{server.url} refused all of the first {REFUSED_AT_FIRST} requests ({reply.text});"
                " check that the model takes such input (images, `max_tokens`, the length of the prompt)"
            )
        return reply

    def _check(self, server: Server, fault: FaultError) -> asyncio.Task[bool]:
        """Begin to find out whether a server is up, unless that is being done."""
        check = self.checks.get(server.url)
        if check is None or check.done():
            check = self.checks[server.url] = asyncio.get_running_loop().create_task(self._canary(server, fault))
        return check

    async def _well(self, server: Server, fault: FaultError) -> bool:
        """Whether a server that failed a question to the end answers others; waits while it is down."""
        if server.given_up:
            return False
        return await asyncio.shield(self._check(server, fault))

    async def _canary(self, server: Server, fault: FaultError) -> bool:
        """Ask something easy until it is answered; whether it was at once.

        Meanwhile the server takes no other questions. One that stays away for `restart_s` is given up.
        """
        server.open, start, wait = False, time.monotonic(), min(self.endpoint.backoff_s, CANARY_WAIT_S)
        question = Request([{"role": "user", "content": "Say yes."}], self.model, {"max_tokens": 1})
        tries = 0
        while True:
            try:
                self.tally.sent += 1
                await self.transport.send(await self._fresh(server), server.url, question)
                break
            except FaultError as error:
                fault = error
            except ServerUnavailableError as error:
                self._give_up(server, str(error))
                return False
            tries += 1
            if tries == 2:
                note(f"{server.url} fails everything ({fault}); waiting up to {self.endpoint.restart_s:g} s")
            if self.tally.spent():
                # whoever waits for a place goes on, sees the same and stops
                server.open, server.streak = True, 0
                self.pool.wake_all()
                return False
            if time.monotonic() - start >= self.endpoint.restart_s:
                waited = f"{time.monotonic() - start:,.0f} s"
                self._give_up(
                    server,
                    f"{server.url} failed every request for {waited} ({fault}); look at the server's log, then run"
                    " the same command again: answers so far are kept",
                )
                return False
            await asyncio.sleep(wait)
            wait = min(2 * wait, CANARY_WAIT_S)
        if tries > 1:
            # one failure of the canary is a failure like any other; two say that the server was away
            self.pool.downs += 1
            server.back()
            note(f"{server.url} answers again")
        server.open, server.streak = True, 0
        self.pool.wake()
        return tries <= 1

    async def _fresh(self, server: Server) -> Any:
        if not server.clients:
            server.give(server.take(), overloaded=False)
        return server.clients[0]

    def _give_up(self, server: Server, why: str) -> None:
        server.given_up = why
        self.pool.downs += 1
        if any(not other.given_up for other in self.pool.servers):
            note(f"{why}; going on with the other addresses")
        self.pool.wake_all()

    async def takes_schema(self) -> bool:
        """Whether every server keeps to a JSON schema; each is asked once."""
        return all(await asyncio.gather(*(self._form(server) for server in self.pool.servers)))

    async def _form(self, server: Server) -> str:
        """How a server takes a JSON schema; empty where it keeps to none."""
        async with server.finding_form:
            if server.form is None:
                server.form = ""
                for form in (OPENAI_FORM, TGI_FORM):
                    if await self._takes_schema(server, form):
                        server.form = form
                        break
            return server.form

    async def _takes_schema(self, server: Server, form: str) -> bool:
        schema = {"name": "colors", "schema": PROBE_SCHEMA}
        parameters = {"max_tokens": 60, "response_format": {"type": "json_schema", "json_schema": schema}}
        # a model that keeps to the schema here was made to: the question says nothing of JSON
        question = Request([{"role": "user", "content": "Name two colors."}], self.model, parameters)
        for attempt in range(self.endpoint.retries + 1):
            try:
                self.tally.sent += 1
                reply = await self.transport.send(await self._fresh(server), server.url, question, form)
            except FaultError as error:
                await asyncio.sleep(self._wait(attempt, error))
                continue
            return not reply.refused and _keeps(reply.text)
        return False


def _keeps(text: str) -> bool:
    try:
        told = json.loads(text)
    except ValueError:
        return False
    return isinstance(told, dict) and isinstance(told.get("instructions"), list)
