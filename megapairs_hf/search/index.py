"""`SearchIndex`: images that can be searched with an image, a text, or both ("this image, but …").

An index is a folder of plain arrays and tables (`generation.py`); the model is named in it and loaded when a query
needs it, and must be the one that embedded the images, by the hash of its weights.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import lock, storage
from megapairs_hf.core.config import build_config
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.progress import note
from megapairs_hf.search.build import PREVIEW_SIDE, assemble
from megapairs_hf.search.config import SearchConfig
from megapairs_hf.search.generation import INDEX, Generation, IndexRecord, read_record
from megapairs_hf.search.images import Images, open_images, reopen_images
from megapairs_hf.search.index_model import describe_model, load_checked, with_fitted_weight
from megapairs_hf.search.nearest import LeftOut, nearest
from megapairs_hf.search.query import check_query, default_weight, embed_query
from megapairs_hf.search.results import SearchResults
from megapairs_hf.search.rows import IndexRows, read_verified
from megapairs_hf.search.stale import current_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from datasets import Dataset

    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.corpus.file_list import FileChanges
    from megapairs_hf.search.neighbors import StoredSearch


class SearchIndex:
    """An index, opened. Made by `build` or `open`.

    Attributes:
        folder: where it is.
        record: what it says of itself.
        weight: of the image against the text in a query without one; None for the model's own fusion.
    """

    def __init__(self, folder: Path, record: IndexRecord, model: Any = None) -> None:
        self.folder, self.record = folder, record
        self.weight = record.weight
        self._model = model
        self._generation: Generation | None = None
        self._neighbors: StoredSearch | None = None
        self._rows: IndexRows | None = None
        self._images: Images | None = None

    @classmethod
    def build(
        cls,
        model: Any,
        images: Artifact | Dataset | PathLike,
        out: PathLike,
        *,
        config: SearchConfig | None = None,
        overwrite: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> SearchIndex:
        """Embed images and write an index; what is there already is brought up to date.

        Args:
            model: folder or Hub id of an MMRet, of any CLIP or of a Sentence Transformers model for images; or a
                model with `encode`.
            images: a folder of images, a corpus, a `Dataset`, a file of rows, or a data set on the Hub.
            out: the folder of the index.
            config: the settings.
            overwrite: replace an index of another model, of other images or with other settings.
            on_progress: called with the number of images that are done, and of all.

        Returns:
            The index, opened.

        Raises:
            ModelError: the model cannot be loaded.
            CorpusError: no image can be used.
            StaleArtifactError: `out` is an index of something else.
        """
        config = config or SearchConfig()
        folder = storage.local(out)
        source = open_images(images, follow_links=config.follow_links)
        if source.record["type"] == "dataset" and not config.preview_side:
            config = build_config(SearchConfig, {**asdict(config), "preview_side": PREVIEW_SIDE}, "search")
        described = describe_model(model)
        held = lock.acquire(folder)
        try:
            record = IndexRecord(described, source.record, asdict(config), 0, 0, 0, {})
            record, current = current_record(folder, record, overwrite)
            index = cls(folder, record, None if isinstance(model, (str, os.PathLike)) else model)
            if not current:
                index.record = with_fitted_weight(record, index.model)
            index._assemble(source, config, Generation(folder, record) if current else None, on_progress)
        finally:
            lock.release(held)
        return index

    @classmethod
    def open(cls, path: PathLike, *, model: Any = None) -> SearchIndex:
        """Open an index; nothing large is read before the first query.

        Args:
            path: its folder.
            model: a loaded model; None loads the one that the index names, when a query needs it.

        Raises:
            ArtifactError: there is no index, or it is damaged.
        """
        folder = storage.local(path)
        return cls(folder, read_record(folder), model)

    def update(self) -> FileChanges:
        """Embed images that are new or changed, and leave out those that are gone.

        Returns:
            The ids of each; as a text, how many.

        Raises:
            ArtifactError: the images are not where the index says.
        """
        source = self.images
        config = build_config(SearchConfig, self.record.config, str(self.folder / INDEX))
        held = lock.acquire(self.folder)
        try:
            self.record = read_record(self.folder)
            return self._assemble(source, config, Generation(self.folder, self.record))
        finally:
            lock.release(held)
            self._images = None

    def _assemble(
        self,
        source: Images,
        config: SearchConfig,
        generation: Generation | None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> FileChanges:
        require("models", "a search index", "torch", "sentence_transformers")
        self.record, changes = assemble(
            lambda: self.model, source, self.folder, self.record, config, generation, on_progress
        )
        self.weight = self.record.weight
        self._generation = self._neighbors = self._rows = None
        rejected = sum(self.record.rejected.values())
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.record.rejected.items())
        note(
            f"index {self.folder}: {changes}; {self.record.rows:,} images"
            + (f", {rejected:,} rejected ({reasons}); their names: `SearchIndex.rejected()`" if rejected else "")
        )
        return changes

    @property
    def model(self) -> Any:
        """The model, loaded when it is first needed.

        Raises:
            ModelError: it cannot be loaded, or has other weights than when the images were embedded.
        """
        if self._model is None:
            self._model = load_checked(self.record.model, self.folder)
        return self._model

    @property
    def generation(self) -> Generation:
        """The files in use."""
        if self._generation is None:
            self._generation = Generation(self.folder, self.record)
        return self._generation

    @property
    def rows(self) -> IndexRows:
        """Ids, captions and embeddings of the images."""
        if self._rows is None:
            self._rows = IndexRows(self.generation)
        return self._rows

    @property
    def neighbors(self) -> StoredSearch:
        """What is searched."""
        if self._neighbors is None:
            self._neighbors = self.generation.neighbors()
        return self._neighbors

    @property
    def images(self) -> Images:
        """The images that were embedded, where they are now.

        Raises:
            ArtifactError: they are not there.
        """
        if self._images is None:
            self._images = reopen_images(self.record, self.folder)
        return self._images

    def __len__(self) -> int:
        return self.record.rows

    def __repr__(self) -> str:
        return f"SearchIndex({str(self.folder)!r}, {len(self):,} images, model {self.record.model['name']!r})"

    def query(
        self,
        image: Any = None,
        text: str | None = None,
        *,
        row: int | None = None,
        weight: float | None = None,
        k: int = 10,
        exclude: Iterable[str] = (),
        hide_near_duplicates: float | None = None,
    ) -> SearchResults:
        """The images that are most like an image, a text, or an image changed by a text.

        Args:
            image: path, bytes, Pillow image, array, or the cell of a data set.
            text: what to find, or how it shall differ from the image.
            row: an image of the index in place of `image`; it is left out of the results.
            weight: of the image, 0 to 1, for the sum of both embeddings; None takes the index' own, and where it has
                none the model's fusion (0.5 for a model that has none).
            k: how many.
            exclude: ids to leave out.
            hide_near_duplicates: leave out images whose cosine with the query image is at least this (0.96 is the
                paper's limit).

        Returns:
            Hits, best first.

        Raises:
            ConfigError: there is neither image nor text, or the image cannot be used.
        """
        start = time.perf_counter()
        ids, known = set(exclude), None
        if row is not None:
            known = self.rows.embeddings([row])[0] if self.rows.facts(row) else None
            ids.add(self.rows.facts(row)["image_id"])
        text = check_query(image if row is None else row, text, weight, k, hide_near_duplicates)
        both = text is not None and (image is not None or row is not None)
        if weight is None and both:
            weight = default_weight(self.model, self.weight)
        weight = weight if both else None
        if row is not None:
            # the pixels are needed only where the model fuses
            image = self.image_bytes(row) if both and weight is None else None
        model = self.model if row is None or both else None
        embedding = embed_query(model, image, text, weight, known)
        like, limit = None, 2.0
        if hide_near_duplicates is not None and (image is not None or row is not None):
            like, limit = known, hide_near_duplicates
            if like is None:
                like = embed_query(model, image, None, None)
        hits = nearest(self.neighbors, self.rows, embedding, k, LeftOut(ids, like, limit))
        return SearchResults(hits, weight, time.perf_counter() - start)

    def image_bytes(self, row: int) -> bytes:
        """The file of an image of the index, or the small copy that the index keeps.

        Raises:
            ArtifactError: it is not where it was, or is another file now.
        """
        preview = self.rows.preview(row)
        return preview if preview is not None else read_verified(self.images, self.rows, row)

    def rejected(self) -> list[dict[str, str]]:
        """`image_id`, `reason` and `detail` of each image that was left out."""
        rows: list[dict[str, str]] = self.generation.rejected.to_pylist()
        return rows

    def save(self, path: PathLike) -> SearchIndex:
        """Copy the index to another folder.

        Args:
            path: a folder that is not there, or empty.

        Returns:
            The copy, opened.

        Raises:
            ArtifactError: something is there.
        """
        target = storage.local(path)
        if target.exists() and any(target.iterdir()):
            raise ArtifactError(f"{target} is not empty; name another folder")
        with storage.explained(target):
            target.mkdir(parents=True, exist_ok=True)
            for name in self.record.files:
                shutil.copyfile(self.folder / name, target / name)
        storage.write_bytes(target / INDEX, (self.folder / INDEX).read_bytes())
        return SearchIndex.open(target, model=self._model)
