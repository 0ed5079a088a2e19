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
