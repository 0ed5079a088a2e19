"""An image in a cell of a data set: which column it is in, its file's bytes, and the id that its row gets.

The stage's sources and `CheckImages` both read cells here, so a row has the same id in a notebook and on the command
line. What surprises: a bare file name beside an image's bytes is no id, because `datasets` keeps only the last part of
a path there, so `cats/1.jpg` and `dogs/1.jpg` would become one; such an image is named by its pixels.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import CorpusError
from megapairs_hf.core.image_formats import NOT_OPENED, OPENED
from megapairs_hf.core.image_paths import read_file, safe_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.core.row_function import Rows

# members of a tar that hold an image, the frequent ones first; what is not opened only where nothing else is there
WEBDATASET_IMAGES = tuple(
    suffix.removeprefix(".")
    for formats in (OPENED, NOT_OPENED)
    for suffixes in formats.values()
    for suffix in suffixes
)
KEY, URL = "__key__", "__url__"


def base_folder(root: str | os.PathLike[str]) -> Path:
    """The folder that paths are relative to: the root itself, or the folder of a root that is a file."""
    path = Path(root)
    return path if path.is_dir() else path.parent


def local_path(path: str, root: Path | None) -> Path:
    """Where a path of a cell is on this disk: below the root, unless it is absolute or begins where we are."""
    if root is None or Path(path).is_absolute():
        return Path(path)
    # unlike Path.exists, these do not raise for a name that is too long or has a zero byte
    elsewhere = os.path.exists(path) and not os.path.exists(root / path)  # noqa: PTH110
    return Path(path) if elsewhere else root / path


def read_cell(
    cell: Any, root: Path | None, roots: Sequence[Path] | None
) -> tuple[bytes | None, tuple[str, str] | None]:
    """The file's bytes of an image.

    Args:
        cell: bytes, a struct of `bytes` and `path`, or a path.
        root: the folder that relative paths are below; None for the working directory.
        roots: the folders that a struct's path may lead to; None for any, as `datasets` reads them. A path that stands
            in a column of texts must be inside one of them, or inside `root`.

    Returns:
        The bytes, and why there are none: a reason and its detail.
    """
    if isinstance(cell, str):
        return _read(cell, root, roots or ([] if root is None else [root]))
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if isinstance(content, (bytes, bytearray, memoryview)):
        return bytes(content), None
    if content is None and path:
        return _read(path, root, roots)
    instead = "neither bytes nor a path" if content is None else f"a {type(content).__name__}"
    return None, ("no_image", f"there is {instead}")


def _read(path: str, root: Path | None, roots: Sequence[Path] | None) -> tuple[bytes | None, tuple[str, str] | None]:
    # a URL is no path of this disk, and stays as it is for the message
    return read_file(path if "://" in path else str(local_path(path, root)), roots)


def cell_id(cell: Any, root: Path | None, key: Any = None, url: Any = None) -> str | None:
    """The id of a row, as far as it stands in the row.

    Args:
        cell: as in `read_cell`.
        root: the folder that ids are relative to.
        key: `__key__` of a WebDataset's sample.
        url: `__url__` of a WebDataset's sample: its tar.

    Returns:
        `shard/__key__`, or the image's path relative to `root`; None where only the pixels can name it.
    """
    if isinstance(key, str) and isinstance(url, str):
        return f"{safe_name(shard_name(url, root))}/{key}"
    path = path_of(cell)
    if not path or "://" in path:
        return None
    embedded = isinstance(cell, dict) and cell.get("bytes") is not None
    if embedded and not Path(path).is_absolute():
        name = os.path.normpath(path)
        return PurePosixPath(name).as_posix() if "/" in name and not name.startswith("..") else None
    return relative_to(local_path(path, root), root)


def path_of(cell: Any) -> Any:
    """The path that a cell names; None where it names none."""
    return cell if isinstance(cell, str) else cell.get("path") if isinstance(cell, dict) else None


def own_id(value: Any) -> str:
    """The id that stands in a cell; empty for null, NaN and white space, which are none."""
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return ""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return text.encode("utf-8", "backslashreplace").decode() if text.strip() else ""


def relative_to(path: Path, root: Path | None) -> str | None:
    """A path relative to the root, without a root to the working directory; None for one outside."""
    if root is None:
        name = os.path.normpath(path)
        return None if path.is_absolute() or name.startswith("..") else name
    # as it is written, or as the links lead: `datasets` follows those of the folder that it is given
    for follow in (os.path.normpath, os.path.realpath):
        try:
            whole, base = Path(follow(path.absolute())), Path(follow(root.absolute()))
        except ValueError:  # a zero byte
            return None
        if whole.is_relative_to(base):
            return whole.relative_to(base).as_posix()
    return None


def shard_name(url: str, root: Path | None) -> str:
    """The name of a tar without `.tar`: its path relative to the root, or its last part where it lies elsewhere."""
    inside = None if "://" in url or root is None else relative_to(local_path(url, root), root)
    # `hf://…/0.tar`, or a chain such as `gzip://0.tar::https://…/0.tar.gz?download=true`
    name = inside or PurePosixPath(url.rsplit("::", maxsplit=1)[-1].split("?", maxsplit=1)[0]).name
    return name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar")


def image_columns(rows: Rows) -> list[str]:
    """The columns that hold images, by their types or, where a batch has none, by their first values."""
    structs, files = [], []
    for name in rows.names:
        if rows.table is not None:
            import pyarrow as pa

            kind = rows.table.schema.field(name).type
            fields = {kind.field(i).name for i in range(kind.num_fields)} if pa.types.is_struct(kind) else set()
            is_file = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        else:
            first = next((value for value in rows.values(name) if value is not None), None)
            fields = (
                set(first) if isinstance(first, dict) else {"bytes", "path"} if hasattr(first, "getexif") else set()
            )
            is_file = isinstance(first, bytes)
        if fields == {"bytes", "path"}:
            structs.append(name)
        elif is_file:
            files.append(name)
    return structs or files


def choose_image_columns(columns: Sequence[str], known: Sequence[str], source: str) -> list[str]:
    """The only column with images, or all image members of a WebDataset, of which each sample has one.

    Raises:
        CorpusError: there is none, or there are several to choose from.
    """
    if not columns:
        raise CorpusError(
            f"no column of {source} holds images; name one with `image_column` (columns: {', '.join(known)})"
        )
    if len(columns) > 1 and not (KEY in known and set(columns) <= set(WEBDATASET_IMAGES)):
        raise CorpusError(f"several columns hold images ({', '.join(columns)}); choose one with `image_column`")
    return list(columns)
