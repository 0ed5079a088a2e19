"""Speed of annotation against a local server of fixed latency, and what chaos costs: `python benchmarks/annotate.py`.

Everything is measured in one run on one machine, so the ratios mean something where the seconds do not. The bare loop
is 64 coroutines over the HTTP library that huggingface_hub uses, without a journal, a check or a retry.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from megapairs_hf.annotation import Endpoint, InstructConfig, instruct_pairs  # noqa: E402
from megapairs_hf.annotation.prompts.few_shot import draw_demonstrations, load_pool  # noqa: E402
from megapairs_hf.annotation.prompts.templates import format_instruct, instruct_prompt  # noqa: E402
from megapairs_hf.artifacts.artifact import open_artifact  # noqa: E402
from megapairs_hf.artifacts.shards import shard_names  # noqa: E402
from megapairs_hf.artifacts.writer import create_artifact  # noqa: E402
from megapairs_hf.core.schema import CAPTION, DESCRIPTIONS, IMAGE_ID  # noqa: E402

LATENCY_S, CAPACITY = 0.1, 64
DESCRIPTION = "Both show a dog in a garden. In the target image the dog is wet and jumps through a sprinkler. " * 4
ASIDE = 0.3
DISTILABEL = """
import sys, time, asyncio
from distilabel.models import OpenAILLM
url, texts = sys.argv[1], int(sys.argv[2])
llm = OpenAILLM(model="m", base_url=url, api_key="x", generation_kwargs={"max_new_tokens": 400, "temperature": 0.7})
llm.load()
inputs = [[{"role": "user", "content": sys.stdin.read()}]] * texts
llm.generate_outputs(inputs=inputs[:10])
start = time.perf_counter()
for at in range(0, texts, 64):
    llm.generate_outputs(inputs=inputs[at : at + 64])
print(texts / (time.perf_counter() - start))
"""


@dataclass(frozen=True)
class Plain:
    """Settings of made-up inputs."""

    about: str = "benchmark"


class Server:
    """The server of `annotate_server.py` in a process of its own."""

    def __init__(
        self, latency_s: float = LATENCY_S, fail: float = 0.0, log: str = "", capacity: int = CAPACITY
    ) -> None:
        command = [sys.executable, str(ROOT / "benchmarks" / "annotate_server.py")]
        self.process = subprocess.Popen(
            [*command, str(latency_s), str(capacity), str(fail), log], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}/v1"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def make_inputs(folder: Path, pairs: int, shard: int) -> None:
    """A corpus without images and the descriptions of so many pairs."""
    corpus = pa.schema([(IMAGE_ID, pa.string()), (CAPTION, pa.string())])
    with create_artifact(folder / "corpus", kind="corpus", config=Plain(), inputs={}, names=["c.parquet"]) as writer:
        writer.write(0, pa.Table.from_pylist([], schema=corpus))
        writer.finish()
    names = shard_names(-(-pairs // shard), "parquet")
    with create_artifact(
        folder / "descriptions", kind="descriptions", config=Plain(), inputs={}, names=names
    ) as writer:
        for index in writer.mine():
            numbers = range(index * shard, min(pairs, (index + 1) * shard))
            rows = [{"query_id": f"q{n}", "target_id": f"t{n}", "description": DESCRIPTION} for n in numbers]
            writer.write(index, pa.Table.from_pylist(rows, schema=DESCRIPTIONS))
        writer.finish()


def annotate(folder: Path, out: str, url: str, **settings: float) -> None:
    """The instruct step with the journal on."""
    endpoint = Endpoint(urls=(url,), **settings)  # type: ignore[arg-type]
    config = InstructConfig(reply_format="list", endpoint=endpoint)
    descriptions, corpus = open_artifact(folder / "descriptions"), open_artifact(folder / "corpus")
    instruct_pairs(descriptions, corpus, config=config, out=folder / out)


def messages(count: int) -> list[list[dict[str, object]]]:
    """The questions that the step asks."""
    pool, prompt = load_pool(None, 5), instruct_prompt()
    drawn = (draw_demonstrations(pool, 5, seed) for seed in range(count))
    return [format_instruct(prompt, DESCRIPTION, d, count=5, reply_format="list") for d in drawn]


async def bare_loop(url: str, count: int) -> float:
    """Requests a second of 64 coroutines that post and read JSON."""
    import httpx2

    asked = messages(min(count, 500))
    numbers = iter(range(count))
    limits = httpx2.Limits(max_connections=CAPACITY, max_keepalive_connections=CAPACITY)
    async with httpx2.AsyncClient(timeout=30, limits=limits) as client:

        async def work() -> None:
            for n in numbers:
                body = {"messages": asked[n % len(asked)], "model": "m", "seed": n, "max_tokens": 400}
                response = await client.post(f"{url}/chat/completions", json=body)
                assert response.json()["choices"][0]["message"]["content"]

        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(CAPACITY)))
        return count / (time.perf_counter() - start)


def sent_by(out: Path) -> int:
    """Requests behind a finished artifact: a second one for every pair whose first reply was no use."""
    from benchmarks.annotate_server import reply
    from megapairs_hf.annotation.config import pair_seed

    rows = open_artifact(out.parent / "descriptions").table(["query_id", "target_id"]).to_pylist()
    second = sum(reply(pair_seed(0, row["query_id"], row["target_id"]))[1] == "stop" and
                 pair_seed(0, row["query_id"], row["target_id"]) % 97 == 0 for row in rows)  # fmt: skip
    return len(rows) + second


def speed(folder: Path, requests: int) -> tuple[float, float, float]:
    """(bare, ours) requests a second, and our CPU milliseconds a request."""
    make_inputs(folder, requests, max(1, requests // 5))
    with Server() as server:
        # imports and the first compilation of prompts are in neither figure
        make_inputs(folder / "warm", 200, 100)
        annotate(folder / "warm", "out", server.url)
        asyncio.run(bare_loop(server.url, 200))
        bare = asyncio.run(bare_loop(server.url, requests))
        cpu, start = time.process_time(), time.perf_counter()
        annotate(folder, "out", server.url)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        again = asyncio.run(bare_loop(server.url, requests))
    sent = sent_by(folder / "out")
    print(f"bare loop {bare:.0f} and {again:.0f} requests/s, annotation {sent / seconds:.0f} requests/s", flush=True)
    # the bare loop runs before and after: the machine may have been busier at one of the two times
    return (bare + again) / 2, sent / seconds, 1000 * cpu / sent


def distilabel(python: str, requests: int) -> float | None:
    """Requests a second of distilabel's OpenAI client; None where it is not installed."""
    if not python:
        return None
    prompt = str(messages(1)[0][0]["content"])
    with Server() as server:
        done = subprocess.run(
            [python, "-c", DISTILABEL, server.url, str(requests)], check=False, capture_output=True, text=True,
            input=prompt, timeout=300,
        )  # fmt: skip
    if done.returncode:
        print(f"distilabel failed: {done.stderr.strip().splitlines()[-1:]}")
        return None
    return float(done.stdout.strip().splitlines()[-1])


def digests(path: Path) -> dict[str, str]:
    """sha256 of every file of an artifact."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(path.iterdir()) if p.is_file()}


def child(folder: Path, out: str, url: str) -> subprocess.Popen[bytes]:
    """The step in a process that can be killed."""
    command = [sys.executable, __file__, "--child", str(folder), out, url]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)


def durable(folder: Path, out: str) -> dict[tuple[str, str, int], None]:
    """The keys of the replies in the journal of an unfinished artifact."""
    import sqlite3

    path = folder / out / ".parts" / "journal-0.sqlite"
    try:
        base = sqlite3.connect(path)
        return dict.fromkeys(base.execute("SELECT query_id, target_id, attempt FROM replies"))
    except sqlite3.Error:
        return {}


def chaos(folder: Path, pairs: int) -> tuple[int, int]:
    """(lost, doubled) with 30 % of requests failing and three `kill -9`; a different artifact counts as all lost."""
    from megapairs_hf.annotation.config import pair_seed

    make_inputs(folder, pairs, max(1, pairs // 3))
    with Server(0.02) as server:
        annotate(folder, "calm", server.url)
    log = folder / "answers.log"
    kept: list[Counter[int]] = []
    doubled = 0
    with Server(0.05, ASIDE, str(log)) as server:
        for part in (0.25, 0.5, 0.75):
            process = child(folder, "chaos", server.url)
            while process.poll() is None and len(durable(folder, "chaos")) < part * pairs:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
            time.sleep(0.3)  # what was under way reaches the log
            durable_seeds = Counter(pair_seed(0, *key) for key in durable(folder, "chaos"))
            kept.append(Counter({s: Counter(log.read_text().split())[str(s)] for s in durable_seeds}))
        assert child(folder, "chaos", server.url).wait() == 0
        after = Counter(log.read_text().split())
        # an answer that was durable when the process was killed must never have been given again
        doubled = sum(after[str(seed)] > times for seen in kept for seed, times in seen.items())
    made, calm = open_artifact(folder / "chaos"), open_artifact(folder / "calm")
    keys = [tuple(row.values()) for row in made.table(["query_id", "target_id"]).to_pylist()]
    doubled += len(keys) - len(set(keys))
    lost = pairs - made.rows - sum(made.manifest.rejected.values())
    same = digests(Path(made.path)) == digests(Path(calm.path))
    left_out = sum(made.manifest.rejected.values())
    print(f"chaos: {made.rows} annotated + {left_out} rejected of {pairs}; {sum(after.values())} answers given")
    print(f"chaos: the artifact {'equals' if same else 'DIFFERS from'} the faultless run's")
    return (lost if same else pairs), doubled


def memory(folder: Path, pairs: int) -> list[float]:
    """Resident MiB of a run at the end of each tenth of the pairs."""
    make_inputs(folder, pairs, 5000)
    with Server(0.005) as server:
        process = child(folder, "memory", server.url)
        told: list[float] = []
        while process.poll() is None:
            done = len(list((folder / "memory" / ".parts").glob("*.json"))) * 5000
            if done >= pairs * (len(told) + 1) / 10:
                status = Path(f"/proc/{process.pid}/status").read_text()
                told.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
            time.sleep(0.2)
    return told


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under two minutes; memory is not measured")
    parser.add_argument("--distilabel", default="", metavar="PYTHON", help="the python of an environment that has it")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        annotate(Path(options.child[0]), options.child[1], options.child[2], timeout_s=2.0, backoff_s=0.05, retries=20)
        return
    folder = Path(tempfile.mkdtemp(prefix="megapairs-annotate-"))
    try:
        bare, ours, cpu = speed(folder / "speed", 5000)
        print(f"ratio annotate_vs_bare_loop {ours / bare:.3f}")
        print(f"ratio annotate_cpu_ms {cpu:.3f}", flush=True)
        theirs = distilabel(options.distilabel, 1000)
        if theirs:
            print(f"distilabel {theirs:.0f} requests/s\nratio annotate_vs_distilabel {ours / theirs:.3f}", flush=True)
        else:
            print("no ratio annotate_vs_distilabel: name a python that has distilabel with --distilabel", flush=True)
        lost, doubled = chaos(folder / "chaos", 600 if options.quick else 3000)
        print(f"ratio annotate_chaos_lost {lost}\nratio annotate_chaos_doubled {doubled}", flush=True)
        if not options.quick:
            told = memory(folder / "memory", 100_000)
            print("resident MiB after each tenth of 100,000 pairs:", json.dumps([round(m) for m in told]))
        print(f"peak of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
