"""Limits, budgets, restarts and formats, through the whole stage."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest

from megapairs_hf.annotation import Budget, DescribeConfig, Endpoint, describe_pairs
from megapairs_hf.annotation.client.budget import Usage
from megapairs_hf.annotation.client.load_balancer import Server
from megapairs_hf.annotation.client.messages import Response
from megapairs_hf.annotation.engines import journal_index
from megapairs_hf.annotation.engines.journal import Journal
from megapairs_hf.core.errors import ArtifactError, BudgetSpentError, ConfigError, ServerUnavailableError
from megapairs_hf.core.schema import PAIRS

from .conftest import make_artifact, pair_rows
from .test_client import ask, plain
from .test_stage import at, digests, rejected

FAULTS = [
    ("status", 429),
    ("status", 429, {"Retry_After": "0.05"}),
    ("status", 500),
    ("status", 502),
    ("status", 503),
    ("hang",),
    ("reset",),
    ("truncated",),
    ("html",),
    ("empty",),
]


@pytest.mark.parametrize("capacity", [10, 48])
def test_the_limit_of_a_server_that_refuses_is_found(capacity):
    # every round of requests takes a second
    server = Server("http://x", 256, object, count(1.0).__next__)
    seen = []
    for _ in range(400):
        out = []
        while server.available:
            out.append(server.acquire())
        seen.append(len(out))
        for place, index in enumerate(out):
            server.release(index, overloaded=place >= capacity)
    settled = seen[200:]
    assert capacity * 0.7 <= sum(settled) / len(settled) <= capacity * 1.5


def test_the_cap_holds_and_a_server_that_is_back_begins_anew():
    server = Server("http://x", 5, object)
    # a window is twenty responses, and the one after a change counts for nothing
    for _ in range(200):
        out = []
        while server.available:
            out.append(server.acquire())
        assert len(out) <= 5
        for index in out:
            server.release(index, overloaded=True)
    assert server.limit.value == 1
    server.restart()
    assert server.limit.value == 5


def test_faults_of_every_kind_leave_no_trace(serve, pairs, corpus, tmp_path):
    seen = set()

    def script(body, n):
        # what befalls a question does not depend on the order in which they come
        fault = FAULTS[(body["seed"] + n) % len(FAULTS)] if n < 5 else None
        seen.add(repr(fault))
        return fault

    good, bad = serve(), serve(script=script)
    calm = describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(good)), out=tmp_path / "a")
    # a busy machine may miss the time-out with good answers too
    patient = at(bad, timeout_s=0.5, max_retries=1000, max_backoff_s=0.1)
    wild = describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=patient), out=tmp_path / "b")
    assert digests(calm.path) == digests(wild.path)
    assert seen == {repr(fault) for fault in [*FAULTS, None]}


def test_a_restart_in_the_middle_is_waited_for(serve, pairs, corpus, tmp_path, monkeypatch):
    server, guard, let_through, later = serve(), threading.Lock(), [], []

    def restart(body, n):
        with guard:
            if len(let_through) < 4:
                let_through.append(body)
                return None
            server.stop()
            return ("reset",)

    def note(message):
        # the client has noticed that nobody is there
        if "fails everything" in message:
            later.append(serve(port=server.server_port))

    server.script = restart
    monkeypatch.setattr("megapairs_hf.annotation.client.health.note", note)
    endpoint = at(server, max_retries=3)
    made = describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=endpoint), out=tmp_path / "d")
    assert made.rows == 11
    assert [len(server.answered), len(later[0].answered)] == [4, 7]


def test_a_question_that_alone_fails_at_the_end_is_left_out(serve, pairs, corpus, tmp_path):
    server = serve()
    server.script = lambda body, _: ("status", 500) if body["seed"] == sorted(seeds)[0] else None
    first = describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(serve_all := serve())), out=tmp_path / "a")
    seeds = [body["seed"] for body in serve_all.bodies]
    made = describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(server, max_retries=2)), out=tmp_path / "b")
    assert made.rows == first.rows - 1
    assert [reason for reason, _ in rejected(made).values()] == ["server_failed"]


def test_retry_after_longer_than_the_deadline_stops(serve):
    server = serve(answer=plain, script=lambda *_: ("status", 429, {"Retry_After": "3600"}))
    with pytest.raises(ServerUnavailableError, match="asks to wait 3,600 s"):
        ask(server)


def test_the_deadline_ends_a_question(serve):
    server = serve(answer=plain, script=lambda body, _: ("status", 500) if body["seed"] == 1 else None)
    replies = ask(server, 3, deadline_s=0.3, backoff_s=0.1, max_retries=100)
    assert [reply.refused for reply in replies] == ["", "deadline", ""]


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        (Budget(requests=6), r"`budget.requests` \(6\)"),
        (Budget(tokens=100), r"`budget.tokens` \(100\)"),
        (Budget(spend=0.0001, price_prompt=1.0, price_completion=1.0), r"`budget.spend`"),
    ],
)
def test_a_budget_stops_cleanly_and_a_larger_one_goes_on(serve, pairs, corpus, tmp_path, budget, told):
    server, out = serve(), tmp_path / "d"
    endpoint = at(server, concurrency=1)
    with pytest.raises(BudgetSpentError, match=told + ".*responses so far are kept"):
        describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=endpoint, budget=budget), out=out)
    asked = len(server.bodies)
    assert 5 <= asked <= 7
    with pytest.raises(BudgetSpentError):
        describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=endpoint, budget=budget), out=out)
    assert len(server.bodies) == asked
    assert describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=endpoint), out=out).rows == 11
    assert len(server.bodies) == 11


def test_what_is_told_while_it_runs():
    usage = Usage(Budget(price_prompt=1.0, price_completion=2.0))
    for n in range(100):
        usage.count(Response("x", prompt_tokens=1_000, completion_tokens=500), n / 100)
    line = usage._line(10.0)
    assert "5,000 tokens/s" in line
    assert "p50 0.49 s, p95 0.94 s" in line
    assert "0.20 spent" in line  # 100,000 at 1 and 50,000 at 2 a million


@pytest.mark.parametrize("bad", [{"requests": 0}, {"spend": 1.0}, {"price_prompt": -1.0}, {"hours": 0.0}])
def test_bad_budgets(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Budget(**bad)


@pytest.mark.parametrize("said", ["this model has no image input", "the prompt is longer than 4096 tokens"])
def test_a_server_that_refuses_everything_stops_with_its_own_words(serve, pairs, corpus, tmp_path, said):
    server = serve(script=lambda *_: ("refuse", said))
    with pytest.raises(ServerUnavailableError, match=said):
        describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(server)), out=tmp_path / "d")
    few = make_artifact(tmp_path / "few", "pairs", PAIRS, [pair_rows(("i1", "i2"))])
    with pytest.raises(ServerUnavailableError, match=said):
        describe_pairs(few, corpus, config=DescribeConfig(endpoint=at(server)), out=tmp_path / "e")


def test_one_prompt_too_long_is_left_out(serve, pairs, corpus, tmp_path):
    few = {"left": 1}

    def script(body, n):
        few["left"] -= 1
        return ("refuse", "too long") if few["left"] == -4 else None

    made = describe_pairs(
        pairs, corpus, config=DescribeConfig(endpoint=at(serve(script=script), concurrency=1)), out=tmp_path / "d"
    )
    assert made.manifest.rejected == {"refused": 1}
    assert "too long" in next(iter(rejected(made).values()))[1]


def test_a_disk_that_is_full_is_told_once(tmp_path):
    with Journal(tmp_path) as journal:
        # a device that has no space left
        journal.path = Path("/dev/full")
        with pytest.raises(ArtifactError, match="No space left on device; free some space"):
            journal.add_all([("key", Response("text"))])


def test_groups_in_the_journal_are_durable_when_add_returns(tmp_path):
    import asyncio

    keys = [f"{n:016x}" * 2 for n in range(300)]

    async def add_many(journal):
        await asyncio.gather(*(journal.add(key, Response(f"é\u2028\n{n}")) for n, key in enumerate(keys)))
        return [journal.get(key).text for key in keys]

    with Journal(tmp_path) as journal:
        assert asyncio.run(add_many(journal)) == [f"é\u2028\n{n}" for n in range(300)]
        assert journal.sums() == (300, 0, 0)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(journal.add_all, [("f" * 32, Response("x", prompt_tokens=3))]).result()
        assert journal.sums() == (301, 3, 0)
        assert journal.get("e" * 32) is None
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cut_line_is_ignored_and_every_process_reads_all_files(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_index, "MIN_FOLD", 4)
    for part in range(3):
        with Journal(tmp_path) as journal:
            journal.add_all([(f"{part}{n:015x}" * 2, Response(f"{part} {n}", completion_tokens=2)) for n in range(5)])
    file = sorted(tmp_path.iterdir())[1]
    content = file.read_bytes()
    file.write_bytes(content[:-9])  # killed while it wrote
    lost = json.loads(content.splitlines()[-1])["key"]
    with Journal(tmp_path) as journal:
        assert (len(journal), journal.sums()) == (14, (14, 0, 28))
        there = {f"{part}{n:015x}" * 2: f"{part} {n}" for part in range(3) for n in range(5)}
        assert {key: journal.get(key) and journal.get(key).text for key in there} == there | {lost: None}
        other = Journal(tmp_path)
        other.add_all([(lost, Response("again"))])
        assert journal.get(lost) is None
        journal.sums()
        assert journal.get(lost).text == "again"
        other.close()


def test_the_budget_and_endpoint_are_no_settings(serve, pairs, corpus, tmp_path):
    server = serve()
    made = describe_pairs(
        pairs, corpus, config=DescribeConfig(endpoint=at(server), budget=Budget(requests=100)), out=tmp_path / "d"
    )
    assert "budget" not in json.dumps(made.manifest.config)
    again = describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=Endpoint()), out=tmp_path / "d")
    assert again.fingerprint == made.fingerprint


def test_a_run_of_which_only_refused_pairs_are_left_finishes(serve, corpus, tmp_path):
    pairs = make_artifact(tmp_path / "p", "pairs", PAIRS, [pair_rows(*((f"i{n}", f"i{n + 1}") for n in range(11)))])
    asked = []

    def ends(body, _):
        asked.append(body)
        return ("status", 401) if len(asked) == 11 else None

    server = serve(script=ends)
    with pytest.raises(ServerUnavailableError, match="401"):
        describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(server, concurrency=1)), out=tmp_path / "d")
    other = serve(script=lambda *_: ("refuse", "too long"))
    made = describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(other)), out=tmp_path / "d")
    assert (made.rows, made.manifest.rejected) == (10, {"refused": 1})


def test_half_a_letter_in_a_reply_is_written_as_a_question_mark(serve, pairs, corpus, tmp_path):
    server = serve(answer=lambda _: "A dog \ud83d here. It sits.")
    made = describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(server)), out=tmp_path / "d")
    assert {row["raw"] for row in made.table().to_pylist()} == {"A dog ? here. It sits."}


def test_a_budget_of_hours_ends_while_every_server_is_down(serve, pairs, corpus, tmp_path):
    server = serve(script=lambda *_: ("status", 503))
    with pytest.raises(BudgetSpentError, match="hours"):
        describe_pairs(
            pairs,
            corpus,
            config=DescribeConfig(endpoint=at(server, max_retries=1), budget=Budget(hours=2 / 3600)),
            out=tmp_path / "d",
        )
