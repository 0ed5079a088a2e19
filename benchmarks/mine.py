"""Speed and memory of mining: exact and approximate search against the machine, faiss and Sentence Transformers.

    python benchmarks/mine.py --quick          two minutes, small corpora
    python benchmarks/mine.py                  the figures of docs/performance.md (about forty minutes on 2 cores)
    python benchmarks/mine.py --plot out.png   also draw cost against N

Everything that is compared runs in this one process, one after the other and in turns where it is short; results are
checked to be equal before their times are divided.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from megapairs_hf.mining.knn.calibration import overlap
from megapairs_hf.mining.knn.embeddings import Embeddings
from megapairs_hf.mining.knn.exact import ExactSearch
from megapairs_hf.mining.knn.ivf import IVFSearch
from megapairs_hf.mining.knn.thread_pool import default_threads, workers

RATIOS: dict[str, float] = {}


def random_embeddings(count: int, dimension: int, centers: int = 0, width: float = 0.7) -> np.ndarray:
    """Unit embeddings in every direction, or around so many centers."""
    rng = np.random.default_rng(0)
    middle = rng.standard_normal((centers, dimension), dtype=np.float32) if centers else None
    result = np.empty((count, dimension), np.float16)
    for low in range(0, count, 50_000):
        high = min(count, low + 50_000)
        part = rng.standard_normal((high - low, dimension), dtype=np.float32)
        if middle is not None:
            part = middle[rng.integers(0, centers, high - low)] + np.float32(width) * part
        result[low:high] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return result


def seconds(work, *arguments):
    start = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - start, result


def matmul_rate() -> float:
    """The best of torch's and numpy's float32 products on all threads, in operations a second."""
    import torch

    left, right = torch.randn(4096, 512), torch.randn(8192, 512)
    flop = 2 * 4096 * 8192 * 512
    best = 0.0
    for _ in range(3):
        best = max(best, flop / seconds(lambda: left @ right.T)[0])
        best = max(best, flop / seconds(lambda: left.numpy() @ right.numpy().T)[0])
    return best


def warm(crew) -> None:
    """Compile the kernels, which happens once on a machine."""
    embeddings = random_embeddings(3000, 64)
    for integers in (True, False):
        ExactSearch(Embeddings([embeddings]), 10, crew, integers=integers).search(embeddings, np.arange(3000))
        ExactSearch(Embeddings([embeddings]), 10, crew, integers=integers).search(embeddings[:100])
    IVFSearch(Embeddings([embeddings]), 10, crew, recall=0.9).search(embeddings, np.arange(3000))


def faiss_search(embeddings: np.ndarray, k: int):
    import faiss

    faiss.omp_set_num_threads(default_threads())
    index = faiss.IndexFlatIP(embeddings.shape[1])
    floats = embeddings.astype(np.float32)
    index.add(floats)
    return seconds(index.search, floats, k)


def exact(count: int, dimension: int, k: int, st_queries: int) -> None:
    """Exact search of a corpus against itself."""
    import torch
    from sentence_transformers.util import semantic_search

    print(f"exact search: N = {count:,}, D = {dimension}, K = {k}, {default_threads()} threads")
    embeddings = random_embeddings(count, dimension)
    flop = 2.0 * count * count * dimension
    rates, ours, ours_float, theirs = [], [], [], []
    for _ in range(2):
        rates.append(matmul_rate())
        with workers() as crew:
            spent, (indices, scores) = seconds(search_all, embeddings, k, crew, None)
            ours.append(spent)
            ours_float.append(seconds(search_all, embeddings, k, crew, False)[0])
        if not theirs or count <= 20_000:
            spent, (faiss_scores, faiss_indices) = faiss_search(embeddings, k)
            theirs.append(spent)
    rates.append(matmul_rate())
    rate, spent = float(np.median(rates)), min(ours)
    print(f"  float32 matmul           {rate / 1e9:8.1f} GFLOP/s")
    print(f"  this search              {spent:8.2f} s   {flop / spent / 1e9:8.1f} GFLOP/s if every product were made")
    print(f"  this search in float32   {min(ours_float):8.2f} s   {flop / min(ours_float) / 1e9:8.1f} GFLOP/s")
    print(f"  faiss IndexFlatIP        {min(theirs):8.2f} s   {flop / min(theirs) / 1e9:8.1f} GFLOP/s")
    check_equal(indices, scores, faiss_indices, faiss_scores)
    floats = torch.from_numpy(embeddings.astype(np.float32))
    st_spent, _ = seconds(lambda: semantic_search(floats[:st_queries], floats, top_k=k))
    st_spent *= count / st_queries
    print(f"  semantic_search          {st_spent:8.2f} s   (measured on {st_queries:,} queries)")
    RATIOS["mine_exact_vs_matmul"] = flop / spent / rate
    RATIOS["mine_exact_vs_faiss"] = min(theirs) / spent
    RATIOS["mine_exact_float32_vs_faiss"] = min(theirs) / min(ours_float)
    RATIOS["mine_exact_vs_st"] = st_spent / spent


def search_all(embeddings: np.ndarray, k: int, crew, integers: bool | None):
    search = ExactSearch(Embeddings([embeddings]), k, crew, integers=integers)
    return search.search(embeddings, np.arange(len(embeddings)))


def check_equal(indices, scores, other_indices, other_scores) -> None:
    """The same neighbors, but for float32's rounding: a differing id must have a score that differs by rounding."""
    assert np.abs(scores - other_scores).max() < 1e-5
    differing = np.sort(indices, 1) != np.sort(other_indices, 1)
    print(
        f"  identical sets of ids in {1 - differing.any(1).mean():.4%} of rows; the others differ by rounding of faiss"
    )


def approximate(count: int, dimension: int, k: int, exact_queries: int) -> None:
    """Cells against exact search, everything included."""
    print(f"approximate search: N = {count:,}, D = {dimension}, K = {k}, clustered")
    embeddings = random_embeddings(count, dimension, count // 200)
    with workers() as crew:
        start = time.perf_counter()
        search = IVFSearch(Embeddings([embeddings]), k, crew, recall=0.95)
        built = time.perf_counter() - start
        indices, _ = search.search(embeddings, np.arange(count))
        spent = time.perf_counter() - start
        if exact_queries >= count:
            exact_spent, (expected, _) = seconds(search_all, embeddings, k, crew, None)
            how = "measured"
        else:
            wide = ExactSearch(Embeddings([embeddings]), k, crew)
            exact_spent, (expected, _) = seconds(wide.search, embeddings[:exact_queries])
            # a corpus against itself multiplies half
            exact_spent *= count / exact_queries / 2
            how = f"from {exact_queries:,} queries"
    recall = overlap(indices[: len(expected)], expected)
    print(f"  nlist {search.nlist:,}, nprobe {search.nprobe}; measured by itself: recall {search.recall:.4f}")
    print(f"  training and adding      {built:8.2f} s")
    print(f"  all together             {spent:8.2f} s")
    print(f"  exact                    {exact_spent:8.2f} s   ({how})")
    RATIOS["mine_approx_speedup"] = exact_spent / spent
    RATIOS["mine_approx_recall"] = recall


CHILD = r"""
import re, sys
from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.mining import MineConfig, mine_pairs
work, search, memory = sys.argv[1], sys.argv[2], float(sys.argv[3])
config = MineConfig(neighbors=50, similarity_range=(0.3, 0.97), search=search, memory_gb=memory)
found, corpus = {"v": open_artifact(work + "/v")}, open_artifact(work + "/corpus")
pairs = mine_pairs(found, corpus, config=config, out=work + "/out")
peak = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) * 1024
print(peak, pairs.manifest.stats["search"]["v"], pairs.rows)
"""


def memory(cases: list[tuple[int, int, str, float]]) -> None:
    """The whole stage in a child process, by its peak resident memory."""
    from tests.clustered import made_corpus, made_embeddings

    print("memory of the whole mine stage")
    worst = 0.0
    for count, dimension, search, gigabytes in cases:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            corpus = made_corpus(work / "corpus", count, 10_000)
            made_embeddings(work / "v", corpus, random_embeddings(count, dimension, count // 200))
            command = [sys.executable, "-c", CHILD, folder, search, str(gigabytes)]
            spent, done = seconds(
                lambda report=command: subprocess.run(report, check=True, capture_output=True, text=True)
            )
            peak = int(done.stdout.split()[0])
            report = done.stdout.split(maxsplit=1)[1].strip()
        worst = max(worst, peak / gigabytes / 1e9)
        print(f"  N = {count:,}, D = {dimension}: peak {peak / 1e9:.2f} GB of {gigabytes} GB, {spent:.0f} s, {report}")
    RATIOS["mine_memory_vs_budget"] = worst


def integrity(count: int, dimension: int) -> None:
    """The share of the whole stage that goes into comparing its input files with their manifests, once each."""
    from unittest.mock import patch

    from megapairs_hf.artifacts import integrity as compared
    from megapairs_hf.artifacts.artifact import open_artifact
    from megapairs_hf.mining import MineConfig, mine_pairs
    from tests.clustered import made_corpus, made_embeddings

    hashed: list[float] = []
    sha256_of = compared.sha256_of

    def timed(path: str) -> str:
        spent, digest = seconds(sha256_of, path)
        hashed.append(spent)
        return str(digest)

    with tempfile.TemporaryDirectory() as folder, patch.object(compared, "sha256_of", timed):
        work = Path(folder)
        corpus = made_corpus(work / "corpus", count, 10_000)
        made_embeddings(work / "v", corpus, random_embeddings(count, dimension, count // 200))
        config = MineConfig(neighbors=50, similarity_range=(0.3, 0.97), search="exact")
        artifacts = {"v": open_artifact(work / "v")}
        spent, _ = seconds(lambda: mine_pairs(artifacts, corpus, config=config, out=work / "out"))
    print(f"integrity: N = {count:,}, D = {dimension}: {len(hashed)} files in {sum(hashed):.3f} of {spent:.1f} s")
    RATIOS["integrity_share"] = sum(hashed) / spent


def curve(sizes: list[int], exact_limit: int, path: str | None) -> None:
    """Seconds against N."""
    dimension, k = 256, 50
    rate = matmul_rate()
    print(f"cost against N: D = {dimension}, K = {k}")
    rows = []
    for count in sizes:
        embeddings = random_embeddings(count, dimension, max(1, count // 200))
        with workers() as crew:
            spent = [seconds(search_all, embeddings, k, crew, None)[0] if count <= exact_limit else np.nan]
            start = time.perf_counter()
            IVFSearch(Embeddings([embeddings]), k, crew, recall=0.95).search(embeddings, np.arange(count))
            spent.append(time.perf_counter() - start)
        ideal = 2.0 * count * count * dimension / rate
        rows.append((count, ideal, *spent))
        print(f"  N = {count:>9,}  ideal float32 {ideal:8.1f} s   exact {spent[0]:8.1f} s   cells {spent[1]:8.1f} s")
    if path:
        draw(np.array(rows), path)


def draw(rows: np.ndarray, path: str) -> None:
    """The plot of docs/scale.md."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    axes.loglog(rows[:, 0], rows[:, 1], "--", color="grey", label="ideal: 2N²D at the float32 matmul rate")
    axes.loglog(rows[:, 0], rows[:, 2], "o-", color="#1f5fa8", label="exact")
    axes.loglog(rows[:, 0], rows[:, 3], "s-", color="#c25a1a", label="cells (ivf), recall ≥ 0.95")
    axes.set(xlabel="N, embeddings searched against themselves", ylabel="seconds on 2 cores", title="D = 256, K = 50")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small corpora, two minutes")
    parser.add_argument("--only", choices=["exact", "approximate", "memory", "integrity", "curve"], help="one part")
    parser.add_argument("--plot", metavar="FILE", help="draw cost against N")
    options = parser.parse_args()
    with workers() as crew:
        warm(crew)
    parts = {
        "exact": lambda: exact(20_000 if options.quick else 100_000, 512, 100, 1000 if options.quick else 5000),
        "approximate": lambda: approximate(
            200_000 if options.quick else 1_000_000, 256, 50, 5000 if options.quick else 1_000_000
        ),
        "memory": lambda: memory(
            [(100_000, 256, "exact", 1.2)]
            if options.quick
            else [(200_000, 256, "exact", 1.2), (1_000_000, 256, "ivf", 2.0), (300_000, 256, "ivf_pq", 1.2)]
        ),
        "integrity": lambda: integrity(30_000 if options.quick else 200_000, 256),
        "curve": lambda: curve(
            [10_000, 30_000] if options.quick else [10_000, 30_000, 100_000, 300_000, 1_000_000],
            30_000 if options.quick else 300_000,
            options.plot,
        ),
    }
    for name, work in parts.items():
        if options.only in {None, name}:
            work()
    for name, value in RATIOS.items():
        print(f"ratio {name} {value:.4f}")


if __name__ == "__main__":
    main()
