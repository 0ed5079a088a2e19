"""Small parquet files and tars to break."""

import gzip
import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from megapairs_hf.core.schema import IMAGE_TYPE


def image_file(number, form="PNG", side=20):
    """An image's file, of a color of its own."""
    sink = io.BytesIO()
    Image.new("RGB", (side, side), (number % 251, number // 251 % 251, number // 63_001)).save(sink, form)
    return sink.getvalue()


def write_tar(path, members, zipped=False):
    """A tar of (name, bytes, text or JSON)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, value in members:
            content = value if isinstance(value, bytes) else as_text(value).encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    path.write_bytes(gzip.compress(sink.getvalue()) if zipped else sink.getvalue())
    return path


def as_text(value):
    return value if isinstance(value, str) else json.dumps(value)


def samples(numbers, form="PNG", suffix="png"):
    """Members of samples with an image and a text each."""
    return [
        member
        for i in numbers
        for member in ((f"{i:04d}.{suffix}", image_file(i, form)), (f"{i:04d}.txt", f"caption {i}"))
    ]


def write_parquet(path, numbers, group_rows=4, **columns):
    """A parquet file with images and captions; further columns by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {
        "image": pa.array([{"bytes": image_file(i), "path": None} for i in numbers], IMAGE_TYPE),
        "caption": [f"caption {i}" for i in numbers],
    }
    pq.write_table(pa.table(rows | columns), path, row_group_size=group_rows)
    return path


def used(corpus):
    """Captions of the rows, and (key, reason) of the rejections."""
    rows = corpus.table(["caption"])["caption"].to_pylist()
    return rows, [(row["key"], row["reason"]) for row in corpus.rejected().to_pylist()]
