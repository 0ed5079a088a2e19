"""Uploads that are cut, refused for a moment, killed, or done without an answer: the same command finishes, nothing
twice."""

import collections
import hashlib

import pytest

from tests.hub.children import megapairs, start_child
from tests.hub.loopback import Fault
from tests.making import make_work

REPO = ("dataset", "org/scenes")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_work(tmp_path_factory.mktemp("faults") / "work")


def push_words(work, *more):
    return ["push", "dataset", work / "triplets", "org/scenes", "--license", "cc0-1.0", *more]


def shards(work):
    return {hashlib.sha256(p.read_bytes()).hexdigest() for p in (work / "triplets").rglob("*-of-*.parquet")}


def test_a_cut_line_and_a_busy_hub_are_waited_out(hub, work, tmp_path):
    hub.faults = [
        Fault("POST", "/preupload/", "429", {"Retry-After": "1"}),
        Fault("PUT", "/objects/", "cut"),
    ]
    done = megapairs(hub, tmp_path, *push_words(work))
    assert done.returncode == 0, done.stderr
    assert hub.faults == [] and collections.Counter(hub.puts) == dict.fromkeys(shards(work), 1)
    assert len(hub.messages) == 1


def test_killed_in_an_upload_and_refused_at_the_commit_the_same_command_finishes(hub, work, tmp_path):
    hub.faults = [Fault("PUT", "/objects/", "hang")]
    child = start_child(hub, tmp_path / "home", "-m", "megapairs_hf", *push_words(work))
    while not hub.hung.wait(0.1):
        assert child.poll() is None
    child.kill()
    child.communicate()
    hub.go_on.set()
    hub.wait_until_alone()
    before = set(hub.puts)
    assert before < shards(work) and hub.messages == []
    hub.faults = [Fault("POST", "/commit/", "500")]
    done = megapairs(hub, tmp_path, *push_words(work))
    assert done.returncode == 1 and "run the same command again" in done.stderr and len(done.stderr.splitlines()) == 1
    done = megapairs(hub, tmp_path, *push_words(work))
    assert done.returncode == 0, done.stderr
    assert collections.Counter(hub.puts) == dict.fromkeys(shards(work), 1) and len(hub.messages) == 1
    done = megapairs(hub, tmp_path, *push_words(work))
    assert done.returncode == 0 and len(hub.messages) == 1


def test_a_pull_request_whose_answer_was_lost_is_continued_by_its_revision(hub, work, tmp_path):
    hub.private[REPO] = False
    hub.commit(REPO, "main", {"README.md": b"theirs", "mine.csv": b"1"})
    hub.faults = [Fault("POST", "/commit/", "lost")]
    assert megapairs(hub, tmp_path, *push_words(work, "--create-pr")).returncode == 1
    assert len(hub.requests) == 1
    done = megapairs(hub, tmp_path, *push_words(work, "--revision", "refs/pr/1"))
    assert done.returncode == 0, done.stderr
    assert len(hub.requests) == 1
    files = hub.commits[hub.heads[REPO]["refs/pr/1"]]
    assert "triplets/train-00000-of-00001.parquet" in files and files["mine.csv"] == b"1"


# every kind of request of a push, in order
CALLS = [
    ("GET", "/api/datasets/org/scenes$"),
    ("POST", "/repos/create"),
    ("GET", "/tree/"),
    ("POST", "/validate-yaml"),
    ("POST", "/preupload/"),
    ("POST", "/objects/batch"),
    ("PUT", "/objects/"),
    ("POST", "/commit/"),
]


@pytest.mark.parametrize("status", ["429", pytest.param("503", marks=pytest.mark.long)])
def test_a_hub_that_is_busy_at_every_call_is_waited_for(hub, work, tmp_path, status):
    hub.faults = [Fault(method, path, status, {"Retry-After": "1"}) for method, path in CALLS]
    done = megapairs(hub, tmp_path, *push_words(work))
    assert done.returncode == 0, done.stderr
    assert hub.faults == [] and collections.Counter(hub.puts) == dict.fromkeys(shards(work), 1)
    assert len(hub.messages) == 1 and f"busy (status {status})" in done.stderr


@pytest.mark.parametrize(
    ("header", "attempt", "wait_s"),
    [
        (None, 0, 1),
        (None, 3, 8),
        ("7", 0, 7),
        ("3600", 0, 60),
        ("1e400", 0, 60),
        ("-1", 2, 1),
        ("nan", 0, 1),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 1, 2),
    ],
)
def test_how_long_a_busy_hub_is_waited_for(header, attempt, wait_s):
    from megapairs_hf.hub.retries import _wait_s

    assert _wait_s(header, attempt) == wait_s


@pytest.mark.parametrize(("status", "calls"), [(503, 6), (429, 6), (500, 1), (403, 1), (504, 1)])
def test_a_hub_that_stays_busy_ends_the_call(monkeypatch, status, calls):
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    from megapairs_hf.hub import retries

    waits, count = [], []
    monkeypatch.setattr(retries.time, "sleep", waits.append)

    def refused():
        count.append(1)
        raise HfHubHTTPError("no", response=httpx.Response(status, request=httpx.Request("GET", "http://hub")))

    with pytest.raises(HfHubHTTPError):
        retries.patient(refused)
    assert len(count) == calls and waits == [1, 2, 4, 8, 16][: calls - 1]
