import json
from dataclasses import replace

import numpy as np
import pytest

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.evaluation import submission_check
from megapairs_hf.evaluation.benchmarks.load import read_benchmark
from megapairs_hf.evaluation.benchmarks.spec import read_spec
from megapairs_hf.evaluation.rank import EmbeddingScorer, rank
from megapairs_hf.evaluation.submission_check import Known, check_submission, problems
from megapairs_hf.evaluation.submissions import write_submissions
from tests.evaluation.benchmarks import make_circo, make_cirr, shared_annotations

REAL = shared_annotations()


@pytest.fixture
def small_servers(monkeypatch):
    """Servers that take as many queries as the drawn copies have."""
    monkeypatch.setitem(submission_check.CIRCO_QUERIES, "test", 6)
    monkeypatch.setattr(submission_check, "CIRR_QUERIES", 4)


def ranked_at_random(benchmark):
    rng = np.random.default_rng(0)
    queries, gallery = len(benchmark.queries), len(benchmark.gallery)
    return rank(benchmark, EmbeddingScorer(rng.standard_normal((queries, 8)), rng.standard_normal((gallery, 8))))


def circo_file(queries=800):
    return {str(i): [i + j for j in range(50)] for i in range(queries)}


def test_circo_s_file_is_what_the_server_describes(tmp_path, small_servers):
    [test] = read_benchmark(read_spec("circo", {"split": "test"}), make_circo(tmp_path, split="test"))
    ranked = ranked_at_random(test)
    [path] = write_submissions(test, ranked, tmp_path / "out")
    written = json.loads((tmp_path / "out/circo_test.json").read_text())
    assert list(written) == [str(i) for i in range(6)]
    assert all(len(ids) == 50 and all(isinstance(i, int) for i in ids) for ids in written.values())
    assert written["3"] == [int(name) for name in ranked.tops[3]]
    assert check_submission(path, Known.of(test)) == ("CIRCO", [])


def test_annotations_that_were_cut_short_make_no_shorter_file_right(tmp_path):
    [test] = read_benchmark(read_spec("circo", {"split": "test"}), make_circo(tmp_path, split="test"))
    with pytest.raises(EvaluationError, match=r"794 of 800 queries are absent \(6, 7, 8, …\)"):
        write_submissions(test, ranked_at_random(test), tmp_path / "out")
    data = make_cirr(tmp_path / "c", gallery=60, split="test1")
    [test] = read_benchmark(read_spec("cirr", {"split": "test1"}), data)
    with pytest.raises(EvaluationError, match="it has 4 queries, and test1 has 4,148"):
        write_submissions(test, ranked_at_random(test), tmp_path / "out")


def test_cirr_s_two_files_have_no_reference_and_the_best_three_of_the_subset(tmp_path, small_servers):
    data = make_cirr(tmp_path, gallery=60, split="test1")
    [test] = read_benchmark(read_spec("cirr", {"split": "test1"}), data)
    ranked = ranked_at_random(test)
    paths = write_submissions(test, ranked, tmp_path / "out")
    recall, subset = (
        json.loads((tmp_path / f"out/cirr_test1_{m}.json").read_text()) for m in ("recall", "recall_subset")
    )
    assert [(f["version"], f["metric"]) for f in (recall, subset)] == [("rc2", "recall"), ("rc2", "recall_subset")]
    for query, top in zip(test.queries, ranked.tops, strict=True):
        assert recall[query.key] == top[:50]
        assert query.input.image not in recall[query.key] + subset[query.key]
        assert subset[query.key] == [name for name in top if name in query.subset][:3] or len(top) < 59
        assert set(subset[query.key]) <= set(query.subset)
    assert all(check_submission(path, Known.of(test))[1] == [] for path in paths)


@pytest.mark.skipif(REAL is None, reason="the real annotations of CIRR are not here")
def test_the_real_cirr_files_are_small_enough_and_pass_without_the_annotations_too(tmp_path):
    spec = read_spec("cirr", {"split": "test1"})
    [test] = read_benchmark(spec, REAL / "cirr", check=False)
    for path in write_submissions(test, ranked_at_random(test), tmp_path):
        assert check_submission(path) == check_submission(path, Known.of(test))
        assert check_submission(path)[1] == []


def test_a_reference_that_was_kept_is_found_before_anything_is_written(tmp_path, small_servers):
    data = make_cirr(tmp_path, gallery=60, split="test1")
    [test] = read_benchmark(read_spec("cirr", {"split": "test1", "remove_reference": False}), data)
    ranked = ranked_at_random(test)
    tops = [[query.input.image, *top][:50] for query, top in zip(test.queries, ranked.tops, strict=True)]
    with pytest.raises(EvaluationError, match="4 queries have their own reference in the list"):
        write_submissions(test, replace(ranked, tops=tops), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_split_with_public_answers_has_no_server(tmp_path):
    [val] = read_benchmark(read_spec("circo"), make_circo(tmp_path))
    with pytest.raises(EvaluationError, match="no server"):
        write_submissions(val, ranked_at_random(val), tmp_path)


def changed(**entries):
    return circo_file() | entries


CIRCO_FAULTS = {
    "a key is absent": ({k: v for k, v in circo_file().items() if k != "799"}, "1 of 800 queries are absent (799)"),
    "a foreign key": (changed(metric_="x"), "1 keys are no queries (metric_)"),
    "a repeated id": (changed(**{"5": [7] * 50}), "1 queries have ids twice (5)"),
    "too few": (changed(**{"5": [1, 2]}), "1 queries have not 50 ids (5: 2)"),
    "strings": (changed(**{"5": [str(i) for i in range(50)]}), "1 queries have ids that are no integers (5)"),
    "NaN": (changed(**{"5": [float("nan"), *range(49)]}), "1 queries have ids that are no integers (5)"),
    "no list": (changed(**{"5": 7}), "1 queries have no list (5)"),
    "val": (circo_file(220), "the 220 queries of val"),
    "a list": ([1, 2], "is a list"),
}


@pytest.mark.parametrize("name", CIRCO_FAULTS)
def test_each_fault_of_a_circo_file_is_explained(name):
    content, said = CIRCO_FAULTS[name]
    assert said in "; ".join(problems(json.dumps(content).encode()))


@pytest.mark.parametrize("content", ['{"version":"rc2","metric":["recall"],"1":["a"]}', "[" * 100_000, "null", "3"])
def test_no_file_is_too_broken_to_be_explained(tmp_path, content):
    (tmp_path / "s.json").write_text(content)
    kind, wrong = check_submission(tmp_path / "s.json")
    assert kind
    assert wrong


def test_a_good_circo_file_has_none_and_a_broken_one_says_why():
    good = json.dumps(circo_file()).encode()
    assert problems(good) == []
    assert "cut off" in problems(good[:-9])[0]
    assert problems(good[:-1] + b', "7": []}')[0].startswith("1 keys stand twice (7)")
    assert "bytes" in problems(json.dumps(circo_file(), indent=90).encode())[0]


def cirr_file(metric="recall", count=50):
    return {"version": "rc2", "metric": metric} | {
        str(i): [f"test1-{i + j}-0-img0" for j in range(count)] for i in range(4148)
    }


CIRR_FAULTS = {
    "version": (cirr_file() | {"version": "rc1"}, "\"version\" is 'rc1'"),
    "metric": (cirr_file() | {"metric": "recal"}, "\"metric\" is 'recal'"),
    "three": (cirr_file("recall_subset") | {}, "4,148 queries have not 3 names (0: 50, 1: 50, 2: 50, …)"),
    "fewer": ({k: v for k, v in cirr_file().items() if k != "17"}, "it has 4,147 queries, and test1 has 4,148"),
    "numbers": (cirr_file() | {"17": list(range(50))}, "1 queries have names that are no strings (17)"),
    "twice": (cirr_file() | {"17": ["test1-1-0-img0"] * 50}, "1 queries have names twice (17)"),
    "no pair": (cirr_file() | {"pair": []}, "1 keys are no pair ids (pair)"),
}


@pytest.mark.parametrize("name", CIRR_FAULTS)
def test_each_fault_of_a_cirr_file_is_explained(name):
    content, said = CIRR_FAULTS[name]
    assert said in "; ".join(problems(json.dumps(content).encode()))


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(EvaluationError, match="check the path"):
        check_submission(tmp_path / "none.json")


def without(loaded, *names):
    return {key: value for key, value in loaded.items() if key not in names}


WHOSE = {
    "CIRR without version": (without(cirr_file(), "version"), "CIRR recall", ['"version" is None']),
    "CIRR without metric": (without(cirr_file(), "metric"), "CIRR recall", ['"metric" is None']),
    "CIRR without both": (without(cirr_file(), "version", "metric"), "CIRR recall", ['"version" is', '"metric" is']),
    "subset without both": (
        without(cirr_file("recall_subset", 3), "version", "metric"),
        "CIRR recall_subset",
        ['"version" is', '"metric" is'],
    ),
    "CIRR's header on CIRCO's ids": (circo_file() | {"version": "rc2", "metric": "recall"}, "CIRCO", ["no queries"]),
    "pairs without lists": (
        {str(i): None for i in range(12060, 16208)},
        "CIRR recall",
        ['"version" is', '"metric" is', "have no list"],
    ),
    "queries without lists": (dict.fromkeys(circo_file()), "CIRCO", ["have no list"]),
    "CIRCO's ids in quotes": (
        {k: [str(i) for i in v] for k, v in circo_file().items()},
        "CIRCO",
        ["ids that are no integers"],
    ),
    "CIRCO's files": (
        {k: [f"{i:012d}.jpg" for i in v] for k, v in circo_file().items()},
        "CIRCO",
        ["the suffix .jpg (0, 1, 2, …); write 123", "ids that are no integers"],
    ),
    "CIRR's files": (
        {k: v if isinstance(v, str) else [f"{name}.PNG"[-20:] for name in v] for k, v in cirr_file().items()},
        "CIRR recall",
        ["the suffix .PNG (0, 1, 2, …)"],
    ),
}


@pytest.mark.parametrize("name", WHOSE)
def test_whose_file_it_is_is_told_by_what_it_holds(tmp_path, name):
    content, kind, said = WHOSE[name]
    (tmp_path / "s.json").write_text(json.dumps(content, separators=(",", ":")))
    described, faults = check_submission(tmp_path / "s.json")
    assert described == kind
    # each of these is named, and nothing that follows from it
    assert len(faults) == len(said)
    for fault in said:
        assert any(fault in one for one in faults), faults


@pytest.mark.parametrize(("encoding", "said"), [("utf-8-sig", "a byte order mark"), ("utf-16", "the mark of UTF-16")])
@pytest.mark.parametrize("content", [circo_file(), cirr_file()], ids=["circo", "cirr"])
def test_a_byte_order_mark_is_named(content, encoding, said):
    [fault] = [one for one in problems(json.dumps(content).encode(encoding)) if "bytes, and the server" not in one]
    assert said in fault


@pytest.mark.parametrize("content", [circo_file(), cirr_file(), cirr_file("recall_subset", 3)])
def test_order_and_white_space_are_no_fault(content):
    turned = dict(reversed(content.items()))
    assert problems(("\n" + json.dumps(turned, separators=(", ", " : ")) + "\r\n\n").encode()) == []
