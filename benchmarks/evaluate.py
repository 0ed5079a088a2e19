"""Speed of evaluation: scoring CIRCO's test split, MMEB's candidates, and how much of its time the model is at work.

    python benchmarks/evaluate.py --quick      under two minutes, three turns
    python benchmarks/evaluate.py              seven turns

CIRCO's size is 800 queries, 123,403 images, 512 dimensions. What counts as ours: opening the cached float16
embeddings, scores, best 50, ranks of the targets, mAP and recall. What it is held against: the same embeddings already
in memory in float32, one matrix product in blocks and torch.topk, which is no evaluation yet. Both run in turns in
this process. The model's share is measured on a gallery whose decoding takes 5 ms an image and whose model takes 50 ms
a batch, both asleep, so that it shows the waiting and nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.evaluation.benchmarks.mmeb import read_data_set
from megapairs_hf.evaluation.benchmarks.spec import read_spec
from megapairs_hf.evaluation.encode import encode_gallery
from megapairs_hf.evaluation.metrics import average_precisions, recall_at_k
from megapairs_hf.evaluation.rank import EmbeddingScorer, rank

QUERIES, GALLERY, DIMENSION, TOP = 800, 123_403, 512, 50
DECODE_S, FORWARD_S, BATCH = 0.005, 0.05, 128
MMEB_ROWS, MMEB_CANDIDATES, MMEB_SETS = 1000, 1000, 36


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random unit embeddings, as float16 as they are cached."""
    embeddings = rng.standard_normal(shape, dtype=np.float32)
    return (embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)).astype(np.float16)


def seconds(work, *arguments):
    start = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - start, result


def circo(folder: Path) -> Benchmark:
    """A benchmark of CIRCO's size, with four and a half targets a query, and its embeddings on disk."""
    rng = np.random.default_rng(0)
    gallery = unit(rng, GALLERY, DIMENSION)
    ids = [f"{n:012d}" for n in range(GALLERY)]
    queries, embeddings = [], np.empty((QUERIES, DIMENSION), np.float16)
    for n in range(QUERIES):
        targets = rng.choice(GALLERY, rng.integers(1, 9), replace=False)
        names = tuple(ids[t] for t in targets)
        queries.append(Query(str(n), Input("text", ids[n]), targets=names, target=names[0]))
        noisy = gallery[targets[0]].astype(np.float32) + 0.09 * rng.standard_normal(DIMENSION, dtype=np.float32)
        embeddings[n] = noisy / np.linalg.norm(noisy)
    np.save(folder / "gallery.npy", gallery)
    np.save(folder / "queries.npy", embeddings)
    return Benchmark("circo", "test", queries, {name: Input(image=name) for name in ids}, lambda _: None)


def ours(benchmark: Benchmark, folder: Path) -> dict[str, float]:
    """The numbers of CIRCO, from the files of its embeddings."""
    queries, gallery = (np.load(folder / f"{name}.npy") for name in ("queries", "gallery"))
    ranked = rank(benchmark, EmbeddingScorer(queries, gallery), TOP)
    values = {f"recall@{k}": recall_at_k(np.array(ranked.ranks), k) for k in (5, 10, 25, 50)}
    targets = np.array([len(query.targets) for query in benchmark.queries])
    for k in (5, 10, 25, 50):
        values[f"map@{k}"] = float(np.mean(average_precisions(ranked.hits, targets, k)))
    return values


def bare(queries, gallery, block: int = 64):
    """A matrix product and the best 50, nothing else."""
    import torch

    return [torch.topk(queries[i : i + block] @ gallery.T, TOP) for i in range(0, len(queries), block)]


def time_circo(turns: int) -> None:
    import torch

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        benchmark = circo(folder)
        queries = torch.from_numpy(np.load(folder / "queries.npy").astype(np.float32))
        gallery = torch.from_numpy(np.load(folder / "gallery.npy").astype(np.float32))
        mine, theirs, values = [], [], {}
        for turn in range(turns + 1):
            spent, values = seconds(ours, benchmark, folder)
            bare_spent, nearest = seconds(bare, queries, gallery)
            # the first turn reads the files and warms the threads
            if turn:
                mine.append(spent)
                theirs.append(bare_spent)
        best = {int(i) for part in nearest for i in part.indices[:, 0]}
        assert len(best) > QUERIES // 2
        size = f"{QUERIES} x {GALLERY:,} x {DIMENSION}: ours {statistics.median(mine):.2f} s"
        values_text = f"mAP@5 {values['map@5']:.3f}, R@5 {values['recall@5']:.3f}"
        print(f"{size}, bare {statistics.median(theirs):.2f} s; {values_text}")
        over = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
        print(f"ratio evaluate_circo_vs_bare {over:.2f}")
        print(f"ratio evaluate_circo_seconds {statistics.median(mine):.2f}")


def time_mmeb(sets: int) -> None:
    """36 data sets of 1,000 queries with 1,000 candidates each; every distinct candidate is encoded once."""
    rng = np.random.default_rng(1)
    spent, encoded, distinct, named = 0.0, 0, 0, 0
    for _ in range(sets):
        pool = int(rng.choice([1000, 5000, 20_000]))
        drawn = [rng.choice(pool, MMEB_CANDIDATES, replace=False) for _ in range(MMEB_ROWS)]
        rows = [
            {
                "qry_text": f"query {n}",
                "qry_img_path": "",
                "tgt_text": [f"candidate {c}" for c in some],
                "tgt_img_path": [""] * len(some),
            }
            for n, some in enumerate(drawn)
        ]
        start = time.perf_counter()
        benchmark = read_data_set("VOC2007", read_spec("mmeb"), "nowhere", rows)
        gallery = unit(rng, len(benchmark.gallery), 64)
        encoded += len(gallery)
        rank(benchmark, EmbeddingScorer(unit(rng, MMEB_ROWS, 64), gallery), 10)
        spent += time.perf_counter() - start
        distinct += len(np.unique(np.concatenate(drawn)))
        named += MMEB_ROWS * MMEB_CANDIDATES
    assert encoded == distinct, f"{encoded:,} candidates were encoded, but {distinct:,} are distinct"
    print(f"MMEB: {sets * MMEB_ROWS:,} queries name {named:,} candidates, {encoded:,} encoded, {spent:.1f} s")


class SleepingModel:
    """A model that takes 50 ms a batch, and counts them."""

    spent = 0.0

    def encode(self, inputs, **_):
        start = time.perf_counter()
        time.sleep(FORWARD_S)
        self.spent += time.perf_counter() - start
        return np.ones((len(inputs), 8), np.float32)


def time_gallery(batches: int) -> None:
    """The part of an encoding's time in which the model works, where decoding is slow."""

    def image(name: str) -> str:
        time.sleep(DECODE_S)
        return name

    count = batches * BATCH
    benchmark = Benchmark("circo", "test", [], {str(n): Input(image=str(n)) for n in range(count)}, image)
    model = SleepingModel()
    spent, _ = seconds(encode_gallery, model, benchmark, BATCH)
    print(f"gallery: {count:,} images in {spent:.1f} s, of which the model works {model.spent:.1f} s")
    print(f"ratio evaluate_model_busy {model.spent / spent:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three turns, and four data sets of MMEB")
    arguments = parser.parse_args()
    time_circo(3 if arguments.quick else 7)
    time_mmeb(4 if arguments.quick else MMEB_SETS)
    time_gallery(30 if arguments.quick else 120)


if __name__ == "__main__":
    main()
