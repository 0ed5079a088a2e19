"""A client for OpenAI-compatible servers (TGI, vLLM, SGLang, llama.cpp, Inference Providers), with retries.

Built on huggingface_hub's `AsyncInferenceClient`. Failures that may pass are retried, at another server first and then
with growing random waits; a failure of one request is its pair's, a failure of one server is that server's. What
surprises: the run stops, with one sentence, only when the last server was given up.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from megapairs_hf.annotation.client.attempts import Attempts
from megapairs_hf.annotation.client.completion import FaultError, ServerFaultError, check_length
from megapairs_hf.annotation.client.health import HealthChecks
from megapairs_hf.annotation.client.load_balancer import LoadBalancer, Server
from megapairs_hf.annotation.client.messages import Request, Response
from megapairs_hf.annotation.client.transport import Transport, reach_any
from megapairs_hf.core.errors import BudgetSpentError, ServerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from megapairs_hf.annotation.client.budget import Usage
    from megapairs_hf.annotation.client.endpoint import Endpoint

REFUSED_AT_FIRST = 10


class Client:
    """Several servers behind one `request`. Use it as an asynchronous context.

    Args:
        endpoint: where the servers are.
        usage: counters.
        model: as the servers name it.
        clock: gives the seconds.
    """

    def __init__(
        self, endpoint: Endpoint, usage: Usage, model: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.endpoint, self.usage, self.clock = endpoint, usage, clock
        self.transport = Transport(endpoint)
        # the largest share that one address may take, so that all together stay under the cap
        share = -(-endpoint.concurrency // len(endpoint.urls))
        self.balancer = LoadBalancer([Server(url, share, self._connect(url), clock) for url in endpoint.urls])
        self.health = HealthChecks(self.balancer, self.transport, endpoint, usage, model, clock)

    def _connect(self, url: str) -> Callable[[], Any]:
        return lambda: self.transport.connect(url)

    async def __aenter__(self) -> Self:
        silent = await reach_any(self.endpoint.urls, self.endpoint.connect_timeout_s)
        for server in self.balancer.servers:
            if server.url in silent:
                self.health.give_up(server, ServerFaultError(silent[server.url], passing=True))
        return self

    async def __aexit__(self, *details: Any) -> None:
        await self.health.stop()
        for server in self.balancer.servers:
            # what a broken connection says when it is closed is of no interest any more
            await asyncio.gather(*(client.close() for client in server.clients), return_exceptions=True)

    async def request(self, make: Callable[[], Request]) -> Response:
        """Send a request until there is a response.

        Args:
            make: makes the request; called when a server has room for it, so that no image waits in memory.

        Returns:
            The response; `refused` is set where the servers refuse this request.

        Raises:
            ServerUnavailableError: every server refuses or fails everything.
            BudgetSpentError: the budget allows no further request.
        """
        attempts, outages = Attempts(self.endpoint, self.clock), self.balancer.outages
        while True:
            server = await self.balancer.acquire(attempts.failed)
            if outages != self.balancer.outages:
                # what failed because no server was up is no fault of this request
                outages = self.balancer.outages
                attempts.begin()
            try:
                response = await self._send_once(server, make)
            except FaultError as fault:
                attempts.count(server, fault)
                self.health.blame(server, fault)
                final = await self._retry(attempts, fault)
                if final is not None:
                    return self._count_refusal(final, server)
                continue
            if not response.refused:
                return response
            attempts.failed[server] = 0.0
            if response.refused != "refused" or not self.balancer.untried(attempts.failed):
                return self._count_refusal(response, server)
            # another server may take what this one does not: images, or as long a prompt
            self._check_refusals(server, response)

    async def _retry(self, attempts: Attempts, fault: FaultError) -> Response | None:
        """Wait until a request may be sent again; what to say of it where it may not."""
        if self.balancer.given_up:
            return None
        if not self.balancer.untried(attempts.failed):
            wait = attempts.end_round()
            late = attempts.elapsed_s + wait > self.endpoint.deadline_s
            if attempts.rounds > self.endpoint.max_retries or late:
                if await self.health.is_healthy(list(attempts.failed), fault):
                    message = f"{fault} ({attempts.failures} times in {attempts.elapsed_s:.0f} s)"
                    return Response(message, "error", refused="deadline" if late else "server_failed")
                attempts.begin()
                return None
            await asyncio.sleep(wait)
            attempts.begin_round()
        self.usage.retried += 1
        return None

    async def _send_once(self, server: Server, make: Callable[[], Request]) -> Response:
        """Send one request to a server that has room for it."""
        limit = self.usage.exhausted()
        if limit:
            self.balancer.wake()
            raise BudgetSpentError(limit)
        index, overloaded = server.acquire(), False
        self.usage.in_flight += 1
        start = self.clock()
        try:
            request = make()
            self.usage.sent += 1
            response = await self.transport.send(server.clients[index], server.url, request)
            check_length(response.text, request.parameters.get("max_tokens"))
        except FaultError as error:
            overloaded = error.overload
            server.failures += 1
            raise
        else:
            latency = self.clock() - start
            overloaded = latency > self.endpoint.timeout_s / 2
            server.failures = 0
            if response.refused:
                self.usage.count_tokens(response)
                return response
            server.served += 1
            self.usage.count(response, latency, request.num_chars)
            return replace(response, latency_s=round(latency, 3))
        finally:
            self.usage.in_flight -= 1
            server.release(index, overloaded=overloaded)
            self.balancer.wake()

    def _count_refusal(self, response: Response, server: Server) -> Response:
        self.usage.refused += 1
        self._check_refusals(server, response)
        return response

    def _check_refusals(self, server: Server, response: Response) -> None:
        """Give a server up that refuses whatever it is asked.

        Raises:
            ServerUnavailableError: there is no other.
        """
        server.refused += 1
        if server.served or server.given_up or self.usage.before[0] or server.refused < REFUSED_AT_FIRST:
            return
        why = (
            f"{server.url} refused all of the first {REFUSED_AT_FIRST} requests ({response.text});"
            " check that the model takes such input (images, `max_new_tokens`, the length of the prompt)"
        )
        self.health.give_up(server, ServerFaultError(why, passing=False))
        if self.balancer.given_up:
            raise ServerUnavailableError(why)
