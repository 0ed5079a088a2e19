"""Copies of an image under another name among the images of a triplet, found by what they show.

A hard negative that is the target again teaches a model that its answer is wrong. What surprises: a corpus of ours has
no exact duplicates, so of that nothing is read; of images of one's own the hash of their pixels counts where they have
one (`CheckImages`), else the bytes of their files.
"""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING

import numpy as np

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import read_table
from megapairs_hf.artifacts.captioned import CaptionedCorpus
from megapairs_hf.artifacts.replace import PARTS
from megapairs_hf.artifacts.storage import join
from megapairs_hf.artifacts.virtual import DatasetArtifact
from megapairs_hf.core.errors import ImageRejectedError
from megapairs_hf.core.schema import IMAGE, IMAGE_ID
from megapairs_hf.images.locate import image_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.writer import ArtifactWriter

PIXELS = "pixels_sha256"
BATCH = 50


def without_copies(names: Iterable[str], others: Iterable[str], contents: Mapping[str, int]) -> list[str]:
    """Those of the names that hold another image than all before them and than the others.

    Args:
        names: of images.
        others: of images.
        contents: what an image holds, by its name; one that is not in it is like no other.
    """
    known = {contents[name] for name in others if name in contents}
    left = []
    for name in names:
        content = contents.get(name)
        if content is None or content not in known:
            left.append(name)
        if content is not None:
            known.add(content)
    return left


def short(digest: str) -> int:
    """The first 64 bits of a hash in hex, so that those of millions of images can be in memory."""
    return int(digest[:16], 16)


def copies_in(corpus: Artifact) -> dict[str, int]:
    """What those images hold that the corpus has more than once, by id."""
    rows = corpus.corpus if isinstance(corpus, CaptionedCorpus) else corpus
    if not isinstance(rows, DatasetArtifact):
        return {}
    contents: dict[str, int] = {}
    for index in range(len(rows.manifest.shards)):
        for batch in rows.iter_batches(index, [IMAGE_ID, PIXELS, IMAGE], BATCH):
            for row in batch.to_pylist():
                try:
                    digest = row[PIXELS] or hashlib.sha256(image_bytes(row[IMAGE], None)).hexdigest()
                except (ImageRejectedError, OSError):
                    continue
                contents[row[IMAGE_ID]] = short(digest)
    _, counts = np.unique(np.fromiter(contents.values(), np.uint64, len(contents)), return_inverse=True)
    several = np.bincount(counts) > 1 if len(counts) else np.empty(0, bool)
    return {name: content for (name, content), i in zip(contents.items(), counts, strict=True) if several[i]}


def write_contents(writer: ArtifactWriter, index: int, digests: Sequence[str]) -> None:
    """Keep what the images of a shard hold until the artifact is complete, in the order of its rows."""
    sink = io.BytesIO()
    np.save(sink, np.array([short(digest) for digest in digests], np.uint64), allow_pickle=False)
    storage.write_bytes(_file(writer, index), sink.getvalue())


def read_contents(writer: ArtifactWriter, indices: Iterable[int]) -> dict[str, int]:
    """What the images of finished shards hold, by id."""
    contents: dict[str, int] = {}
    for index in indices:
        names = read_table(join(writer.path, writer.names[index]), [IMAGE_ID])[IMAGE_ID].to_pylist()
        numbers = np.load(io.BytesIO(storage.read_bytes(_file(writer, index))), allow_pickle=False)
        contents.update(zip(names, numbers.tolist(), strict=True))
    return contents


def _file(writer: ArtifactWriter, index: int) -> str:
    return join(writer.path, PARTS, f"{index:05d}.pixels.npy")
