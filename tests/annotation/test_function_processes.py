"""The row functions killed, interrupted, in several processes, in a notebook; their pickles and fingerprints."""

import asyncio
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
import pytest
from datasets import Dataset
from datasets.fingerprint import Hasher

from megapairs_hf.annotation import Describe
from megapairs_hf.core.columns import add_columns

from .test_functions import QUICK

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


@pytest.fixture
def ctrl_c():
    """Python's own handler: a process that was started in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
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
