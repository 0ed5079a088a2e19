"""A fault belongs to a server and a request: several servers, one of them well, on a clock that jumps."""

import math

import pytest

from megapairs_hf.annotation.client.budget import Usage
from megapairs_hf.annotation.client.completion import FaultError, ServerFaultError
from megapairs_hf.core.errors import ServerUnavailableError

from .simulated import SimulatedServer, ask_all, at_random, make_client, simulate, status, throughput


def always(error):
    return lambda now, own: error


def refusal(code, wait_s=None):
    return ServerFaultError(f"HTTP {code}", wait_s, passing=code not in {401, 402, 405})


def until(seconds, error):
    """Down for so long."""
    return lambda now, own: error if now < seconds else None


def from_then_on(start, end, error):
    return lambda now, own: error if start <= now < end else None


# what a server does from the first request on, at every request but canaries, some of the time, and for a while
KINDS = {
    "401": always(refusal(401)),
    "402": always(refusal(402)),
    "403": always(refusal(403)),
    "404": always(refusal(404)),
    "405": always(refusal(405)),
    "asks to wait long": always(refusal(429, 3600.0)),
    "500": always(status(500)),
    "502": always(status(502)),
    "503": always(status(503)),
    "503 and asks to wait": always(status(503, 100.0)),
    "500, but not to canaries": lambda now, own: None if own else status(500),
    "429, but not to canaries": lambda now, own: None if own else status(429),
    "404 at times": at_random(0.3, (404,)),
    "403 after a success": from_then_on(0.3, math.inf, refusal(403)),
    "404 after a success": from_then_on(0.3, math.inf, refusal(404)),
    "401 after a success": from_then_on(0.3, math.inf, refusal(401)),
    "404 while a pod restarts": from_then_on(0.3, 3.0, refusal(404)),
    "502 while a pod restarts": from_then_on(0.3, 3.0, status(502)),
    "nine in ten": at_random(0.9, (429, 500, 502, 503)),
}


def check_complete(count, responses, servers):
    assert [(each.text, each.refused) for each in responses] == [(f"reply {n}", "") for n in range(count)]
    served = sum((server.served for server in servers), start=type(servers[0].served)())
    del served[None]
    assert served == dict.fromkeys(range(count), 1)  # none lost, none doubled


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("fault", KINDS.values(), ids=KINDS)
def test_a_server_that_is_well_serves_what_another_fails(fault, first):
    async def work():
        servers = [SimulatedServer(fault), SimulatedServer()]
        client = make_client(servers if first else servers[::-1], concurrency=24)
        check_complete(600, await ask_all(client, 600), servers)
        # each round sends a request to a server once, and the first round serves it
        assert all(times <= 1 for key, times in servers[0].asked.items() if key is not None)

    simulate(work())


def test_of_three_servers_one_is_enough():
    async def work():
        servers = [SimulatedServer(KINDS["404 after a success"]), SimulatedServer(KINDS["502"]), SimulatedServer()]
        check_complete(2000, await ask_all(make_client(servers, concurrency=24), 2000), servers)

    simulate(work())


@pytest.mark.parametrize("kind", ["403", "404", "401", "asks to wait long", "500"])
def test_the_run_ends_when_the_last_server_was_given_up(kind):
    async def work():
        client = make_client([SimulatedServer(KINDS[kind]) for _ in range(2)])
        with pytest.raises(ServerUnavailableError, match="HTTP"):
            await ask_all(client, 30)

    simulate(work())


@pytest.mark.parametrize("code", [403, 404])
def test_one_response_of_the_only_server_ends_no_run(code):
    """A proxy says so while a pod restarts; one that goes on ends the run within a minute."""

    async def work(end):
        server = SimulatedServer(from_then_on(0.3, end, refusal(code)))
        return await ask_all(make_client([server]), 1000), server

    responses, server = simulate(work(3.0))
    check_complete(1000, responses, [server])
    with pytest.raises(ServerUnavailableError, match=f"HTTP {code}"):
        simulate(work(math.inf))


@pytest.mark.parametrize(
    ("fault", "wait_s"),
    [(refusal(403), 60.0), (refusal(404), 60.0), (refusal(429, 200.0), 200.0), (status(503), 660.0)],
    ids=["403", "404", "a long wait", "503 for as long as one waits"],
)
def test_a_server_that_was_given_up_is_asked_again_later(fault, wait_s):
    """It is back after `max_backoff_s`, or what it asked for, and takes its share."""

    count = int(8 * wait_s)  # one server, which serves four a second, would need twice that time

    async def work():
        down, well = SimulatedServer(until(wait_s - 5, fault), 2, 0.5), SimulatedServer(capacity=2, latency_s=0.5)
        client = make_client([down, well], concurrency=8, restart_s=600.0)
        check_complete(count, await ask_all(client, count), [down, well])
        assert down.served.total() > count / 5
        assert wait_s <= next(t for t in down.times if t >= wait_s - 5) <= wait_s + 10

    simulate(work())


def test_a_server_that_was_given_up_for_good_is_asked_no_more():
    async def work():
        down, well = SimulatedServer(KINDS["401"]), SimulatedServer(capacity=2)
        check_complete(5000, await ask_all(make_client([down, well]), 5000), [well])
        assert down.asked.total() <= 32  # those that were under way

    simulate(work())


def test_a_retry_goes_to_the_server_that_did_not_fail_this_request():
    """Least busy is the one that fails at once; three times in ten the other fails too."""

    async def work():
        failing = SimulatedServer(KINDS["500, but not to canaries"], fault_s=0.001)
        other = SimulatedServer(at_random(0.3, (500, 429)))
        responses = await ask_all(make_client([failing, other], concurrency=24), 542)
        check_complete(542, responses, [other])

    simulate(work())


def test_rounds_are_counted_and_no_server_is_asked_twice_in_one():
    async def work():
        fault = lambda now, own: None if own else FaultError("no")  # noqa: E731
        servers = [SimulatedServer(fault) for _ in range(3)]
        response = (await ask_all(make_client(servers, max_retries=4), 1))[0]
        assert (response.refused, response.text.split(" in ")[0]) == ("server_failed", "no (15 times")
        assert [server.asked[0] for server in servers] == [5, 5, 5]

    simulate(work())


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_requests_are_bounded_by_the_share_of_faults(share):
    """Of N requests of which a share fails, N / (1 - share) are sent, and none by a server that is well."""
    usage, count = Usage(), 1500

    async def work():
        server = SimulatedServer(at_random(share, (408, 429, 500, 502, 503)))
        check_complete(count, await ask_all(make_client([server], usage, max_retries=40), count), [server])

    simulate(work())
    deviation = math.sqrt(count * share) / (1 - share)
    assert abs(usage.sent - count / (1 - share)) < 5 * deviation


@pytest.mark.parametrize("fault_s", [None, 0.001], ids=["slow refusals", "quick refusals"])
@pytest.mark.parametrize(("concurrency", "capacity"), [(24, 24), (256, 64)])
def test_refusals_whatever_the_load_cost_little(concurrency, capacity, fault_s):
    calm, one, five = (throughput(share, concurrency, capacity, 6.0, fault_s) for share in (0.0, 0.01, 0.05))
    assert calm > 0.9 * capacity / 0.0575
    assert one >= 0.9 * calm
    assert five >= 0.7 * calm
