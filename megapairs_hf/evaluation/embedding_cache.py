"""Embeddings kept by what they were made of: model, image bytes, text, transform. Another prompt encodes queries only.

Each list of parts is an `embeddings` artifact: float16 shards that several processes share, written whole or not at
all, continued after an interruption. What surprises: a hit still encodes four parts, because a name on the Hub can
hold another model tomorrow, and embeddings of two models in one ranking look like a result. A file of an image is read
again where its size or its time of change is another.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.arrow_arrays import embedding_table
from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.storage import join
from megapairs_hf.artifacts.writer import create_artifact
from megapairs_hf.core import distributed
from megapairs_hf.core.config import require
from megapairs_hf.core.errors import ArtifactError, EvaluationError
from megapairs_hf.core.schema import IMAGE_ID, SCHEMA_VERSION
from megapairs_hf.evaluation.benchmarks.files import ImageFolder
from megapairs_hf.evaluation.encode import encode_inputs
from megapairs_hf.images.decode import pixel_sha256

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from megapairs_hf.artifacts.writer import ArtifactWriter
    from megapairs_hf.core.inputs import Input
    from megapairs_hf.evaluation.benchmarks.base import Benchmark

# float16 and another batch size move a unit vector by less; another model by more
SAME = 0.999
# parts that are encoded again, from all over the list
CHECKED = 4
# in the folder of the cache
DIGESTS = "images.json"


@dataclass(frozen=True)
class CacheConfig:
    """What a vector depends on besides its model and its input.

    Attributes:
        transform: whatever is done to inputs before the model's own processing (a crop, a system prompt).
        rows: embeddings a shard; an interruption loses at most so many.
    """

    transform: str = ""
    rows: int = 4096

    def __post_init__(self) -> None:
        require(self.rows > 0, "rows", self.rows, "a positive number")


@dataclass(frozen=True)
class Cache:
    """A folder of embeddings of one model.

    Attributes:
        folder: where; several models may share it.
        model: anything with `encode`.
        fingerprint: of the model: `fingerprints.weights_fingerprint`, or a Hub id with its revision.
        config: the settings.
        batch_size: parts at a time.
    """

    folder: str
    model: Any
    fingerprint: str
    config: CacheConfig = CacheConfig()
    batch_size: int = 128

    def gallery(self, benchmark: Benchmark) -> np.ndarray:
        """Embeddings [G, D] float32 of a benchmark's gallery, in its order, on every process."""
        return self.embeddings(list(benchmark.gallery.values()), benchmark.image, benchmark.name)

    def embeddings(self, parts: Sequence[Input], image: Callable[[str], Any], label: str = "") -> np.ndarray:
        """Embeddings of parts; those that are equal in image bytes and text are encoded once.

        Args:
            parts: what to encode.
            image: gives the RGB image of an image id.
            label: of the progress bar.

        Returns:
            [N, D] float32, rounded to float16 as they are kept, so that the first run and the second give one number.

        Raises:
            EvaluationError: there is nothing to encode, or the model is not the one that filled the cache.
        """
        if not parts:
            raise EvaluationError("there is nothing to encode; check the queries and the image folder")
        digests = image_digests([part.image for part in parts if part.image is not None], image, self.folder)
        keys = [key_of(part, digests) for part in parts]
        distinct = dict(zip(reversed(keys), reversed(parts), strict=True))
        ordered = sorted(distinct)
        rows = {key: row for row, key in enumerate(ordered)}
        artifact = self._artifact([distinct[key] for key in ordered], ordered, image, label)
        stored = artifact.arrays().astype(np.float32)
        checked = sorted({row * (len(ordered) - 1) // (CHECKED - 1) for row in range(CHECKED)})
        self._same_model(stored[checked], [distinct[ordered[row]] for row in checked], image, artifact.path)
        return np.asarray(stored[[rows[key] for key in keys]])

    def _artifact(self, parts: list[Input], keys: list[str], image: Callable[[str], Any], label: str) -> Artifact:
        facts = [str(SCHEMA_VERSION), self.fingerprint, self.config.transform, *keys]
        content = sha256("\n".join(facts).encode()).hexdigest()[:16]
        path = join(self.folder, content)
        count = -(-len(parts) // self.config.rows)
        inputs = {"model": self.fingerprint, "parts": content}
        names = shard_names(count, "arrow")
        writer = create_artifact(path, kind="embeddings", config=self.config, inputs=inputs, names=names)
        if isinstance(writer, Artifact):
            if writer.table([IMAGE_ID])[IMAGE_ID].to_pylist() != keys:
                raise EvaluationError(
                    f"{path} does not hold the embeddings that its name says; delete it and run again"
                )
            return writer
        with writer:
            return self._encode(writer, parts, keys, image, label)

    def _encode(
        self, writer: ArtifactWriter, parts: list[Input], keys: list[str], image: Callable[[str], Any], label: str
    ) -> Artifact:
        for index in writer.mine():
            rows = slice(index * self.config.rows, (index + 1) * self.config.rows)
            encoded = encode_inputs(self.model, parts[rows], image, self.batch_size, label).astype(np.float16)
            writer.write(index, embedding_table(pa.array(keys[rows], pa.string()), encoded))
        return writer.finish()

    def _same_model(self, stored: np.ndarray, parts: list[Input], image: Callable[[str], Any], path: str) -> None:
        fresh = encode_inputs(self.model, parts, image, self.batch_size)
        if fresh.shape[1] != stored.shape[1]:
            raise EvaluationError(
                f"the model gives embeddings of {fresh.shape[1]} numbers, but the cache has {stored.shape[1]}"
                f" ({path}); it changed under the name {self.fingerprint}, so pin its revision, or delete that folder"
            )
        if float((fresh * stored).sum(1).min()) < SAME:
            raise EvaluationError(
                f"the model no longer gives the embeddings of the cache ({path}); it changed under the name"
                f" {self.fingerprint}, so pin its revision, or delete that folder"
            )


def key_of(part: Input, digests: dict[str, str]) -> str:
    """What a vector is made of, as 32 hex digits."""
    image = "" if part.image is None else digests[part.image]
    return sha256(f"{image}\0{part.text or ''}".encode()).hexdigest()[:32]


def image_digests(names: Sequence[str], image: Callable[[str], Any], folder: str) -> dict[str, str]:
    """A hash of each image: of its file's bytes where it is a file, else of its decoded pixels.

    Args:
        names: image ids.
        image: gives the RGB image of an id.
        folder: of the cache, which keeps the hashes of files.

    Raises:
        EvaluationError: an image is not there.
    """
    stored, fresh, digests = _stored_digests(folder), dict[str, list[Any]](), dict[str, str]()
    for name in dict.fromkeys(names):
        path = image.find(name) if isinstance(image, ImageFolder) else None
        if path is None:
            digests[name] = pixel_sha256(image(name))
            continue
        key, status = str(path.absolute()), path.stat()
        state = [status.st_size, status.st_mtime_ns]
        if stored.get(key, [])[:2] != state:
            stored[key] = fresh[key] = [*state, sha256(path.read_bytes()).hexdigest()]
        digests[name] = stored[key][2]
    if fresh and distributed.is_main():
        storage.write_bytes(join(folder, DIGESTS), json.dumps(stored, indent=0, sort_keys=True).encode())
    return digests


def _stored_digests(folder: str) -> dict[str, list[Any]]:
    """Size, time of change and hash of files by their paths; of a damaged list what is whole."""
    try:
        content = json.loads(storage.read_bytes(join(folder, DIGESTS)))
    except (ArtifactError, OSError, ValueError, RecursionError):
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {path: facts for path, facts in entries if isinstance(facts, list) and len(facts) == 3}
