"""`load_triplets`: the triplets with their images, joined by id when a row is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from megapairs_hf.artifacts.artifact import MANIFEST, open_artifact
from megapairs_hf.artifacts.lookup import IdIndex
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.images.decode import to_rgb
from megapairs_hf.images.locate import ROOT, image_bytes

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image

IMAGE_COLUMNS = ("q_img", "t_img", "hns")
NAMED = 5
BATCH = 50_000


class Triplets(Sequence[dict[str, Any]]):
    """Triplets of one split, with their images.

    `triplets[i]` is a dict with `q_img` (a PIL image), `q_text` (its instructions), `t_img`, `hns` (images; the
    first is the query image), `relation` and `scores`; `triplets.ids(i)` is the same row with image ids, and decodes
    nothing. Rows, images and the index that joins them are memory-mapped, so a pickle for a worker is a few names.

    Attributes:
        rows: the triplets as a `datasets.Dataset`, images by id.
        images: the images as a `datasets.Dataset` (image_id, image, caption), undecoded.
        columns: the columns of a row.
        by_id: the row of each id in `images`.
    """

    def __init__(
        self, rows: Dataset, images: Dataset, columns: Sequence[str] | None = None, root: str | None = None
    ) -> None:
        from datasets import Image

        self.rows = rows
        self.images = images.cast_column("image", Image(decode=False))
        self.columns = list(columns) if columns is not None else list(rows.column_names)
        unknown = sorted(set(self.columns) - set(rows.column_names))
        if unknown:
            raise ArtifactError(f"there is no column {unknown[0]!r}; columns: {', '.join(rows.column_names)}")
        self.by_id = IdIndex(images)
        self.root = root
        self._chosen = rows.select_columns(self.columns)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def ids(self, index: int) -> dict[str, Any]: ...
    @overload
    def ids(self, index: Sequence[int]) -> list[dict[str, Any]]: ...
    def ids(self, index: int | Sequence[int]) -> dict[str, Any] | list[dict[str, Any]]:
        """Row `index` with image ids, or the rows of several indices."""
        if isinstance(index, int | np.integer):
            row: dict[str, Any] = self._chosen[int(index)]
            return row
        columns = self._chosen[list(index)]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

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
        cells = self.images.select_columns(["image"])[indices.tolist()]["image"] if distinct else []
        return {name: image_bytes(cell, self.root) for name, cell in zip(distinct, cells, strict=True)}

    def missing(self) -> list[str]:
        """The image ids of the rows that no image has, sorted."""
        names: set[str] = set()
        for table in self.rows.select_columns(list(IMAGE_COLUMNS)).with_format("arrow").iter(batch_size=BATCH):
            for name in IMAGE_COLUMNS:
                column = table[name].combine_chunks()
                flat = column.flatten() if name == "hns" else column
                names.update(flat.unique().drop_null().to_pylist())
        listed = sorted(names)
        indices = [self.by_id.rows(listed[i : i + BATCH]) for i in range(0, len(listed), BATCH)]
        return [listed[i] for i in np.nonzero(np.concatenate([np.empty(0), *indices]) < 0)[0]]

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
        """Row `index` with images, or a list of rows for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = self.ids(range(len(self))[index])
        present = [name for name in IMAGE_COLUMNS if name in row]
        ids = [part for name in present for part in ([row[name]] if isinstance(row[name], str) else row[name])]
        images = self.load_images(ids)
        for name in present:
            value = row[name]
            row[name] = images[value] if isinstance(value, str) else [images[part] for part in value]
        return row


def load_triplets(
    path_or_repo: str,
    split: str = "train",
    columns: Sequence[str] | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    check: bool = False,
) -> Triplets:
    """Open a data set of triplets with its images.

    Args:
        path_or_repo: folder made by `megapairs build`, or a data set on the Hub.
        split: `train` or `validation`.
        columns: the columns of a row; None for all.
        revision: revision on the Hub.
        token: of the Hub.
        check: look for the images of all rows now, instead of when a row is read.

    Returns:
        The rows; images are decoded when a row is read.

    Raises:
        ArtifactError: there is no such data set or split, or images are missing.
    """
    import datasets

    if Path(path_or_repo).exists() and not (Path(path_or_repo) / "README.md").exists():
        raise ArtifactError(f"{path_or_repo} holds no data set of triplets; run `megapairs build`, or check the path")
    options = {"revision": revision, "token": token}
    try:
        rows = datasets.load_dataset(path_or_repo, "triplets", split=split, **options)
        images = datasets.load_dataset(path_or_repo, "images", split="train", **options)
    except Exception as error:  # datasets raises whatever its reader or connection raises
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(f"cannot open the triplets of {path_or_repo} ({split}): {reason}") from error
    root = open_artifact(path_or_repo).manifest.stats.get(ROOT) if Path(path_or_repo, MANIFEST).is_file() else None
    triplets = Triplets(rows, images, columns, root)
    if check:
        triplets.check()
    return triplets
