"""An index from images, or an index brought up to date: both are the same work.

The images are listed; those whose file is the one that was embedded keep their embedding, all others are read. What
surprises: a renamed file is read and hashed, but not embedded again, since it is known by its bytes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from megapairs_hf.core.errors import CorpusError
from megapairs_hf.core.progress import Progress
from megapairs_hf.search.collect import Collected
from megapairs_hf.search.encode_images import EmbeddedFiles, embed_files
from megapairs_hf.search.generation import PARTS, PREVIEWS, Generation, IndexRecord
from megapairs_hf.search.neighbors import Lists, fit_nprobe, from_codes, learn_lists
from megapairs_hf.search.next_files import NextFiles

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from megapairs_hf.corpus.file_list import FileChanges
    from megapairs_hf.search.config import SearchConfig
    from megapairs_hf.search.images import Images

PREVIEW_SIDE = 512
# settings that decide how the same embeddings are searched
SEARCHED_BY = ("exact_up_to", "recall")


def assemble(
    load_model: Callable[[], Any],
    images: Images,
    folder: Path,
    record: IndexRecord,
    config: SearchConfig,
    generation: Generation | None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[IndexRecord, FileChanges]:
    """Write the next generation of an index.

    Args:
        load_model: gives the model, called where an image must be embedded.
        images: all that the index shall have.
        folder: of the index.
        record: with model and images; the rest is filled in.
        config: the settings.
        generation: the files in use; None for a new index.
        on_progress: called with the number of images that are done, and of all.

    Returns:
        What was written, and how the images differ from those before.

    Raises:
        CorpusError: no image can be used.
    """
    plan = {"model": record.model["fingerprint"], "preview_side": config.preview_side, "max_pixels": config.max_pixels}
    store = EmbeddedFiles(folder / PARTS, plan)
    collected = Collected(images, generation)
    todo = np.flatnonzero(collected.origin < 0).tolist()
    with Progress("index", len(collected.origin), "images", len(collected.origin) - len(todo)) as bar:
        for i, file in embed_files(_Lazy(load_model), images, todo, store, collected.is_indexed, config):
            collected.put(i, file)
            bar.advance()
            if on_progress is not None:
                on_progress(bar.count, bar.total)
    changes = collected.changes()
    record = write_generation(collected, folder, record, config)
    record.clean(folder)
    return record, changes


class _Lazy:
    """A model that is loaded when it is first needed."""

    def __init__(self, load: Callable[[], Any]) -> None:
        self.load = load

    def encode(self, *arguments: Any, **settings: Any) -> Any:
        """As the model does."""
        return self.load().encode(*arguments, **settings)


def write_generation(collected: Collected, folder: Path, record: IndexRecord, config: SearchConfig) -> IndexRecord:
    """Write what was collected, as far as it differs from the files in use, and put it in use.

    Raises:
        CorpusError: no image can be used.
    """
    good, old, rejected = collected.good, collected.old, collected.rejected
    if not len(good):
        why = "; ".join(f"{row['reason']}: {row['detail']}" for row in rejected.slice(0, 1).to_pylist())
        raise CorpusError(f"none of the {len(collected.origin):,} images can be used ({why}); name other images")
    files, search, dimension = NextFiles(folder, record.generation + 1, old), record.search, record.dimension
    how = asdict(config)
    if old is not None and collected.has_all(good) and all(old.record.config.get(n) == how[n] for n in SEARCHED_BY):
        files.keep("embeddings", "ranges", "centroids", "ends", "previews")
    else:
        good, dimension, search = _write_embeddings(collected, good, files, config)
    files.table("rows", collected.rows(good, collected.images.captions(old)), old and old.rows)
    files.table("rejected", rejected, old and old.rejected)
    if collected.images.texts is not None:
        files.table("texts", collected.images.texts.table, old and old.texts)
    if old is not None and files.record == old.record.files:
        return record
    files.sync()
    record = replace(
        record,
        config=how,
        dimension=dimension,
        rows=len(good),
        generation=files.number,
        files=files.record,
        search=search,
        rejected=dict(sorted(Counter(rejected["reason"].to_pylist()).items())),
        previews=bool(config.preview_side),
    )
    record.write(folder)
    return record


def _write_embeddings(
    collected: Collected, good: np.ndarray, files: NextFiles, config: SearchConfig
) -> tuple[np.ndarray, int, dict[str, Any]]:
    """Write embeddings with what searches them, and small copies.

    Returns:
        The good images in the order of the rows, the dimension, and how they are searched.
    """
    codes, ranges = collected.codes(good, config)
    lists = None
    if len(good) > config.exact_up_to:
        centroids, list_of = learn_lists(from_codes(codes, ranges) if ranges is not None else codes)
        order = np.argsort(list_of, kind="stable")
        good, codes = good[order], codes[order]
        lists = Lists(centroids, np.cumsum(np.bincount(list_of, minlength=len(centroids))), 1, 0.0)
    path = files.array("embeddings", codes)
    if ranges is not None:
        files.array("ranges", ranges)
    if config.preview_side:
        previews = (pa.table([pa.array(part, pa.binary())], PREVIEWS) for part in collected.previews(good))
        files.tables("previews", PREVIEWS, previews)
    if lists is None:
        return good, codes.shape[1], {"kind": "exact"}
    files.array("centroids", lists.centroids)
    files.array("ends", lists.ends)
    fitted = fit_nprobe(path, ranges, lists, config.recall)
    search = {"kind": "ivf", "nprobe": fitted.nprobe, "recall": round(fitted.recall, 4)}
    return good, codes.shape[1], search
