"""The client against servers that are functions, on a clock that jumps: hours of faults in seconds, and no race.

What surprises: everything but the transport is the package's own. The event loop, when it would sleep, moves its clock
instead.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import selectors
from collections import Counter
from functools import partial

from megapairs_hf.annotation.client.budget import Usage
from megapairs_hf.annotation.client.client import Client
from megapairs_hf.annotation.client.completion import OVERLOAD, FaultError
from megapairs_hf.annotation.client.endpoint import Endpoint
from megapairs_hf.annotation.client.messages import Request, Response


class JumpingSelector(selectors.SelectSelector):
    """Waits by adding to `now`."""

    def __init__(self):
        super().__init__()
        self.now = 0.0

    def select(self, timeout=None):
        assert timeout is not None, "everyone waits for each other"
        self.now += max(0.0, timeout)
        return super().select(0)


class SimulatedLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self.jumping = JumpingSelector()
        super().__init__(self.jumping)

    def time(self):
        return self.jumping.now


def simulate(work):
    """Run a coroutine on a simulated clock."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(work)


class SimulatedServer:
    """Serves `capacity` requests at once, each in `latency_s`; others queue.

    `fault(now, own)` gives an error or None; `own` says that it is the client that asks on its own account. A fault
    comes after `fault_s`; None: after a place and the latency of a good response.
    """

    def __init__(self, fault=lambda now, own: None, capacity=24, latency_s=0.05, fault_s=None):
        self.fault, self.latency_s, self.fault_s = fault, latency_s, fault_s
        self.places = asyncio.Semaphore(capacity)
        self.times, self.served, self.asked = [], Counter(), Counter()

    async def serve(self, request):
        now = asyncio.get_running_loop().time()
        self.times.append(now)
        key = request.parameters.get("seed")
        self.asked[key] += 1
        error = self.fault(now, key is None)
        if error is not None and self.fault_s is not None:
            await asyncio.sleep(self.fault_s)
            raise error
        async with self.places:
            await asyncio.sleep(self.latency_s)
        if error is not None:
            raise error
        self.served[key] += 1
        return Response(f"reply {key}")


class SimulatedTransport:
    def __init__(self, servers):
        self.servers = servers

    def connect(self, url):
        return None

    async def send(self, client, url, request):
        return await self.servers[url].serve(request)


def make_client(servers, usage=None, **settings):
    """A client of those servers; call it inside of the loop."""
    by_url = {f"http://server-{n}": server for n, server in enumerate(servers)}
    endpoint = Endpoint(urls=tuple(by_url), **settings)
    client = Client(endpoint, usage or Usage(), "m", asyncio.get_running_loop().time)
    client.transport = client.health.transport = SimulatedTransport(by_url)
    return client


def question(seed):
    return Request([{"role": "user", "content": "hello"}], "m", {"seed": seed, "max_tokens": 50})


async def ask_all(client, count):
    """The responses to so many requests at once."""
    try:
        return await asyncio.gather(*(client.request(lambda n=n: question(n)) for n in range(count)))
    finally:
        await client.health.stop()


def status(code, wait_s=None):
    return FaultError(f"HTTP {code}", wait_s, overload=code in OVERLOAD)


def at_random(share, codes=(429, 503), seed=0):
    """Faults of so large a share of the requests, whatever the load."""
    rng = random.Random(seed)
    return lambda now, own: status(rng.choice(codes)) if rng.random() < share else None


def throughput(share, concurrency=24, capacity=24, seconds=30.0, fault_s=None, seed=0):
    """Responses a second over some seconds, where so large a share of the requests is refused."""

    async def work():
        client = make_client(
            [SimulatedServer(at_random(share, seed=seed), capacity, 0.0575, fault_s)], concurrency=concurrency
        )
        numbers = itertools.count()

        async def one_after_another():
            while True:
                await client.request(partial(question, next(numbers)))

        # as many rows as the runner holds at once
        rows = [asyncio.create_task(one_after_another()) for _ in range(2 * concurrency)]
        await asyncio.sleep(seconds)
        for row in rows:
            row.cancel()
        await asyncio.gather(*rows, return_exceptions=True)
        await client.health.stop()
        return client.usage.completed / seconds

    return simulate(work())
