"""Opening a large data set of triplets, and reading its rows in random order without decoding.

The data set is written, opened once (that makes the Arrow cache of `datasets` and the index of ids), and then opened
anew in a process of its own, which is what is measured. Ends with `ratio load_rows_per_s` (rows a second by their
ids, one at a time) and `ratio load_open_s` (seconds until the first row is there).
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.writer import ArtifactWriter, create_artifact
from megapairs_hf.core.schema import TRIPLETS, with_features
from megapairs_hf.dataset.config import BuildConfig
from megapairs_hf.dataset.layout import image_table

NEGATIVES = 5


def make_image(number: int) -> bytes:
    """A small PNG of one color."""
    from PIL import Image

    sink = io.BytesIO()
    Image.new("RGB", (16, 16), (number % 256, number // 256 % 256, 7)).save(sink, "PNG")
    return sink.getvalue()


def strings(values: np.ndarray) -> pa.Array:
    """Numbers as ids."""
    return pa.array(np.char.add("image-", values.astype(str)))


def make(folder: Path, rows: int, images: int) -> None:
    """Write `rows` triplets of `images` images."""
    rng = np.random.default_rng(0)
    size = 250_000
    starts = list(range(0, rows, size))
    names = [*shard_names(len(starts), "parquet", "triplets/train"), "images/train-00000-of-00001.parquet"]
    config = BuildConfig(preview=0)
    writer = create_artifact(folder, kind="triplets", config=config, inputs={}, names=names)
    assert isinstance(writer, ArtifactWriter)
    with writer:
        for i, start in enumerate(starts):
            count = min(size, rows - start)
            offsets = pa.array(np.arange(count + 1, dtype=np.int32))
            queries, targets = (strings(rng.integers(0, images, count)) for _ in range(2))
            negatives = strings(rng.integers(0, images, count * NEGATIVES))
            many = pa.array(np.arange(count + 1, dtype=np.int32) * NEGATIVES)
            texts = pa.array([f"instruction {n} of three or more words" for n in range(start, start + count)])
            scores = pa.StructArray.from_arrays(
                [pa.array(["clip_image"] * count), pa.array(rng.random(count, np.float32))], ["relation", "score"]
            )
            columns = [
                queries,
                pa.ListArray.from_arrays(offsets, texts),
                targets,
                pa.ListArray.from_arrays(many, negatives),
                pa.ListArray.from_arrays(offsets, pa.array(["clip_image"] * count)),
                pa.ListArray.from_arrays(offsets, scores),
                pa.array(["composed_image_retrieval"] * count),
                pa.array(["en"] * count),
                pa.array([[]] * count, pa.list_(pa.float32())),
            ]
            table = pa.table(columns, names=TRIPLETS.names).cast(TRIPLETS)
            writer.write(i, table.replace_schema_metadata(with_features(TRIPLETS).metadata))
        cells = [{"image_id": f"image-{n}", "image": {"bytes": make_image(n), "path": None}} for n in range(images)]
        writer.write(len(starts), image_table(cells))
        writer.finish()


def measure(folder: str, reads: int) -> dict[str, float]:
    """Open, and read rows one at a time and in batches."""
    import datasets  # noqa: F401  (importing is not what is measured)

    from megapairs_hf.dataset import load_triplets

    start = time.perf_counter()
    triplets = load_triplets(folder)
    triplets.ids(0)
    open_s = time.perf_counter() - start
    rows = np.random.default_rng(1).integers(0, len(triplets), reads).tolist()
    start = time.perf_counter()
    for row in rows:
        triplets.ids(row)
    single = reads / (time.perf_counter() - start)
    start = time.perf_counter()
    for i in range(0, reads, 100):
        triplets.ids(rows[i : i + 100])
    batched = reads / (time.perf_counter() - start)
    start = time.perf_counter()
    for row in rows[: reads // 100]:
        triplets[row]
    decoded = reads // 100 / (time.perf_counter() - start)
    return {"open_s": open_s, "rows_per_s": single, "batched_rows_per_s": batched, "decoded_rows_per_s": decoded}


def child(folder: str, reads: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", folder, "--reads", str(reads)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    results: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return results


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4,000 images and 10,000 reads")
    parser.add_argument("--rows", type=int, default=1_000_000, help="triplets (default: 1,000,000)")
    parser.add_argument("--reads", type=int, default=100_000, help="rows to read (default: 100,000)")
    parser.add_argument("--measure", metavar="DIR", help=argparse.SUPPRESS)
    options = parser.parse_args()
    reads = 10_000 if options.quick else options.reads
    if options.measure:
        print(json.dumps(measure(options.measure, options.reads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        import os

        os.environ["HF_DATASETS_CACHE"] = str(Path(folder) / "cache")
        start = time.perf_counter()
        make(Path(folder) / "triplets", options.rows, 4_000 if options.quick else 100_000)
        print(f"written in {time.perf_counter() - start:.1f} s")
        for name in ("first time", "again"):
            results = child(str(Path(folder) / "triplets"), reads)
            print(f"{name}: " + ", ".join(f"{key} {value:,.2f}" for key, value in results.items()))
    print(f"ratio load_rows_per_s {results['rows_per_s']:.0f}")
    print(f"ratio load_open_s {results['open_s']:.2f}")


if __name__ == "__main__":
    main()
