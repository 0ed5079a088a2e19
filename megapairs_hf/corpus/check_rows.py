"""A row of the corpus: its image checked, its captions cleaned, and whether its group is held out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import ImageRejectedError
from megapairs_hf.corpus.captions import NO_CAPTION
from megapairs_hf.corpus.check import check_image
from megapairs_hf.images.decode import encode_image

if TYPE_CHECKING:
    from collections.abc import Iterable

    from megapairs_hf.artifacts.writer import Rejection
    from megapairs_hf.corpus.config import CorpusConfig
    from megapairs_hf.corpus.sources.base import RawRow

# longer captions are truncated, and counted in the manifest
MAX_CAPTION_WORDS = 256
PER_MILLE = 10_000


@dataclass(frozen=True)
class CorpusRow:
    """A good row of the corpus, and notes on it (`caption_cut`, `re_encoded`, `image_warnings`)."""

    columns: dict[str, Any]
    notes: tuple[str, ...]


def is_held_out(group: str, share: float) -> bool:
    """Whether a group is held out: decided by its name alone, so adding rows moves none to the other part."""
    number = int.from_bytes(hashlib.sha256(group.encode("utf-8", "backslashreplace")).digest()[:8], "big")
    return number % PER_MILLE < share * PER_MILLE


def check_row(raw: RawRow, config: CorpusConfig, *, required: bool) -> CorpusRow | Rejection:
    """Decode and check one row.

    Args:
        raw: the row.
        config: the settings.
        required: whether a row without a caption is rejected.

    Returns:
        The row, or (key, reason, detail) of its rejection.
    """
    captions, notes = clean_captions(raw.captions)
    by_reference = config.images == "by_reference"
    try:
        if raw.problem is not None:
            raise ImageRejectedError(*raw.problem)
        if required and not captions:
            raise ImageRejectedError(NO_CAPTION, "the caption is missing or empty")
        assert raw.image is not None
        limits = {"max_pixels": config.max_pixels, "min_side": config.min_side}
        checked = check_image(raw.image, raw.key, **limits, max_side=config.max_side)
        if by_reference and raw.reference is None:
            raise ImageRejectedError("no_reference", "its file cannot be named by a path; take `images: embedded`")
    except ImageRejectedError as error:
        return (raw.key or f"row {raw.row}", error.reason, error.detail)
    if checked.decoded.warnings:
        notes.append("image_warnings")
    content, reduced = raw.image, checked.image is not checked.decoded.image
    if not by_reference and (reduced or not checked.decoded.as_stored):
        content = encode_image(checked.image, lossy=checked.decoded.lossy)
        notes.append("re_encoded")
    columns = {
        **checked.columns,
        "image": {"bytes": None, "path": raw.reference} if by_reference else {"bytes": content, "path": None},
        "caption": captions[0] if captions else "",
        "captions": captions,
        "meta": raw.meta,
    }
    return CorpusRow(columns, tuple(notes))


def clean_captions(captions: Iterable[str]) -> tuple[list[str], list[str]]:
    """Captions in one line each, each once, none empty, and notes (`caption_cut`, `without_caption`)."""
    texts = [words for caption in captions if (words := caption.split())]
    notes = ["caption_cut"] if any(len(words) > MAX_CAPTION_WORDS for words in texts) else []
    cleaned = dict.fromkeys(" ".join(words[:MAX_CAPTION_WORDS]) for words in texts)
    return list(cleaned), notes if texts else ["without_caption"]
