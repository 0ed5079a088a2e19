"""Which servers take requests: those that fail everything are asked by canaries until they respond again.

What surprises: whether the server or the request is to blame does not show in a failure. A canary, a request that any
server can serve, tells them apart.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from megapairs_hf.annotation.client.completion import FaultError, ServerFaultError
from megapairs_hf.annotation.client.messages import Request
from megapairs_hf.core.errors import ServerUnavailableError
from megapairs_hf.core.progress import note

if TYPE_CHECKING:
    from collections.abc import Callable

    from megapairs_hf.annotation.client.budget import Usage
    from megapairs_hf.annotation.client.endpoint import Endpoint
    from megapairs_hf.annotation.client.load_balancer import LoadBalancer, Server
    from megapairs_hf.annotation.client.transport import Transport

FAULTS_IN_A_ROW = 10
CANARY_WAIT_S = 5.0


class HealthChecks:
    """The canaries of a client's servers.

    Args:
        balancer: the servers.
        transport: sends canaries.
        endpoint: how long to wait for a server.
        usage: counters.
        model: as the servers name it.
        clock: gives the seconds.
    """

    def __init__(
        self,
        balancer: LoadBalancer,
        transport: Transport,
        endpoint: Endpoint,
        usage: Usage,
        model: str,
        clock: Callable[[], float],
    ) -> None:
        self.balancer, self.transport, self.endpoint, self.usage = balancer, transport, endpoint, usage
        self.clock = clock
        self.request = Request([{"role": "user", "content": "Say yes."}], model, {"max_tokens": 1})
        self.canaries: dict[Server, asyncio.Task[bool]] = {}

    async def stop(self) -> None:
        """Ask no more."""
        for canary in self.canaries.values():
            canary.cancel()
        await asyncio.gather(*self.canaries.values(), return_exceptions=True)

    def blame(self, server: Server, fault: FaultError) -> None:
        """Send a server no more requests where it is likely that it fails all of them."""
        if server.given_up or self._under_way(server):
            return
        if not isinstance(fault, ServerFaultError):
            if server.failures >= FAULTS_IN_A_ROW:
                self._start(server, fault)
        elif server.served and _may_be_brief(fault):
            self._start(server, fault)
        else:
            self.give_up(server, fault)

    def _under_way(self, server: Server) -> bool:
        return server in self.canaries and not self.canaries[server].done()

    def _start(self, server: Server, fault: FaultError) -> asyncio.Task[bool]:
        """The canary of a server; a new one unless one is under way."""
        if not self._under_way(server):
            self.canaries[server] = asyncio.get_running_loop().create_task(self._canary(server, fault))
        return self.canaries[server]

    async def is_healthy(self, servers: list[Server], fault: FaultError) -> bool:
        """Whether one of the servers that failed a request to the end serves others; waits while all are down."""
        canaries = [self._start(server, fault) for server in servers if not server.given_up]
        if not canaries:
            return False
        done, _ = await asyncio.wait(canaries, return_when=asyncio.FIRST_COMPLETED)
        return any(canary.result() for canary in done)

    async def _canary(self, server: Server, fault: FaultError) -> bool:
        """Send an easy request until there is a response; whether it came at once.

        Meanwhile the server takes no other requests. One that stays away for `restart_s` is given up.
        """
        server.up = False
        self.balancer.wake()
        try:
            return await self._probe(server, fault)
        except ServerFaultError as error:
            self.give_up(server, error)
        except ServerUnavailableError as error:
            self.give_up(server, ServerFaultError(str(error), passing=False))
        except Exception as error:
            # those that wait for this server would wait for ever
            why = (
                f"the health check of {server.url} broke ({type(error).__name__}: {error}); run the same command"
                " again, responses so far are kept"
            )
            self.give_up(server, ServerFaultError(why, passing=False))
        return False

    async def _probe(self, server: Server, fault: FaultError) -> bool:
        """Send the canary until there is a response; whether it came at once.

        Raises:
            ServerFaultError: there was none within `restart_s`, or the server refuses everyone.
        """
        start, wait, tries = self.clock(), min(self.endpoint.backoff_s, CANARY_WAIT_S), 0
        while (error := await self._ask_canary(server)) is not None:
            fault = error
            tries += 1
            if isinstance(fault, ServerFaultError):
                if not _may_be_brief(fault) or tries > self.endpoint.max_retries:
                    raise fault
            elif tries == 2:
                note(f"{server.url} fails everything ({fault}); waiting up to {self.endpoint.restart_s:g} s")
            if self.usage.exhausted():
                # whoever waits for room goes on, sees the same and stops
                self._reopen(server)
                self.balancer.wake_all()
                return False
            left = self.endpoint.restart_s - (self.clock() - start)
            if left <= 0:
                raise ServerFaultError(
                    f"{server.url} failed every request for {self.clock() - start:,.0f} s ({fault}); look at the"
                    " server's log, then run the same command again: responses so far are kept",
                    passing=True,
                )
            await asyncio.sleep(max(wait, min(fault.wait_s or 0.0, left)))
            wait = min(2 * wait, CANARY_WAIT_S)
        if tries > 1:
            # one failure of the canary is a failure like any other; two say that the server was down
            self._come_back(server)
        self._reopen(server)
        if tries > 1:
            note(f"{server.url} responds again")
        return tries <= 1

    async def _ask_canary(self, server: Server) -> FaultError | None:
        """Send the canary once; how it failed."""
        self.usage.sent += 1
        try:
            await self.transport.send(self._any_client(server), server.url, self.request)
        except FaultError as error:
            return error
        return None

    def _come_back(self, server: Server) -> None:
        self.balancer.outages += not any(other.up for other in self.balancer.servers)
        server.restart()

    def _reopen(self, server: Server) -> None:
        server.up, server.failures = True, 0
        self.balancer.wake()

    def _any_client(self, server: Server) -> Any:
        if not server.clients:
            server.release(server.acquire(), overloaded=False)
        return server.clients[0]

    def give_up(self, server: Server, fault: ServerFaultError) -> None:
        """Send a server no more requests; it is asked again later where what is wrong may pass."""
        server.up, server.given_up = False, str(fault)
        self.balancer.wake_all()
        if self.balancer.given_up:
            return
        if fault.passing:
            wait = max(self.endpoint.max_backoff_s, fault.wait_s or 0.0)
            self.canaries[server] = asyncio.get_running_loop().create_task(self._revive(server, wait))
        note(f"{fault}; continuing with the other addresses")

    async def _revive(self, server: Server, wait: float) -> bool:
        """Ask a server that was given up again from time to time, for as long as others work."""
        while True:
            await asyncio.sleep(wait)
            if self.usage.exhausted():
                return False
            fault = await self._ask_canary(server)
            if fault is None:
                break
            wait = max(self.endpoint.max_backoff_s, fault.wait_s or 0.0)
        self._come_back(server)
        self._reopen(server)
        note(f"{server.url} responds again")
        return True


def _may_be_brief(fault: ServerFaultError) -> bool:
    """Whether a server that has served may do so again in a moment: a proxy says 404 while a pod restarts."""
    return fault.passing and fault.wait_s is None
