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
from datasets import Dataset

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from megapairs_hf.annotation import Endpoint, InstructConfig, instruct_pairs  # noqa: E402
from megapairs_hf.annotation.instruct import Instruct  # noqa: E402
from megapairs_hf.annotation.prompts.few_shot import load_examples, sample_examples  # noqa: E402
from megapairs_hf.annotation.prompts.templates import format_instruct, instruct_prompt  # noqa: E402
from megapairs_hf.artifacts.artifact import open_artifact  # noqa: E402
from megapairs_hf.artifacts.shards import shard_names  # noqa: E402
from megapairs_hf.artifacts.writer import create_artifact  # noqa: E402
from megapairs_hf.core.schema import CAPTION, DESCRIPTIONS, IMAGE_ID  # noqa: E402

LATENCY_S, CAPACITY = 0.1, 64
DESCRIPTION = "Both show a dog in a garden. In the target image the dog is wet and jumps through a sprinkler. " * 4
ASIDE = 0.3


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
    config = InstructConfig(response_format="list", endpoint=endpoint)
    descriptions, corpus = open_artifact(folder / "descriptions"), open_artifact(folder / "corpus")
    instruct_pairs(descriptions, corpus, config=config, out=folder / out)


def messages(count: int) -> list[list[dict[str, object]]]:
    """The messages that the step sends."""
    examples, prompt = load_examples(None, 5), instruct_prompt()
    samples = (sample_examples(examples, 5, seed) for seed in range(count))
    return [format_instruct(prompt, DESCRIPTION, sample, count=5, response_format="list") for sample in samples]


async def bare_loop(url: str, count: int) -> float:
    """Requests per second of 64 coroutines that post and read JSON."""
    import httpx2

    prompts = messages(min(count, 500))
    numbers = iter(range(count))
    limits = httpx2.Limits(max_connections=CAPACITY, max_keepalive_connections=CAPACITY)
    async with httpx2.AsyncClient(timeout=30, limits=limits) as client:

        async def work() -> None:
            for n in numbers:
                body = {"messages": prompts[n % len(prompts)], "model": "m", "seed": n, "max_tokens": 400}
                response = await client.post(f"{url}/chat/completions", json=body)
                assert response.json()["choices"][0]["message"]["content"]

        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(CAPACITY)))
        return count / (time.perf_counter() - start)


def sent_by(out: Path) -> int:
    """Requests behind a finished artifact: a second one for every pair whose first response was no use."""
    from benchmarks.annotate_server import response_to
    from megapairs_hf.annotation.config import pair_seed

    rows = open_artifact(out.parent / "descriptions").table(["query_id", "target_id"]).to_pylist()
    second = sum(response_to(pair_seed(0, row["query_id"], row["target_id"]))[1] == "stop" and
                 pair_seed(0, row["query_id"], row["target_id"]) % 97 == 0 for row in rows)  # fmt: skip
    return len(rows) + second


def speed(folder: Path, requests: int) -> tuple[float, float, float]:
    """(bare, ours) requests per second, and our CPU milliseconds per request."""
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


def map_speed(folder: Path, requests: int) -> tuple[float, float]:
    """(stage, map) pairs per second: the same function by the stage and in `datasets.map`, without its cache."""
    make_inputs(folder, requests, max(1, requests // 5))
    rows = open_artifact(folder / "descriptions").table(Instruct.NEEDS).to_pylist()
    with Server() as server:
        start = time.perf_counter()
        annotate(folder, "out", server.url)
        stage = requests / (time.perf_counter() - start)
        function = Instruct(urls=[server.url], journal=folder / "journal")
        dataset = Dataset.from_list(rows)
        start = time.perf_counter()
        dataset.map(function, batched=True, batch_size=1000)
        mapped = requests / (time.perf_counter() - start)
        function.close()
    print(f"stage {stage:.0f} pairs/s, datasets.map in batches of 1,000 {mapped:.0f} pairs/s", flush=True)
    return stage, mapped


def digests(path: Path) -> dict[str, str]:
    """sha256 of every file of an artifact."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(path.iterdir()) if p.is_file()}


def child(folder: Path, out: str, url: str) -> subprocess.Popen[bytes]:
    """The step in a process that can be killed."""
    command = [sys.executable, __file__, "--child", str(folder), out, url]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL)


def durable(folder: Path, out: str) -> set[str]:
    """The keys of the responses in the journal of an unfinished artifact."""
    from megapairs_hf.annotation.engines.journal_index import complete_lines

    files = (folder / out / ".parts" / "journal").glob("*.jsonl")
    return {json.loads(line)["key"] for file in files for _, line in complete_lines(file)}


def seeds_by_key(folder: Path) -> dict[str, int]:
    """The seed of each request about some descriptions, by its key."""
    function = Instruct(config=InstructConfig(response_format="list"))
    table = open_artifact(folder / "descriptions").table(function.NEEDS)
    task = function.make_task(table)
    requests = [task.request(row, attempt) for row in table.to_pylist() for attempt in (0, 1)]
    return {request.key: request.parameters["seed"] for request in requests}


def chaos(folder: Path, pairs: int) -> tuple[int, int]:
    """(lost, doubled) with 30 % of requests failing and three `kill -9`; a different artifact counts as all lost."""
    make_inputs(folder, pairs, max(1, pairs // 3))
    seeds = seeds_by_key(folder)
    with Server(0.02) as server:
        annotate(folder, "calm", server.url)
    log = folder / "responses.log"
    durable_counts: list[Counter[int]] = []
    doubled = 0
    with Server(0.05, ASIDE, str(log)) as server:
        for part in (0.25, 0.5, 0.75):
            process = child(folder, "chaos", server.url)
            while process.poll() is None and len(durable(folder, "chaos")) < part * pairs:
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
            time.sleep(0.3)  # what was under way reaches the log
            durable_seeds = {seeds[key] for key in durable(folder, "chaos")}
            durable_counts.append(Counter({s: Counter(log.read_text().split())[str(s)] for s in durable_seeds}))
        assert child(folder, "chaos", server.url).wait() == 0
        after = Counter(log.read_text().split())
        # a response that was durable when the process was killed must never have been sent again
        doubled = sum(after[str(seed)] > times for seen in durable_counts for seed, times in seen.items())
    chaotic, calm = open_artifact(folder / "chaos"), open_artifact(folder / "calm")
    keys = [tuple(row.values()) for row in chaotic.table(["query_id", "target_id"]).to_pylist()]
    doubled += len(keys) - len(set(keys))
    lost = pairs - chaotic.rows - sum(chaotic.manifest.rejected.values())
    same = digests(Path(chaotic.path)) == digests(Path(calm.path))
    left_out = sum(chaotic.manifest.rejected.values())
    print(f"chaos: {chaotic.rows} annotated + {left_out} rejected of {pairs}; {sum(after.values())} responses")
    print(f"chaos: the artifact {'equals' if same else 'DIFFERS from'} the faultless run's")
    return (lost if same else pairs), doubled


def overload(share: float) -> float:
    """Responses of a server that refuses such a share of the requests, over those of one that refuses none.

    On a simulated clock: 24 places, so that a limit that falls at each refusal shows.
    """
    from tests.annotation.simulated import throughput

    return throughput(share) / throughput(0.0)


def memory(folder: Path, pairs: int) -> list[float]:
    """Resident MiB of a run at the end of each tenth of the pairs."""
    make_inputs(folder, pairs, 5000)
    with Server(0.005) as server:
        process = child(folder, "memory", server.url)
        sizes: list[float] = []
        while process.poll() is None:
            done = len(list((folder / "memory" / ".parts").glob("*.json"))) * 5000
            if done >= pairs * (len(sizes) + 1) / 10:
                status = Path(f"/proc/{process.pid}/status").read_text()
                sizes.append(int(status.split("VmRSS:")[1].split()[0]) / 1024)
            time.sleep(0.2)
    return sizes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under two minutes; memory is not measured")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        annotate(
            Path(options.child[0]), options.child[1], options.child[2], timeout_s=2.0, backoff_s=0.05, max_retries=20
        )
        return
    folder = Path(tempfile.mkdtemp(prefix="megapairs-annotate-"))
    try:
        bare, ours, cpu = speed(folder / "speed", 5000)
        print(f"ratio annotate_vs_bare_loop {ours / bare:.3f}")
        print(f"ratio annotate_cpu_ms {cpu:.3f}", flush=True)
        stage, mapped = map_speed(folder / "map", 5000)
        print(f"ratio map_annotate_vs_stage {mapped / stage:.3f}", flush=True)
        lost, doubled = chaos(folder / "chaos", 600 if options.quick else 3000)
        print(f"ratio annotate_chaos_lost {lost}\nratio annotate_chaos_doubled {doubled}", flush=True)
        print(
            f"ratio annotate_overload_1 {overload(0.01):.3f}\nratio annotate_overload_5 {overload(0.05):.3f}",
            flush=True,
        )
        if not options.quick:
            sizes = memory(folder / "memory", 100_000)
            print("resident MiB after each tenth of 100,000 pairs:", json.dumps([round(m) for m in sizes]))
        print(f"peak of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
