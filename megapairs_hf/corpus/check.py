"""One row of a corpus: checked, decoded, and given its id, or rejected with a reason."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import ImageRejectedError
from megapairs_hf.images.decode import decode_image, encode_image, pixel_sha256, shrink

if TYPE_CHECKING:
    from megapairs_hf.artifacts.writer import Rejection
    from megapairs_hf.corpus.config import CorpusConfig
    from megapairs_hf.corpus.sources.base import RawRow

NO_CAPTION = "no_caption"
# longer captions are truncated, and counted in the manifest
MAX_CAPTION_WORDS = 256
PER_MILLE = 10_000


@dataclass(frozen=True)
class CorpusRow:
    """A good row of the corpus, and notes on it (`caption_cut`, `re_encoded`)."""

    columns: dict[str, Any]
    notes: tuple[str, ...]


def is_held_out(group: str, share: float) -> bool:
    """Whether a group is held out: decided by its name alone, so adding rows moves none to the other part."""
    number = int.from_bytes(hashlib.sha256(group.encode("utf-8", "backslashreplace")).digest()[:8], "big")
    return number % PER_MILLE < share * PER_MILLE


def check_row(raw: RawRow, config: CorpusConfig) -> CorpusRow | Rejection:
    """Decode and check one row.

    Returns:
        The row, or (key, reason, detail) of its rejection.
    """
    if raw.problem is not None:
        return (raw.key, *raw.problem)
    caption = " ".join((raw.caption or "").split())
    if not caption:
        return (raw.key, NO_CAPTION, "the caption is missing or empty")
    notes = []
    words = caption.split(" ")
    if len(words) > MAX_CAPTION_WORDS:
        caption = " ".join(words[:MAX_CAPTION_WORDS])
        notes.append("caption_cut")
    assert raw.image is not None
    try:
        decoded = decode_image(raw.image, max_pixels=config.max_pixels, min_side=config.min_side)
    except ImageRejectedError as error:
        return (raw.key, error.reason, error.detail)
    image = shrink(decoded.image, config.max_side)
    content = raw.image
    if config.images == "embedded" and (not decoded.as_stored or image is not decoded.image):
        content = encode_image(image, lossy=decoded.lossy)
        notes.append("re_encoded")
    by_reference = config.images == "by_reference"
    if by_reference and raw.reference is None:
        return (raw.key, "no_reference", "its file cannot be named by a path; take `images: embedded`")
    columns = {
        "image_id": raw.key,
        "image": {"bytes": None, "path": raw.reference} if by_reference else {"bytes": content, "path": None},
        "caption": caption,
        "width": image.width,
        "height": image.height,
        "sha256": pixel_sha256(image),
        "meta": raw.meta,
    }
    return CorpusRow(columns, tuple(notes))
