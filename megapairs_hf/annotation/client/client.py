"""A client for OpenAI-compatible servers (TGI, vLLM, SGLang, llama.cpp, Inference Providers), with retries.

Built on huggingface_hub's `AsyncInferenceClient`. Failures that may pass are retried, with growing random waits; a
server that fails everything gets no requests until it responds again; a failure of one request is its pair's; a
failure of every request stops the run with one sentence. What surprises: whether the server or the request is to
blame does not show in the failure, so the client then sends a canary, a request that any server can serve.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from megapairs_hf.annotation.client.completion import FaultError
from megapairs_hf.annotation.client.load_balancer import LoadBalancer, Server
from megapairs_hf.annotation.client.messages import Request, Response
from megapairs_hf.annotation.client.transport import Transport, reach
from megapairs_hf.core.errors import BudgetSpentError, ServerUnavailableError
from megapairs_hf.core.progress import note

if TYPE_CHECKING:
    from collections.abc import Callable

    from megapairs_hf.annotation.client.budget import Usage
    from megapairs_hf.annotation.client.endpoint import Endpoint

REFUSED_AT_FIRST = 10
FAULTS_IN_A_ROW = 10
CANARY_WAIT_S = 5.0


class Client:
    """Several servers behind one `request`. Use it as an asynchronous context."""

    def __init__(self, endpoint: Endpoint, usage: Usage, model: str) -> None:
        self.endpoint, self.usage, self.model = endpoint, usage, model
        self.transport = Transport(endpoint)
        self.canaries: dict[str, asyncio.Task[bool]] = {}
        # the largest share that one address may take, so that all together stay under the cap
        share = -(-endpoint.concurrency // len(endpoint.urls))
        self.balancer = LoadBalancer([Server(url, share, self._connect(url)) for url in endpoint.urls])

    def _connect(self, url: str) -> Callable[[], Any]:
        return lambda: self.transport.connect(url)

    async def __aenter__(self) -> Self:
        await asyncio.gather(*(reach(url, self.endpoint.connect_timeout_s) for url in self.endpoint.urls))
        return self

    async def __aexit__(self, *details: Any) -> None:
        for canary in self.canaries.values():
            canary.cancel()
        await asyncio.gather(*self.canaries.values(), return_exceptions=True)
        for server in self.balancer.servers:
            # what a broken connection says when it is closed is of no interest any more
            await asyncio.gather(*(client.close() for client in server.clients), return_exceptions=True)

    async def request(self, make: Callable[[], Request]) -> Response:
        """Send a request until there is a response.

        Args:
            make: makes the request; called when a server has room for it, so that no image waits in memory.

        Returns:
            The response; `refused` is set where the server refuses this request.

        Raises:
            ServerUnavailableError: every server refuses or fails everything.
            BudgetSpentError: the budget allows no further request.
        """
        failures, start, outages = 0, time.monotonic(), self.balancer.outages
        while True:
            server = await self.balancer.acquire()
            if outages != self.balancer.outages:
                # what failed because no server was up is no fault of this request
                failures, start, outages = 0, time.monotonic(), self.balancer.outages
            try:
                return await self._send_once(server, make)
            except FaultError as error:
                fault = error
            failures += 1
            wait = self._backoff(failures - 1, fault)
            late = time.monotonic() + wait - start > self.endpoint.deadline_s
            if failures > self.endpoint.max_retries or late:
                if await self._is_healthy(server, fault):
                    message = f"{fault} ({failures} times in {time.monotonic() - start:.0f} s)"
                    reason = "deadline" if late else "server_failed"
                    return self._count_refusal(Response(message, "error", refused=reason), server)
                continue
            if server.failures >= FAULTS_IN_A_ROW:
                self._start_canary(server, fault)
            self.usage.retried += 1
            await asyncio.sleep(wait)

    async def _send_once(self, server: Server, make: Callable[[], Request]) -> Response:
        """Send one request to a server that has room for it."""
        limit = self.usage.exhausted()
        if limit:
            self.balancer.wake()
            raise BudgetSpentError(limit)
        index, overloaded = server.acquire(), False
        self.usage.in_flight += 1
        start = time.monotonic()
        try:
            request = make()
            self.usage.sent += 1
            response = await self.transport.send(server.clients[index], server.url, request)
        except FaultError as error:
            overloaded = error.overload
            server.failures += 1
            raise
        else:
            latency = time.monotonic() - start
            overloaded = latency > self.endpoint.timeout_s / 2
            server.failures = 0
            if response.refused:
                self.usage.count_tokens(response)
                return self._count_refusal(response, server)
            self.usage.count(response, latency, request.num_chars)
            return replace(response, latency_s=round(latency, 3))
        finally:
            self.usage.in_flight -= 1
            server.release(index, overloaded=overloaded)
            self.balancer.wake()

    def _backoff(self, retries: int, fault: FaultError) -> float:
        wait = min(self.endpoint.max_backoff_s, self.endpoint.backoff_s * 2**retries) * random.uniform(0.5, 1.0)
        # a little more than asked for, so that a thousand requests refused in one second do not return in one
        return wait if fault.wait_s is None else max(wait, fault.wait_s * random.uniform(1.0, 1.1))

    def _count_refusal(self, response: Response, server: Server) -> Response:
        self.usage.refused += 1
        if self.usage.completed == 0 and self.usage.before[0] == 0 and self.usage.refused >= REFUSED_AT_FIRST:
            raise ServerUnavailableError(
                f"{server.url} refused all of the first {REFUSED_AT_FIRST} requests ({response.text});"
                " check that the model takes such input (images, `max_new_tokens`, the length of the prompt)"
            )
        return response

    def _start_canary(self, server: Server, fault: FaultError) -> asyncio.Task[bool]:
        """The canary of a server; a new one unless one is under way."""
        canary = self.canaries.get(server.url)
        if canary is None or canary.done():
            canary = asyncio.get_running_loop().create_task(self._canary(server, fault))
            self.canaries[server.url] = canary
        return canary

    async def _is_healthy(self, server: Server, fault: FaultError) -> bool:
        """Whether a server that failed a request to the end serves others; waits while it is down."""
        if server.given_up:
            return False
        return await asyncio.shield(self._start_canary(server, fault))

    async def _canary(self, server: Server, fault: FaultError) -> bool:
        """Send an easy request until there is a response; whether it came at once.

        Meanwhile the server takes no other requests. One that stays away for `restart_s` is given up.
        """
        server.up = False
        try:
            return await self._probe(server, fault)
        except ServerUnavailableError as error:
            self._give_up(server, str(error))
        except Exception as error:
            # those that wait for this server would wait for ever
            self._give_up(
                server,
                f"the health check of {server.url} broke ({type(error).__name__}: {error}); run the same command"
                " again, responses so far are kept",
            )
        return False

    async def _probe(self, server: Server, fault: FaultError) -> bool:
        """Send the canary until there is a response.

        Raises:
            ServerUnavailableError: there was none within `restart_s`.
        """
        start, wait = time.monotonic(), min(self.endpoint.backoff_s, CANARY_WAIT_S)
        request = Request([{"role": "user", "content": "Say yes."}], self.model, {"max_tokens": 1})
        tries = 0
        while True:
            try:
                self.usage.sent += 1
                await self.transport.send(self._any_client(server), server.url, request)
                break
            except FaultError as error:
                fault = error
            tries += 1
            if tries == 2:
                note(f"{server.url} fails everything ({fault}); waiting up to {self.endpoint.restart_s:g} s")
            if self.usage.exhausted():
                # whoever waits for room goes on, sees the same and stops
                self._reopen(server)
                self.balancer.wake_all()
                return False
            if time.monotonic() - start >= self.endpoint.restart_s:
                raise ServerUnavailableError(
                    f"{server.url} failed every request for {time.monotonic() - start:,.0f} s ({fault}); look at the"
                    " server's log, then run the same command again: responses so far are kept"
                )
            await asyncio.sleep(wait)
            wait = min(2 * wait, CANARY_WAIT_S)
        if tries > 1:
            # one failure of the canary is a failure like any other; two say that the server was down
            self.balancer.outages += 1
            server.restart()
        self._reopen(server)
        if tries > 1:
            note(f"{server.url} responds again")
        return tries <= 1

    def _reopen(self, server: Server) -> None:
        server.up, server.failures = True, 0
        self.balancer.wake()

    def _any_client(self, server: Server) -> Any:
        if not server.clients:
            server.release(server.acquire(), overloaded=False)
        return server.clients[0]

    def _give_up(self, server: Server, why: str) -> None:
        server.up, server.given_up = False, why
        self.balancer.outages += 1
        self.balancer.wake_all()
        if any(not other.given_up for other in self.balancer.servers):
            note(f"{why}; continuing with the other addresses")
