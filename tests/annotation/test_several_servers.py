"""Two loopback servers, one of them well, the other with each fault, through describe, instruct and verify."""

import json

import pytest

from megapairs_hf.annotation import (
    DescribeConfig,
    InstructConfig,
    VerifyConfig,
    describe_pairs,
    instruct_pairs,
    verify_pairs,
)
from megapairs_hf.annotation.client.transport import retry_after
from megapairs_hf.core.errors import ServerUnavailableError

from .double import instruct
from .test_client import ask, plain
from .test_stage import at, digests
from .test_verify import instructed, mined, nearer  # noqa: F401 - fixtures

LONG = "word " * 10_000
FAULTS = {
    "401": ("status", 401),
    "402": ("status", 402),
    "403": ("status", 403),
    "404": ("status", 404),
    "405": ("status", 405),
    "400": ("refuse", "no images here"),
    "429, wait an hour": ("status", 429, {"Retry_After": "3600"}),
    "429, wait 1e400 s": ("status", 429, {"Retry_After": "1e400"}),
    "429, wait -5 s": ("status", 429, {"Retry_After": "-5"}),
    "429, wait nan": ("status", 429, {"Retry_After": "nan"}),
    "429, wait soon": ("status", 429, {"Retry_After": "soon"}),
    "429, wait until 1999": ("status", 429, {"Retry_After": "Fri, 31 Dec 1999 23:59:59 GMT"}),
    "429, wait until 2199": ("status", 429, {"Retry_After": "Tue, 31 Dec 2199 23:59:59 GMT"}),
    "500": ("status", 500),
    "503": ("status", 503),
    "reset": ("reset",),
    "truncated": ("truncated",),
    "html": ("html",),
    "no choice": ("empty",),
    "a text far beyond max_tokens": ("reply", LONG),
}


@pytest.fixture
def calm(serve, pairs, corpus, tmp_path):
    """The artifact of one server that is well."""
    return describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(serve())), out=tmp_path / "calm")


def beside(well, bad):
    return {"urls": (bad.url, well.url), "concurrency": 4, "max_backoff_s": 0.05}


AFTER_A_SUCCESS = ["401", "403", "404", "429, wait an hour", "503"]


@pytest.mark.parametrize(
    ("name", "when"), [(name, "at first") for name in FAULTS] + [(name, "later") for name in AFTER_A_SUCCESS]
)
def test_describe_loses_and_doubles_nothing(serve, pairs, corpus, calm, tmp_path, name, when):
    good = [0] if when == "at first" else [1]

    def script(body, _):
        good[0] -= 1
        return None if good[0] >= 0 else FAULTS[name]

    bad, well = serve(script=script), serve()
    made = describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(bad, **beside(well, bad))),
                          out=tmp_path / "d")  # fmt: skip
    assert digests(made.path) == digests(calm.path)
    assert len(well.answered + bad.answered) == 11
    assert (well.answered + bad.answered).total() == 11


@pytest.mark.parametrize("name", ["403", "404", "429, wait an hour", "429, wait 1e400 s", "400", "503"])
def test_instruct_and_verify_lose_and_double_nothing(
    serve, calm, instructed, mined, corpus, tmp_path, name  # noqa: F811
):  # fmt: skip
    def servers(answer):
        bad, well = serve(answer=answer, script=lambda *_: FAULTS[name]), serve(answer=answer)
        return well, at(bad, **beside(well, bad))

    well, endpoint = servers(instruct)
    made = instruct_pairs(calm, corpus, config=InstructConfig(endpoint=endpoint), out=tmp_path / "in")
    assert (made.rows, set(well.answered.values())) == (11, {1})
    well, endpoint = servers(nearer)
    held = verify_pairs(instructed, mined, corpus, config=VerifyConfig(endpoint=endpoint), out=tmp_path / "v")
    assert (held.rows, held.manifest.rejected) == (instructed.rows, {})
    assert (well.answered.total(), set(well.answered.values())) == (7 * 3 * 3, {1})


def test_verify_at_thirty_percent_sends_each_request_until_it_is_served(serve, instructed, mined, corpus, tmp_path):  # noqa: F811
    kinds = [("status", 429), ("status", 503), ("status", 500), ("reset",), ("html",), ("empty",)]

    def faults_of(seed):
        # of ten requests seven are served at once, two the second time, one the fifth
        return [0, 0, 0, 1, 0, 0, 0, 1, 0, 4][seed % 10]

    def script(body, n):
        return kinds[(body["seed"] + n) % len(kinds)] if n <= faults_of(body["seed"]) else None

    server = serve(answer=nearer, script=script)
    held = verify_pairs(instructed, mined, corpus, config=VerifyConfig(endpoint=at(server)), out=tmp_path / "v")
    assert (held.rows, held.manifest.rejected) == (instructed.rows, {})
    asked = {question: 1 + faults_of(json.loads(question)["seed"]) for question in server.asked}
    assert (len(asked), dict(server.asked)) == (7 * 3 * 3, asked)
    assert set(server.answered.values()) == {1}
    assert server.own.total() <= server.asked.total() / 10  # canaries


def test_nobody_listens_at_one_of_two_addresses(serve):
    gone, well = serve(), serve(answer=plain)
    gone.stop()
    replies = ask(well, 20, urls=(gone.url, well.url))
    assert [reply.text for reply in replies] == [f"reply {n}" for n in range(20)]
    with pytest.raises(ServerUnavailableError, match=f"nothing answers at {gone.url}"):
        ask(gone)


def test_a_text_far_beyond_max_tokens_is_asked_for_again(serve):
    """Five tokens are no 50,000 characters; 1,000 more than 32 for each token are let through."""
    server = serve(answer=plain, script=lambda _, n: ("reply", "x" * 1161) if n == 1 else None)
    assert ask(server)[0].text == "reply 0"
    server = serve(answer=plain, script=lambda _, n: ("reply", "x" * 1160) if n == 1 else None)
    assert ask(server)[0].text == "x" * 1160


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("1e400", None), ("-1e400", None), ("nan", None), ("-5", 0.0), ("0", 0.0), ("1e9", 1e9), ("9" * 5000, None),
     ("Fri, 99 Foo 2025", None), ("\x00", None), (", ,", None)],
)  # fmt: skip
def test_how_long_a_server_asks_to_wait(header, seconds):
    assert retry_after(header) == seconds
