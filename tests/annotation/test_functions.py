"""The row functions in `datasets.map`: the stage's rows, whatever the batches, faults, interruptions and processes."""

import asyncio
import json
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, Image
from datasets.fingerprint import Hasher

from megapairs_hf.annotation import (
    Describe,
    DescribeConfig,
    Instruct,
    InstructConfig,
    Verify,
    VerifyConfig,
    describe_pairs,
    instruct_pairs,
    verify_pairs,
)
from megapairs_hf.annotation.describe import DescribeTask
from megapairs_hf.annotation.tasks import Outcome
from megapairs_hf.core.columns import add_columns, drop_errors
from megapairs_hf.core.errors import ArtifactError, BudgetSpentError, ConfigError, ServerUnavailableError
from megapairs_hf.core.schema import PAIRS

from .conftest import make_artifact, make_image
from .double import instruct
from .test_runner import FAULTS
from .test_stage import NEVER_S, RULES, at, rejected
from .test_verify import nearer

QUICK = {"backoff_s": 0.01, "concurrency": 4, "timeout_s": NEVER_S, "restart_s": NEVER_S}
COMMON = ("raw", "model", "finish_reason", "prompt_tokens", "completion_tokens")


@pytest.fixture
def images(corpus):
    return Dataset.from_list(corpus.table().to_pylist()).cast_column("image", Image())


@pytest.fixture
def rows(pairs):
    return Dataset.from_list(pairs.table(["query_id", "target_id"]).to_pylist())


def plain(artifact, names):
    return artifact.table(list(names)).to_pylist()


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_describe_by_map_gives_the_rows_of_the_stage(serve, pairs, corpus, images, rows, tmp_path, batch_size):
    stage = describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(serve())), out=tmp_path / "d")
    names = ["query_id", "target_id", "description", "word_num", *COMMON]
    for source in (images, corpus, corpus.path):
        server = serve()
        function = Describe(source, urls=[server.url], journal=tmp_path / server.url[-9:-3], **QUICK)
        added = add_columns(rows, function, batch_size=batch_size)
        assert added.select_columns(names).to_list() == plain(stage, names)
        assert set(added["error"]) == {""}
        assert set(server.asked.values()) == {1}
        function.close()


def test_instruct_and_verify_by_map_give_the_rows_of_the_stage(serve, corpus, images, tmp_path):
    rows = [
        {"query_id": f"i{n}", "target_id": f"i{n + 1}", "negative_ids": ["i11", "i9", "gone"][: n % 4]}
        for n in range(8)
    ]
    mined = make_artifact(tmp_path / "p", "pairs", PAIRS, [rows[:5], rows[5:]])
    described = describe_pairs(mined, corpus, config=DescribeConfig(**RULES), out=tmp_path / "d")
    refuses = described.table().to_pylist()[2]["description"]

    def answer(body):
        return "I will not." if refuses in json.dumps(body) else instruct(body)

    final = instruct_pairs(
        described, corpus, config=InstructConfig(endpoint=at(serve(answer=answer))), out=tmp_path / "i"
    )
    source = Dataset.from_list(mined.table(["query_id", "target_id", "negative_ids"]).to_pylist())
    source = add_columns(source, Describe(images, **RULES))
    assert source["description"][:] == described.table()["description"].to_pylist()
    source = add_columns(source, Instruct(urls=[serve(answer=answer).url], **QUICK), batch_size=3)
    assert source[2]["error"] == "too_few_instructions: I will not."
    assert source[2]["instructions"] == []
    assert rejected(final) == {"i2 -> i3": ("too_few_instructions", "I will not.")}
    good = drop_errors(source)
    names = ["query_id", "target_id", "instructions", "demonstration_ids", *COMMON]
    assert good.select_columns(names).to_list() == plain(final, names)
    judged = verify_pairs(
        final, mined, corpus, config=VerifyConfig(endpoint=at(serve(answer=nearer))), out=tmp_path / "v"
    )
    verified = add_columns(good, Verify(images, urls=[serve(answer=nearer).url], **QUICK), batch_size=2)
    for row, expected in zip(verified["verified"], judged.table()["verified"].to_pylist(), strict=True):
        np.testing.assert_array_equal(row, expected)
    assert any(np.isnan(row).all() for row in verified["verified"])


def test_the_stage_applies_the_inner_part_of_the_function(serve, pairs, corpus, rows, tmp_path, monkeypatch):
    evaluate = DescribeTask.evaluate

    def shout(self, row, attempt, response):
        outcome = evaluate(self, row, attempt, response)
        return Outcome({**outcome.row, "description": outcome.row["description"].upper()})

    monkeypatch.setattr(DescribeTask, "evaluate", shout)
    server = serve()
    stage = describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(server)), out=tmp_path / "d")
    mapped = add_columns(rows, Describe(corpus, urls=[server.url], **QUICK))
    assert mapped["description"][:] == stage.table()["description"].to_pylist()
    assert all(text.isupper() for text in mapped["description"])


def test_faults_lose_and_double_nothing_and_keep_the_order(serve, images, rows, tmp_path):
    calm = add_columns(rows, Describe(images, urls=[serve().url], journal=tmp_path / "a", **QUICK))
    bad = serve(script=lambda body, n: FAULTS[(body["seed"] + n) % len(FAULTS)] if n < 5 else None)
    patient = QUICK | {"timeout_s": 0.5, "max_retries": 1000, "max_backoff_s": 0.1}
    wild = add_columns(rows, Describe(images, urls=[bad.url], journal=tmp_path / "b", **patient), batch_size=5)
    assert wild.to_list() == calm.to_list()
    lines = [json.loads(line) for file in (tmp_path / "b").iterdir() for line in file.read_bytes().split(b"\n")[:-1]]
    assert len(lines) == len({line["key"] for line in lines}) == 11


CHILD = """
    import sys
    from datasets import Dataset
    from megapairs_hf.annotation.describe import Describe
    from megapairs_hf.core.columns import add_columns
    pairs, corpus, journal, url, out = sys.argv[1:]
    function = Describe(corpus, urls=[url], concurrency=2, timeout_s=600.0, journal=journal)
    add_columns(Dataset.from_json(pairs), function, batch_size=6, load_from_cache_file=False).to_json(out)
"""


def test_killed_at_two_thirds_at_most_what_was_under_way_is_asked_again(serve, corpus, rows, tmp_path):
    guard, let_through, enough = threading.Lock(), set(), 8

    def script(body, _):
        with guard:
            if len(let_through) >= enough:
                return ("hang",)
            let_through.add(body["seed"])
            return None

    server, journal = serve(script=script), tmp_path / "journal"
    rows.to_json(tmp_path / "pairs.jsonl")
    arguments = [tmp_path / "pairs.jsonl", corpus.path, journal, server.url, tmp_path / "out.jsonl"]
    command = [sys.executable, "-c", textwrap.dedent(CHILD), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HF_HOME": str(tmp_path / "home")}
    child = subprocess.Popen(command, env=environment)
    while sum(file.read_bytes().count(b"\n") for file in journal.glob("*.jsonl")) < enough:
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    enough = 100
    subprocess.run(command, env=environment, check=True)
    made = Dataset.from_json(str(tmp_path / "out.jsonl"))
    whole = add_columns(rows, Describe(corpus, urls=[serve().url], **QUICK))
    assert made["description"][:] == whole["description"][:]
    assert set(server.answered.values()) == {1}
    assert sum(server.asked.values()) <= 11 + 2


def test_a_server_that_is_gone_raises_once_and_the_answers_are_kept(serve, images, rows):
    server = serve(script=lambda *_: ("status", 503) if len(server.answered) >= 5 else None)
    dead = QUICK | {"max_retries": 1, "concurrency": 1, "restart_s": 0.5}
    function = Describe(images, urls=[server.url], **dead)
    with pytest.raises(ServerUnavailableError, match="responses so far are kept"):
        rows.map(function, batched=True)
    server.script = None
    assert len(rows.map(function, batched=True, load_from_cache_file=False)) == 11
    assert set(server.answered.values()) == {1}
    with pytest.raises(ServerUnavailableError, match="nothing answers"):
        Describe(images, urls=["http://127.0.0.1:9/v1"], seed=1).one(make_image(), make_image())


def test_ctrl_c_keeps_what_was_answered(serve, images, rows):
    def script(_, n):
        if len(server.answered) < 5:
            return None
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return ("hang",)

    server = serve(script=script)
    function = Describe(images, urls=[server.url], **QUICK | {"concurrency": 1})
    with pytest.raises(KeyboardInterrupt):
        rows.map(function, batched=True)
    server.script = None
    assert set(rows.map(function, batched=True, load_from_cache_file=False)["error"]) == {""}
    assert set(server.answered.values()) == {1}
    assert sum(server.asked.values()) <= 12


def test_a_budget_stops_and_a_larger_one_goes_on(serve, images, rows):
    server = serve()
    settings = {"urls": [server.url], **QUICK, "concurrency": 1}
    with pytest.raises(BudgetSpentError, match=r"`budget.requests` \(6\)"):
        rows.map(Describe(images, budget={"requests": 6}, **settings), batched=True)
    assert len(server.bodies) == 6
    assert set(rows.map(Describe(images, **settings), batched=True)["error"]) == {""}
    assert len(server.bodies) == 11


def test_inside_a_running_loop_and_streaming(serve, images, rows):
    server = serve()

    async def notebook():
        return rows.map(Describe(images, urls=[server.url], **QUICK), batched=True)

    mapped = asyncio.run(notebook())
    streamed = rows.to_iterable_dataset().map(Describe(images, urls=[server.url], **QUICK), batched=True, batch_size=4)
    assert [row["description"] for row in streamed] == mapped["description"][:]
    assert len(server.bodies) == 11


SPAWNED = """
    import multiprocess, sys
    from datasets import Dataset
    from megapairs_hf.annotation.describe import Describe
    if __name__ == "__main__":
        multiprocess.set_start_method("spawn")
        pairs, corpus, url, out = sys.argv[1:]
        function = Describe(corpus, urls=[url], concurrency=2, timeout_s=600.0)
        Dataset.from_json(pairs).map(function, batched=True, num_proc=2).to_json(out)
"""


def test_two_processes_by_spawn(serve, corpus, rows, tmp_path):
    server = serve()
    rows.to_json(tmp_path / "pairs.jsonl")
    script = tmp_path / "spawned.py"
    script.write_text(textwrap.dedent(SPAWNED))
    arguments = [script, tmp_path / "pairs.jsonl", corpus.path, server.url, tmp_path / "out.jsonl"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HF_HOME": str(tmp_path / "home")}
    subprocess.run([sys.executable, *map(str, arguments)], env=environment, check=True)
    whole = add_columns(rows, Describe(corpus, urls=[server.url], **QUICK))
    assert Dataset.from_json(str(tmp_path / "out.jsonl"))["description"][:] == whole["description"][:]
    (folder,) = (tmp_path / "home" / "datasets" / "megapairs-journal").iterdir()
    assert len(list(folder.iterdir())) == 2


def test_one_pair_and_one_text(serve, images):
    server = serve()
    describe = Describe(images, urls=[server.url], **QUICK)
    made = describe.one(make_image((200, 0, 0)), make_image((0, 0, 200)))
    assert "64x32 (200, 0, 0)" in made["description"] and made["error"] == ""
    assert describe.one(make_image((200, 0, 0)), make_image((0, 0, 200))) == made
    assert len(server.bodies) == 1
    by_id = describe.one(query_id="i0", target_id="i1")
    assert "64x32 (0, 0, 0)" in by_id["description"]
    text = serve(answer=instruct)
    assert len(Instruct(urls=[text.url], **QUICK).one("Both show a dog. The target dog is wet.")["instructions"]) == 3
    assert describe.one(make_image(), b"no image")["error"].startswith("unreadable_image: b")


def test_hints_are_checked_against_the_id(serve, images, rows, monkeypatch):
    server = serve()
    plain_rows = rows.map(Describe(images, urls=[server.url], **QUICK), batched=True)
    where = {name: row for row, name in enumerate(images["image_id"])}
    hinted = rows.add_column("query_row", [where[name] for name in rows["query_id"]])
    hinted = hinted.add_column("target_row", [where[name] for name in rows["target_id"]])
    shuffled = images.shuffle(seed=3)
    for source in (images, shuffled):
        described = hinted.map(Describe(source, urls=[server.url], **QUICK), batched=True)
        assert described["description"][:] == plain_rows["description"][:]
    monkeypatch.setattr("megapairs_hf.annotation.corpus_reader.IdIndex", None)
    hinted.map(Describe(images, urls=[server.url], **QUICK), batched=True, batch_size=3)


def test_a_row_with_an_error_is_passed_over_and_missing_images_are_errors(serve, images):
    server = serve()
    rows = Dataset.from_list(
        [{"query_id": "i0", "target_id": t, "error": e} for t, e in (("i1", ""), ("i2", "bad: x"), ("gone", ""))]
    )
    made = add_columns(rows, Describe(images, urls=[server.url], **QUICK))
    assert made["error"][:] == ["", "bad: x", "missing_image: gone is not in the corpus"]
    assert made["word_num"][1] == 0 and made["description"][1:] == ["", ""]
    assert len(server.bodies) == 1


def test_the_fingerprint_is_that_of_what_decides_the_result(serve, images, corpus, tmp_path):
    images.save_to_disk(tmp_path / "images")
    source = datasets.load_from_disk(str(tmp_path / "images"))
    server = serve()
    function = Describe(source, urls=[server.url])
    same = Hasher.hash(function)
    function.one(query_id="i0", target_id="i1")
    assert Hasher.hash(function) == same == Hasher.hash(Describe(source, urls=[server.url]))
    assert Hasher.hash(Describe(source, urls=[server.url], temperature=0.1)) != same
    assert Hasher.hash(Describe(source.shuffle(seed=1), urls=[server.url])) != same
    prompt = tmp_path / "p.jinja"
    hashes = set()
    for text in ("{{ query_image }} and {{ target_image }}", "{{ query_image }} or {{ target_image }}"):
        prompt.write_text(text)
        hashes.add(Hasher.hash(Describe(source, urls=[server.url], prompt=str(prompt))))
    assert len(hashes) == 2
    code = """
        from datasets.fingerprint import Hasher
        from megapairs_hf.annotation import Instruct
        print(Hasher.hash(Instruct(urls=["http://127.0.0.1:9/v1"])))
    """
    seen = set()
    for number in "12":
        environment = {**os.environ, "PYTHONHASHSEED": number, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", textwrap.dedent(code)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        seen.add(done.stdout)
    assert len(seen) == 1


def test_a_pickle_holds_no_key_and_no_connection(serve, images, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    function = Describe(images, urls=[serve(token="hf_secret").url], **QUICK)
    made = function.one(query_id="i0", target_id="i1")
    content = pickle.dumps(function)
    assert b"hf_secret" not in content
    assert pickle.loads(content).one(query_id="i0", target_id="i1") == made


def test_wrong_settings_and_columns_say_what_to_do(images, rows):
    with pytest.raises(ConfigError, match="Describe: unknown key 'temprature'; did you mean 'temperature'"):
        Describe(images, temprature=1.0)
    with pytest.raises(ConfigError, match="there is no column 'description'; columns: query_id, target_id"):
        Instruct()(rows[:2])
    with pytest.raises(ConfigError, match=r"Describe needs images here; name them: Describe\(images=…\)"):
        Describe(urls=["http://127.0.0.1:9/v1"])(rows[:2])
    with pytest.raises(ConfigError, match="the images have no column 'image'; columns: image_id, caption"):
        Describe(images.select_columns(["image_id", "caption"]))(rows[:2])
    with pytest.raises(ConfigError, match="writes from captions, and the images have none; make some with `Caption`"):
        Describe(images.remove_columns("caption"), **RULES)(rows[:2])
    with pytest.raises(ArtifactError, match="check the path"):
        Describe("/no/such/folder")
