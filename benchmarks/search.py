"""Search in an index against bare faiss and over HTTP, updating it against making it anew, and its memory.

A folder of small images is written and indexed with a stand-in for the model, which costs nothing; so what is measured
is reading, hashing, decoding, storing and searching: 100,000 images × 512, or `--images 1000000 --dimension 256`.
Ends with the ratios

    search_vs_faiss     median time of `SearchIndex.query` ÷ that of faiss' exact search of float32, in turns
    search_p95_vs_faiss the same of the 95th percentiles
    search_update       time of `update` after 1 % of the files changed ÷ that of making the index anew
    search_page_vs_query queries per second of the page's own route, four visitors at once, ÷ those of
                        `SearchIndex.query` called by four threads of the same process; median of rounds in turns
    search_memory       growth of a process over `open` and 100 queries ÷ bytes of the stored index
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.search import SearchConfig, SearchIndex
from megapairs_hf.search.generation import read_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VISITORS = 4
K = 10
# bare faiss compares all embeddings too
EXACT = SearchConfig(exact_up_to=10**9)


class StandIn:
    """A model without weights: an image and a text become an embedding that their bytes decide."""

    def __init__(self, dimension: int) -> None:
        self.projection = np.random.default_rng(0).standard_normal((192, dimension), np.float32)

    def encode(self, inputs: list[Any], batch_size: int = 32, show_progress_bar: bool = False) -> np.ndarray:
        rows = np.stack([self._numbers(value) for value in inputs])
        embeddings = (rows - 127.5) @ self.projection
        return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)

    def _numbers(self, value: Any) -> np.ndarray:
        if isinstance(value, str):
            return np.random.default_rng(list(value.encode())).integers(0, 256, 192).astype(np.float32)
        return np.asarray(value.resize((8, 8)), np.float32).reshape(-1)


def open_index(folder: str | Path) -> SearchIndex:
    """An index, with the stand-in that it was built with."""
    index = SearchIndex.open(folder)
    return SearchIndex.open(folder, model=StandIn(index.record.dimension))


def write_images(folder: Path, count: int, seed: int = 0) -> list[Path]:
    """Images of 64 pixels of noise in coarse squares, 1,000 to a folder."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    paths = []
    for i in range(count):
        path = folder / f"{i // 1000:04d}" / f"{i:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((64, 64), 0).save(path, compress_level=1)
        paths.append(path)
    return paths


def against_faiss(index: SearchIndex, rounds: int) -> tuple[float, float]:
    """Times of our query ÷ faiss' own, median and 95th percentile; each query once by each, in turns."""
    import faiss

    bare = faiss.IndexFlatIP(index.record.dimension)
    for low in range(0, len(index), 65_536):
        bare.add(index.rows.embeddings(range(low, min(len(index), low + 65_536))))
    model, ours, theirs = index.model, [], []
    for n in range(rounds + 5):
        text = f"query {n}"
        embedding = model.encode([text])
        start = time.perf_counter()
        bare.search(embedding, K)
        middle = time.perf_counter()
        index.query(text=text, k=K)
        end = time.perf_counter()
        if n >= 5:  # the first ones warm up
            ours.append(end - middle)
            theirs.append(middle - start)
    milliseconds = [1000 * float(np.percentile(times, q)) for times in (ours, theirs) for q in (50, 95)]
    print("query {:.2f} ms, p95 {:.2f}; faiss {:.2f} ms, p95 {:.2f}".format(*milliseconds))
    return milliseconds[0] / milliseconds[2], milliseconds[1] / milliseconds[3]


def against_rebuild(images: Path, paths: list[Path], folder: Path) -> float:
    """Time of an update after one file in a hundred changed ÷ that of making the index anew."""
    index = open_index(folder)
    changed = paths[::100]
    fresh = write_images(folder.parent / "changed", len(changed), seed=1)
    for old, new in zip(changed, fresh, strict=True):
        new.replace(old)
    start = time.perf_counter()
    changes = index.update()
    middle = time.perf_counter()
    assert len(changes.changed) == len(changed), changes
    SearchIndex.build(index.model, images, folder.with_name("anew"), config=EXACT)
    end = time.perf_counter()
    print(f"update {middle - start:.2f} s, anew {end - middle:.2f} s")
    return (middle - start) / (end - middle)


def over_http(folder: Path, queries: int = 400, rounds: int = 5) -> float:
    """Queries per second over HTTP ÷ those of direct calls in the process that serves."""
    script = "import sys; sys.path.append(sys.argv[2]); import benchmarks.search as b; b.serve_routes(sys.argv[1])"
    here = str(Path(__file__).resolve().parents[1])
    with subprocess.Popen(
        [sys.executable, "-c", script, str(folder), here], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        port = int(server.stdout.readline())
        ratios = []
        for _ in range(rounds + 1):
            print(queries, file=server.stdin, flush=True)
            direct = float(server.stdout.readline())
            served = rate(lambda: _client(port), queries)
            ratios.append(served / direct)
        server.stdin.close()
    print(f"page {served:.0f} queries/s, direct {direct:.0f}")
    return float(np.median(ratios[1:]))  # the first round warms up


def rate(client: Callable[[], contextlib.AbstractContextManager[Callable[[str], object]]], queries: int) -> float:
    """Queries per second of four threads, each with a client of its own."""

    def run(visitor: int) -> None:
        with client() as ask:
            for n in range(visitor, queries, VISITORS):
                ask(f"query {n}")

    start = time.perf_counter()
    with ThreadPoolExecutor(VISITORS) as pool:
        list(pool.map(run, range(VISITORS)))
    return queries / (time.perf_counter() - start)


@contextlib.contextmanager
def _client(port: int) -> Iterator[Callable[[str], object]]:
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def ask(text: str) -> object:
        connection.request("GET", f"/api/search?k={K}&text={text.replace(' ', '+')}")
        response = connection.getresponse()
        assert response.status == 200
        return json.loads(response.read())

    yield ask
    connection.close()


def serve_routes(folder: str) -> None:
    """Serve the page's own routes, print the port, and for each line of input how fast direct calls are."""
    import uvicorn

    from megapairs_hf.search.page.app import routes
    from megapairs_hf.search.page.config import PageConfig
    from megapairs_hf.search.page.guard import guarded
    from megapairs_hf.search.page.served import ServedIndex

    served, config = ServedIndex(open_index(folder), ""), PageConfig()
    listener = socket.create_server(("127.0.0.1", 0))
    app = uvicorn.Server(uvicorn.Config(guarded(routes([served], config), config), log_level="warning"))
    threading.Thread(target=app.run, kwargs={"sockets": [listener]}, daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    for line in sys.stdin:
        direct = contextlib.nullcontext(lambda text: served.index.query(text=text, k=K))
        print(rate(lambda: direct, int(line)), flush=True)  # noqa: B023 - called at once


def memory(folder: Path) -> float:
    """Growth of a process over `open` and 100 queries ÷ bytes of the index."""
    script = "import sys, faiss; sys.path.append(sys.argv[2]); from benchmarks.search import grow; grow(sys.argv[1])"
    here = str(Path(__file__).resolve().parents[1])
    result = subprocess.run(
        [sys.executable, "-c", script, str(folder), here], capture_output=True, text=True, check=True
    )
    facts = json.loads(result.stdout.splitlines()[-1])
    stored = sum(path.stat().st_size for path in folder.iterdir())
    print(f"process grew by {facts['grown'] / 1e6:.0f} MB; the index has {stored / 1e6:.0f} MB")
    return float(facts["grown"] / stored)


def grow(folder: str) -> None:
    """Open an index, query it, and print by how many bytes the process grew."""
    model = StandIn(read_record(Path(folder)).dimension)
    # libraries that a first query imports are no part of the index
    from megapairs_hf.search import nearest, query  # noqa: F401

    before = resident()
    index = SearchIndex.open(folder, model=model)
    for n in range(100):
        index.query(text=f"query {n}", k=K)
    print(json.dumps({"grown": resident() - before}))


def resident() -> int:
    """Bytes of memory of this process."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="20,000 images")
    options = parser.parse_args()
    count = 20_000 if options.quick else options.images
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        paths = write_images(root / "images", count)
        index = SearchIndex.build(StandIn(options.dimension), root / "images", root / "index", config=EXACT)
        median, p95 = against_faiss(index, options.rounds)
        grown = memory(root / "index")
        page = over_http(root / "index")
        update = against_rebuild(root / "images", paths, root / "index")
    for name, value in (
        ("vs_faiss", median),
        ("p95_vs_faiss", p95),
        ("page_vs_query", page),
        ("update", update),
        ("memory", grown),
    ):
        print(f"ratio search_{name} {value:.3f}")


if __name__ == "__main__":
    main()
