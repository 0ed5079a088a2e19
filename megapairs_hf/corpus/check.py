"""Images checked, measured and named: `CheckImages`, the row function, and the check of one image.

What surprises: `sha256` is of the file as its source holds it (has it changed?), `pixels_sha256` of the size and the
RGB pixels (is it the same image?); where the corpus reduces an image, width, height and pixels are those it keeps.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.config import require
from megapairs_hf.core.errors import CorpusError, ImageRejectedError
from megapairs_hf.core.image_paths import caches
from megapairs_hf.core.progress import note
from megapairs_hf.core.row_function import ERROR, RowFunction, format_error
from megapairs_hf.corpus.sources.base import no_id
from megapairs_hf.corpus.sources.cells import (
    KEY,
    URL,
    WEBDATASET_IMAGES,
    base_folder,
    cell_id,
    choose_image_columns,
    image_columns,
    own_id,
    path_of,
    read_cell,
    relative_to,
)
from megapairs_hf.images.decode import (
    MAX_PIXELS,
    Decoded,
    decode_image,
    decode_shared,
    pixel_sha256,
    shrink,
)

if TYPE_CHECKING:
    import os

    from datasets import Features
    from PIL import Image

    from megapairs_hf.core.row_function import Rows

MIN_SIDE = 16
ID_DIGITS = 16


@dataclass(frozen=True)
class CheckedImage:
    """A good image.

    Attributes:
        decoded: what its file holds.
        image: the image, reduced to the longest side that is kept.
        columns: `image_id`, `width`, `height`, `num_bytes`, `sha256`, `pixels_sha256`.
    """

    decoded: Decoded
    image: Image.Image
    columns: dict[str, Any]


def check_image(
    content: bytes | Image.Image,
    key: str | None,
    *,
    max_pixels: int = MAX_PIXELS,
    min_side: int = MIN_SIDE,
    max_side: int | None = None,
) -> CheckedImage:
    """Decode an image and measure it: what `CheckImages` and the stage both do with each row.

    Args:
        content: the file's bytes, or an image that was decoded before; of that no file is known, so `num_bytes` is 0
            and `sha256` empty.
        key: the id of the row; None for the first 16 hex digits of the pixels' hash.
        max_pixels: more pixels than this are refused before they are decoded.
        min_side: a shorter side is refused.
        max_side: a longer side is reduced; None keeps all pixels.

    Raises:
        ImageRejectedError: as in `decode_image`.
    """
    num_bytes, digest = 0, ""
    if isinstance(content, bytes):
        decoded = decode_image(content, max_pixels=max_pixels, min_side=min_side)
        num_bytes, digest = len(content), hashlib.sha256(content).hexdigest()
    else:
        decoded = decode_shared(content, max_pixels=max_pixels, min_side=min_side)
    image = shrink(decoded.image, max_side)
    pixels = pixel_sha256(image)
    if key is None:
        # the id does not depend on how far an image is reduced
        key = (pixels if image is decoded.image else pixel_sha256(decoded.image))[:ID_DIGITS]
    columns = {
        "image_id": key,
        "width": image.width,
        "height": image.height,
        "num_bytes": num_bytes,
        "sha256": digest,
        "pixels_sha256": pixels,
    }
    return CheckedImage(decoded, image, columns)


class CheckImages(RowFunction):
    """Decode every image once, give it an id, and say which cannot be used.

    Adds `image_id` (str), `width`, `height` (int32, upright), `num_bytes` (int64), `sha256` (of the file's bytes),
    `pixels_sha256` (of size and RGB pixels) and `error`. An image may be a file's bytes, a struct of `bytes` and
    `path`, a path, or a Pillow image; write `.decode(False)` before streaming, so that it comes as its file: of a
    decoded image `num_bytes` is 0 and `sha256` empty, and one broken file ends the stream.

    The id is that of `id_column`; else `shard/__key__` of a WebDataset (the tar's path relative to `root`, or its file
    name, without `.tar`); else the image's path relative to `root`; else the first 16 hex digits of the pixels' hash.
    It is never a counter and never an absolute path, so rows that are added or left out rename none.

    A path must lead to a file inside `root`, or inside the caches of `datasets` and of the Hub's client. Without a
    `root` the paths of an `Image` column are read where they lead, as `datasets` does, and those in a column of texts
    not at all. Nothing is fetched from the network. A file that was replaced since is read again by `add_columns`; a
    plain `map` needs `load_from_cache_file=False` for that.

    Args:
        root: the folder that ids are relative to, and that the images must be inside.
        image_column: the column with the images; None for the only one that there is.
        id_column: the column with unique ids.
        max_pixels: more pixels than this and an image is an error before it is decoded.
        min_side: an image with a shorter side is an error.

    Raises:
        CorpusError: there is no folder `root`, or no or more than one column holds images.
        ConfigError: a setting is out of its range, or a named column is not there.

    Errors: `empty_file`, `not_an_image`, `unsupported_format`, `truncated`, `undecodable`, `too_many_pixels`,
    `too_small`, `unsupported_mode`, `no_image`, `no_id`, `unreadable_file`, `remote_image`, `outside_source`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        image_column: str | None = None,
        id_column: str | None = None,
        max_pixels: int = MAX_PIXELS,
        min_side: int = MIN_SIDE,
    ) -> None:
        pixels, side = (isinstance(each, (int, float)) for each in (max_pixels, min_side))
        require(pixels and max_pixels >= 1, "max_pixels", max_pixels, "a positive number")
        require(side and min_side >= 0, "min_side", min_side, "0 or a positive number")
        if root is not None and not Path(root).exists():
            raise CorpusError(f"there is no folder {root}; check `root`")
        self.root = None if root is None else str(base_folder(root))
        self.image_column, self.id_column = image_column, id_column
        self.max_pixels, self.min_side = max_pixels, min_side
        self.reset()

    def reset(self) -> None:
        """Forget which columns held images, and that paths were compared with the root."""
        self._columns: list[str] = []
        self._looked = False

    @property
    def features(self) -> Features:
        """The columns that it adds."""
        from datasets import Features, Value

        kinds = {"image_id": "string", "width": "int32", "height": "int32", "num_bytes": "int64"}
        texts = dict.fromkeys(("sha256", "pixels_sha256", ERROR), "string")
        return Features({name: Value(kind) for name, kind in (kinds | texts).items()})

    def compute(self, rows: Rows, rank: int | None) -> dict[str, Any]:
        """The added columns of rows without an error."""
        root = None if self.root is None else Path(self.root)
        images = [next((c for c in cells if c is not None), None) for cells in self._cells(rows)]
        blank = [None] * len(rows)
        own = rows.values(self.id_column) if self.id_column else blank
        keys, urls = (rows.values(name) if name in rows else blank for name in (KEY, URL))
        self._note_root(images, root)
        added = [
            self._check(cell, self._key(cell, root, *ids), root)
            for cell, *ids in zip(images, own, keys, urls, strict=True)
        ]
        return {name: [row[name] for row in added] for name in self.features}

    def _note_root(self, cells: list[Any], root: Path | None) -> None:
        """Say once that no path of a batch lies below the root, so that the pixels name the images."""
        paths = [path for path in map(path_of, cells) if path and "://" not in path and Path(path).is_absolute()]
        if self._looked or root is None or not paths:
            return
        self._looked = True
        if all(relative_to(Path(path), root) is None for path in paths):
            note(
                f"CheckImages: none of the first {len(paths):,} paths, such as {paths[0]}, lies below the `root`"
                f" {root}; name the folder that holds them, or leave it out"
            )

    def _key(self, cell: Any, root: Path | None, own: Any, key: Any, url: Any) -> str | None:
        if self.id_column:
            return own_id(own)
        return cell_id(cell, root, key, url)

    def _check(self, cell: Any, key: str | None, root: Path | None) -> dict[str, Any]:
        from PIL import Image

        roots = None if root is None else (root, *caches())
        content, problem = (cell, None) if isinstance(cell, Image.Image) else read_cell(cell, root, roots)
        if problem is None and key == "":
            problem = no_id(self.id_column)
        try:
            if problem is not None:
                raise ImageRejectedError(*problem)
            assert content is not None
            checked = check_image(content, key, max_pixels=self.max_pixels, min_side=self.min_side)
        except ImageRejectedError as error:
            empty = {"width": 0, "height": 0, "num_bytes": 0, "sha256": "", "pixels_sha256": ""}
            return {"image_id": key or "", **empty, ERROR: format_error(error.reason, error.detail)}
        return {**checked.columns, ERROR: ""}

    def _cells(self, rows: Rows) -> list[tuple[Any, ...]]:
        """The cells that may hold each row's image."""
        if self.image_column is not None:
            return [(cell,) for cell in rows.values(self.image_column)]
        # a streamed batch without an image shows by no value which column is meant
        named = [name for name in ("image", *WEBDATASET_IMAGES) if name in rows]
        columns = image_columns(rows) or self._columns or named
        self._columns = choose_image_columns(columns, rows.names, "the data set")
        return list(zip(*(rows.values(name) for name in self._columns), strict=True))
