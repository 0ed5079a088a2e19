"""Rows of triplets by image id, joined with their images when a row is read: what `Triplets` is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megapairs_hf.artifacts.lookup import IdIndex
from megapairs_hf.artifacts.sources import as_artifact
from megapairs_hf.artifacts.virtual import DatasetArtifact
from megapairs_hf.core.errors import ArtifactError, ConfigError, ImageRejectedError
from megapairs_hf.core.image_paths import ImagePaths
from megapairs_hf.core.row_function import ERROR
from megapairs_hf.core.schema import IMAGE, IMAGE_ID, TRIPLETS
from megapairs_hf.dataset.split import SPLIT
from megapairs_hf.images.decode import to_rgb
from megapairs_hf.images.locate import ROOT, SHA256, image_bytes, image_columns

if TYPE_CHECKING:
    from collections.abc import Callable

    from datasets import Dataset
    from PIL import Image

    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.storage import PathLike

IMAGE_COLUMNS = ("q_img", "t_img", "hns")
REQUIRED = ("q_img", "q_text", "t_img", "hns")
NAMED = 5
BATCH = 50_000


class RowsWithImages(Sequence[dict[str, Any]]):
    """Rows that name images, and the images; `Triplets` has the arguments.

    Attributes:
        dataset: the rows as a `datasets.Dataset`, images by id.
        images: the images as a `datasets.Dataset`, undecoded.
        by_id: the row of each id in `images`.
        root: the folder below which images by reference lie.
        paths: where the paths of images lead that are no references of a corpus.
        transform: what is applied to rows when they are read.
    """

    def __init__(
        self,
        dataset: Dataset,
        images: Dataset | Artifact | PathLike,
        columns: Sequence[str] | None = None,
        root: str | None = None,
    ) -> None:
        from datasets import Dataset, Image

        self.root, self.root_is_named = root, bool(root)
        self.paths = ImagePaths() if root is None else None
        if not isinstance(images, Dataset):
            artifact = as_artifact(images, "corpus")
            self.root, self.root_is_named = artifact.manifest.stats.get(ROOT), False
            self.paths = artifact.images if isinstance(artifact, DatasetArtifact) else None
            images = artifact.dataset()
        for name in REQUIRED if columns is None else columns:
            _require_column(dataset, name, "the triplets", "map `JoinTriplets()` over pairs that have instructions")
        for name in (IMAGE_ID, IMAGE):
            _require_column(images, name, "the images", "add it with `CheckImages()`, or rename the one that holds it")
        dataset = dataset.with_format(None)
        _refuse_errors(dataset)
        self.dataset = dataset if columns is None else dataset.select_columns(list(columns))
        self.images = images.with_format(None).cast_column(IMAGE, Image(decode=False))
        self.by_id = IdIndex(images)
        self.transform: Callable[[dict[str, list[Any]]], dict[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def column_names(self) -> list[str]:
        """The columns of a row."""
        return list(self.dataset.column_names)

    @property
    def splits(self) -> dict[str, int]:
        """The triplets of each split; all are `train` where no column tells them apart."""
        if SPLIT not in self.column_names:
            return {"train": len(self)}
        counts = counts_of(self.dataset, SPLIT)
        return {name: counts[name] for name in sorted(counts, key=lambda name: name != "train")}

    def split(self, name: str) -> Self:
        """The triplets of one split.

        Raises:
            ConfigError: there is no such split.
        """
        if name not in self.splits:
            raise ConfigError(f"there is no split {name!r}; there are {', '.join(self.splits)}")
        if SPLIT not in self.column_names:
            return self
        inside = pc.equal(_column(self.dataset, SPLIT), name).to_numpy()
        return self._of(self.dataset.select(np.flatnonzero(inside)))

    def _of(self, dataset: Dataset) -> Self:
        """Other rows of the same images, whose index is made already."""
        changed = object.__new__(type(self))
        changed.__dict__.update(self.__dict__ | {"dataset": dataset})
        return changed

    @overload
    def ids(self, index: int) -> dict[str, Any]: ...
    @overload
    def ids(self, index: Sequence[int]) -> list[dict[str, Any]]: ...
    def ids(self, index: int | Sequence[int]) -> dict[str, Any] | list[dict[str, Any]]:
        """Row `index` with image ids, or the rows of several indices."""
        if isinstance(index, int | np.integer):
            row: dict[str, Any] = self.dataset[int(index)]
            return row
        return _as_rows(self.dataset[list(index)])

    def image(self, image_id: str) -> Image.Image:
        """An image by its id, RGB.

        Raises:
            ArtifactError: the data set has no such image.
        """
        return self.load_images([image_id])[image_id]

    def load_images(self, names: Sequence[str]) -> dict[str, Image.Image]:
        """Images by their ids, RGB, each decoded once.

        Raises:
            ArtifactError: some are missing; the sentence names them.
        """
        return {name: to_rgb(content) for name, content in self.files(names).items()}

    def files(self, names: Sequence[str]) -> dict[str, bytes]:
        """The files of images by their ids.

        Raises:
            ArtifactError: some are missing; the sentence names them.
        """
        distinct = list(dict.fromkeys(names))
        indices = self.by_id.rows(distinct)
        self._refuse([name for name, index in zip(distinct, indices, strict=True) if index < 0])
        columns = [IMAGE] if self.root_is_named else list(image_columns(self.root or None))
        rows = self.images.select_columns(columns)[indices.tolist()] if distinct else {IMAGE: []}
        digests = rows.get(SHA256, [None] * len(distinct))
        return {name: self._content(name, *row) for name, *row in zip(distinct, rows[IMAGE], digests, strict=True)}

    def _content(self, name: str, cell: dict[str, Any] | None, digest: str | None) -> bytes:
        problem = None
        if self.paths is not None and cell is not None and cell["bytes"] is None and cell["path"]:
            content, problem = self.paths.read(cell["path"])
            cell = {**cell, "bytes": content}
        try:
            if problem is not None:
                raise ImageRejectedError(*problem)
            return image_bytes(cell, self.root or None, digest, named=self.root_is_named)
        except ImageRejectedError as error:
            raise ArtifactError(f"cannot read the image {name!r} ({error}); put it back, or leave it out") from error

    def image_ids(self) -> list[str]:
        """The ids of the images that the rows name, sorted."""
        names: set[str] = set()
        present = [name for name in IMAGE_COLUMNS if name in self.column_names]
        for table in self.dataset.select_columns(present).with_format("arrow").iter(batch_size=BATCH):
            for name in present:
                column = table[name].combine_chunks()
                flat = column.flatten() if name == "hns" else column
                names.update(flat.unique().drop_null().to_pylist())
        return sorted(names)

    def missing(self) -> list[str]:
        """The image ids of the rows that no image has, sorted."""
        names = self.image_ids()
        indices = [self.by_id.rows(names[i : i + BATCH]) for i in range(0, len(names), BATCH)]
        return [names[i] for i in np.nonzero(np.concatenate([np.empty(0), *indices]) < 0)[0]]

    def check(self) -> None:
        """Look for the images of all rows.

        Raises:
            ArtifactError: some are missing; the sentence names them.
        """
        self._refuse(self.missing())

    def _refuse(self, missing: list[str]) -> None:
        if len(missing) == 1:
            raise ArtifactError(
                f"image {missing[0]!r} is missing from the images; build or download the data set again"
            )
        if missing:
            more = f", and {len(missing) - NAMED:,} more" if len(missing) > NAMED else ""
            names = ", ".join(map(repr, missing[:NAMED])) + more
            raise ArtifactError(
                f"{len(missing):,} images are missing from the images ({names}); build or download the data set again"
            )

    def __getitem__(self, index: Any) -> Any:
        """Row `index` with images, or a list of rows for a slice.

        Raises:
            TypeError: it is a column's name or a list of rows.
        """
        if isinstance(index, slice):
            return self.__getitems__(list(range(*index.indices(len(self)))))
        if isinstance(index, str):
            raise TypeError(f"a row is taken by its number; the column, images by id, is .dataset[{index!r}]")
        if isinstance(index, list):
            raise TypeError("a row is taken by its number; several, images by id, are .ids([…]), or .select([…])")
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """Several rows at once, as `torch.utils.data.DataLoader` reads a batch; each image is decoded once."""
        columns: dict[str, Any] = dict(self.dataset[indices])
        present = [name for name in IMAGE_COLUMNS if name in columns]
        flat = [part for name in present for value in columns[name] for part in _listed(value)]
        images = self.load_images(flat)
        for name in present:
            values = columns[name]
            columns[name] = [images[v] if isinstance(v, str) else [images[part] for part in v] for v in values]
        return _as_rows(columns if self.transform is None else self.transform(columns))


def _column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    return dataset.select_columns([name]).with_format("arrow")[:][name]


def counts_of(dataset: Dataset, name: str) -> dict[str, int]:
    """How often each value is in a column of texts, or of lists of them; in the order of their first rows."""
    column = _column(dataset, name)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = pc.list_flatten(column)
    return {pair["values"]: pair["counts"] for pair in pc.value_counts(column).to_pylist()}


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else value


def _as_rows(columns: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _require_column(dataset: Dataset, name: str, what: str, advice: str) -> None:
    if name not in dataset.column_names:
        advice = f"; {advice}" if name in {*TRIPLETS.names, IMAGE_ID, IMAGE} else ""
        raise ConfigError(
            f"there is no column {name!r} in {what}{advice} (columns: {', '.join(dataset.column_names)})"
        )


def _refuse_errors(dataset: Dataset) -> None:
    if ERROR not in dataset.column_names:
        return
    count = len(dataset) - counts_of(dataset, ERROR).get("", 0)
    if count:
        raise ConfigError(f"{count:,} of {len(dataset):,} rows have an error; leave them out first: `drop_errors(…)`")
