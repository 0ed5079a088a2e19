"""Embeddings of a corpus that has grown: shards whose rows are the same are taken over.

Beside its shards an artifact remembers a key of each shard of the corpus that it was made of: the sha256 of its file,
with that of the captions where a caption model reads others than the corpus's own. What surprises: the file has the
sha256 of every image by reference too, so that a replaced image is embedded again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import MANIFEST, Artifact, json_bytes, open_artifact, read_json
from megapairs_hf.artifacts.captioned import CaptionedCorpus
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.core.config import config_hash
from megapairs_hf.core.schema import CAPTION, CAPTIONS, IMAGE_ID

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.artifacts.writer import ArtifactWriter, Rejection
    from megapairs_hf.embedding.config import ModelSettings

KEYS = ".corpus_shards"


@dataclass(frozen=True)
class EarlierEmbeddings:
    """Finished embeddings by the same model with the same settings.

    Attributes:
        artifact: the embeddings.
        keys: of the corpus's shards that they were made of; none where that is not known.
    """

    artifact: Artifact
    keys: list[str]

    def take_over(self, keys: Sequence[str], writer: ArtifactWriter) -> None:
        """Finish the shards of a writer whose rows are the same as in a shard here."""
        shard_of = {key: index for index, key in enumerate(self.keys)} if keys else {}
        rejected = self.artifact.rejected()
        for i in writer.mine():
            index = shard_of.get(keys[i]) if shard_of else None
            if index is None:
                continue
            record = self.artifact.manifest.shards[index]
            path = self.artifact.checked_path(index)
            with storage.explained(writer.path):
                storage.link_or_copy(storage.local(path), storage.local(join(writer.path, writer.names[i])))
            stats = {"dimension": int(self.artifact.manifest.stats["dimension"])} if i == 0 else {}
            writer.adopt(i, int(record["rows"]), self._rejected(index, rejected), stats, str(record["sha256"]))

    def _rejected(self, index: int, rejected: pa.Table) -> list[Rejection]:
        """The rows of a shard that have no embedding."""
        if not len(rejected):
            return []
        ids = self.artifact.shard(index, [IMAGE_ID])[IMAGE_ID].to_pylist()
        chosen = rejected.filter(pc.is_in(rejected["key"], value_set=pa.array(ids, pa.string())))
        return [tuple(row.values()) for row in chosen.to_pylist()]


def open_earlier(path: PathLike, settings: ModelSettings, weights: str) -> EarlierEmbeddings | None:
    """The finished embeddings in a folder; None where there are none, or the model or its settings were others."""
    if not storage.is_local(path) or not storage.exists(join(path, MANIFEST)):
        return None
    artifact = open_artifact(path)
    manifest = artifact.manifest
    same = manifest.config_hash == config_hash(settings) and manifest.inputs.get("model") == weights
    keys = read_json(join(path, KEYS)).get("keys", []) if storage.exists(join(path, KEYS)) else []
    return EarlierEmbeddings(artifact, keys) if same and manifest.kind == "embeddings" else None


def shard_keys(corpus: Artifact, embedded: str) -> list[str]:
    """What decides the embeddings of each shard of a corpus, beside the model; none for rows from elsewhere.

    Args:
        corpus: the images.
        embedded: what of them, `image` or `caption`.
    """
    hashes = [str(shard.get("sha256", "")) for shard in corpus.manifest.shards]
    if not all(hashes):
        return []
    if embedded == "image" or not isinstance(corpus, CaptionedCorpus):
        return hashes
    keys = []
    for i, digest in enumerate(hashes):
        captions = corpus.shard(i, [IMAGE_ID, CAPTION, CAPTIONS]).to_pydict()
        keys.append(hashlib.sha256(json_bytes([digest, captions])).hexdigest())
    return keys


def write_keys(path: PathLike, keys: Sequence[str]) -> None:
    """Remember what the shards were made of, before the manifest is written."""
    if keys:
        storage.write_bytes(join(path, KEYS), json_bytes({"keys": list(keys)}))
