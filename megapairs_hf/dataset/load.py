"""`load_triplets`: the triplets with their pictures, joined by id when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.errors import ArtifactError
from megapairs_hf.images import to_rgb

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image

IMAGE_COLUMNS = ("q_img", "t_img", "hns")


class Triplets(Sequence[dict[str, Any]]):
    """Triplets of one split, with their pictures.

    `triplets[i]` is a dict with `q_img` (a PIL picture), `q_text` (its instructions), `t_img`, `hns` (pictures; the
    first is the query image), `relation` and `scores`; `triplets.ids(i)` is the same row with image ids, and decodes
    nothing.

    Attributes:
        rows: the triplets as a `datasets.Dataset`, images by id.
        images: the pictures as a `datasets.Dataset` (image_id, image, caption).
    """

    def __init__(self, rows: Dataset, images: Dataset, columns: Sequence[str] | None = None) -> None:
        from datasets import Image

        self.rows = rows
        self.images = images.cast_column("image", Image(decode=False))
        self.columns = list(columns) if columns is not None else list(rows.column_names)
        unknown = sorted(set(self.columns) - set(rows.column_names))
        if unknown:
            raise ArtifactError(f"there is no column {unknown[0]!r}; columns: {', '.join(rows.column_names)}")
        self.places = {name: i for i, name in enumerate(images["image_id"])}

    def __len__(self) -> int:
        return len(self.rows)

    def ids(self, index: int) -> dict[str, Any]:
        """Row `index` with image ids."""
        return {name: value for name, value in self.rows[index].items() if name in self.columns}

    def image(self, image_id: str) -> Image.Image:
        """A picture by its id, RGB.

        Raises:
            ArtifactError: the data set has no such picture.
        """
        if image_id not in self.places:
            raise ArtifactError(f"image {image_id!r} is missing from the images; build or download the data set again")
        return to_rgb(self.images[self.places[image_id]]["image"]["bytes"])

    def __getitem__(self, index: Any) -> Any:
        """Row `index` with pictures, or a list of rows for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = self.ids(range(len(self))[index])
        for name in IMAGE_COLUMNS:
            if name in row:
                value = row[name]
                row[name] = self.image(value) if isinstance(value, str) else [self.image(part) for part in value]
        return row


def load_triplets(
    path_or_repo: str,
    split: str = "train",
    columns: Sequence[str] | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> Triplets:
    """Open a data set of triplets with its pictures.

    Args:
        path_or_repo: folder made by `megapairs build`, or a data set on the Hub.
        split: `train` or `validation`.
        columns: the columns wanted; None for all.
        revision: revision on the Hub.
        token: of the Hub.

    Returns:
        The rows; pictures are decoded when a row is asked for.

    Raises:
        ArtifactError: there is no such data set or split.
    """
    import datasets

    if Path(path_or_repo).exists() and not (Path(path_or_repo) / "README.md").exists():
        raise ArtifactError(f"{path_or_repo} holds no data set of triplets; run `megapairs build`, or check the path")
    options = {"revision": revision, "token": token}
    try:
        rows = datasets.load_dataset(path_or_repo, "triplets", split=split, **options)
        images = datasets.load_dataset(path_or_repo, "images", split="train", **options)
    except Exception as error:  # datasets raises whatever its reader or connection raises
        said = " ".join(str(error).split())[:300]
        raise ArtifactError(f"cannot open the triplets of {path_or_repo} ({split}): {said}") from error
    return Triplets(rows, images, columns)
