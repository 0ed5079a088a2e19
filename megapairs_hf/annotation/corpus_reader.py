"""Captions and images of pairs, by their ids, without holding the corpus in memory.

The ids of one shard of pairs are located by reading the id columns only; then every needed row is read once, in the
order of the corpus. What surprises: images are re-encoded at once and wait in a temporary file, because a parquet
file is read by whole row groups, and reading a group again for every pair would cost a thousand times as much.
"""

from __future__ import annotations

import base64
import io
import tempfile
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.lookup import rows_by_id
from megapairs_hf.core.errors import ArtifactError, ConfigError, ImageRejectedError
from megapairs_hf.core.schema import CAPTION, IMAGE, IMAGE_ID, META
from megapairs_hf.images.decode import shrink, to_rgb
from megapairs_hf.images.locate import ROOT, image_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from megapairs_hf.artifacts.artifact import Artifact

JPEG_QUALITY = 90


def read_texts(corpus: Artifact, ids: Iterable[str], attributes: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Caption and the named fields of `meta` of every id that the corpus has."""
    columns = [IMAGE_ID, CAPTION, *([META] if attributes else [])]
    texts = {}
    for row in rows_by_id(corpus, ids, columns):
        texts[row[IMAGE_ID]] = {CAPTION: row[CAPTION] or "", META: row.get(META) or {}}
    return texts


def check_attributes(corpus: Artifact, names: Sequence[str]) -> None:
    """Refuse attributes that the corpus does not have, naming those that it has.

    Raises:
        ConfigError: one is unknown, or is not a number, a word or a list of them.
    """
    if not names or not corpus.manifest.shards:
        return
    with storage.open_read(corpus.shard_paths()[0]) as file:
        schema = pq.ParquetFile(file).schema_arrow
    fields = {field.name: field.type for field in schema.field(META).type} if META in schema.names else {}
    for name in names:
        if name not in fields:
            known = ", ".join(sorted(fields)) or "it has none"
            raise ConfigError(f"`attributes` names {name!r}, which the corpus's meta lacks; known fields: {known}")
        kind = fields[name].value_type if pa.types.is_list(fields[name]) else fields[name]
        if pa.types.is_nested(kind):
            raise ConfigError(f"`attributes` names {name!r}, which is a {fields[name]}; name a field of plain values")


class CorpusImages:
    """The images that one shard of pairs needs, as small JPEG files in one temporary file."""

    def __init__(self, corpus: Artifact, max_side: int) -> None:
        self.corpus, self.max_side = corpus, max_side
        self.file = tempfile.TemporaryFile()
        self.spans: dict[str, tuple[int, int]] = {}
        self.problems: dict[str, str] = {}

    def load(self, ids: Iterable[str]) -> None:
        """Read, shrink and re-encode the images with these ids."""
        for row in rows_by_id(self.corpus, ids, [IMAGE_ID, IMAGE]):
            try:
                content = self._encode(row[IMAGE])
            except (ImageRejectedError, ArtifactError, OSError) as error:
                self.problems[row[IMAGE_ID]] = str(error)
                continue
            self.spans[row[IMAGE_ID]] = (self.file.tell(), len(content))
            self.file.write(content)

    def _encode(self, stored: dict[str, Any]) -> bytes:
        content = image_bytes(stored, self.corpus.manifest.stats.get(ROOT))
        sink = io.BytesIO()
        shrink(to_rgb(content), self.max_side).save(sink, "JPEG", quality=JPEG_QUALITY)
        return sink.getvalue()

    def data_url(self, image_id: str) -> str:
        """One image as a data URL.

        Raises:
            ImageRejectedError: `missing_image` where the corpus has no such id, `unreadable_image` where it cannot be
                decoded.
        """
        if image_id in self.problems:
            raise ImageRejectedError("unreadable_image", f"{image_id}: {self.problems[image_id]}")
        if image_id not in self.spans:
            raise ImageRejectedError("missing_image", f"{image_id} is not in the corpus")
        start, length = self.spans[image_id]
        position = self.file.tell()
        self.file.seek(start)
        content = self.file.read(length)
        self.file.seek(position)
        return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"

    def close(self) -> None:
        """Remove them."""
        self.file.close()
