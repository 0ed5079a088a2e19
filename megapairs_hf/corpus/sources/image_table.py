"""The tables that name a folder's images and their captions: `metadata.csv`, `.jsonl`, `.parquet` and `.json`.

As the ImageFolder of `datasets` reads them: in any subfolder, with `file_name` relative to the table's folder. What
surprises: an image may have several rows, one for each caption, and a CSV may be separated by commas, semicolons or
tabs, whichever gives a column `file_name`.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import CorpusError
from megapairs_hf.core.formatting import one_line
from megapairs_hf.core.image_paths import read_file, safe_name
from megapairs_hf.corpus.captions import decode_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    Rows = list[dict[str, Any]]

FILE_NAME = "file_name"
SEPARATORS = ",;\t|"


def read_tables(
    root: Path, names: Sequence[str], *, follow_links: bool = False, encoding: str | None = None
) -> dict[str, Rows]:
    """The rows of all tables, by the paths of the images relative to the root.

    Args:
        root: the folder of images.
        names: of the tables, relative to it.
        follow_links: read also a table that is a link leading outside.
        encoding: of the tables' texts; None for UTF-8, or UTF-16 with a byte order mark.

    Raises:
        CorpusError: a table cannot be read, has no `file_name`, or two tables name the same image.
    """
    by_folder = Counter(os.path.dirname(name) for name in names)  # noqa: PTH120 - a name may be no valid text
    folder, count = by_folder.most_common(1)[0] if by_folder else ("", 0)
    if count > 1:
        both = " and ".join(safe_name(name) for name in names if os.path.dirname(name) == folder)  # noqa: PTH120
        raise CorpusError(f"there are {both} in {root}; keep one of them")
    tables: dict[str, Rows] = {}
    source: dict[str, str] = {}
    for name in names:
        content, problem = read_file(str(root / name), (root,), follow_links=follow_links)
        if content is None:
            assert problem is not None
            raise CorpusError(f"cannot read the captions of {root}: {problem[1]}")
        for row in read_rows(root / name, content, encoding):
            image = _relative(root, name, row.pop(FILE_NAME))
            if source.setdefault(image, name) != name:
                raise CorpusError(f"{safe_name(image)} is in {source[image]} and {name}; keep it in one of them")
            tables.setdefault(image, []).append(row)
    return tables


def _relative(root: Path, table: str, name: str) -> str:
    """A file's path relative to the root where it is written to be inside, else as the table has it."""
    base = os.path.abspath(root)  # noqa: PTH100 - resolve would follow the links
    whole = os.path.normpath(os.path.join(base, os.path.dirname(table), name))  # noqa: PTH118, PTH120
    return whole[len(base) :].lstrip("/") if whole.startswith(f"{base.rstrip('/')}/") else name


def read_rows(path: Path, content: bytes, encoding: str | None = None, names: Sequence[str] = (FILE_NAME,)) -> Rows:
    """The rows of a table, each with `file_name`.

    Args:
        path: of the table; its suffix says what it is, and one of another suffix is taken for a CSV.
        content: its bytes.
        encoding: of its text; as `read_tables`.
        names: columns that may name the image; the first that is there is called `file_name` in the rows.

    Raises:
        CorpusError: it cannot be read, or a row names no image.
    """
    shown, suffix = safe_name(str(path)), path.suffix.lower()
    if suffix == ".parquet":
        rows = _read_parquet(shown, content)
    else:
        text = decoded(shown, content, encoding)
        if suffix in {".jsonl", ".json"}:
            rows = (_read_jsonl if suffix == ".jsonl" else _read_json)(shown, text)
        else:
            rows = _read_csv(shown, text, names)
    columns = {name for row in rows for name in row}
    column = next((name for name in names if name in columns), names[0])
    for number, row in enumerate(rows, 1):
        name = row.pop(column, None)
        if not isinstance(name, str) or not name.strip():
            known = ", ".join([*([column] if name is not None else []), *map(str, row)])[:200]
            raise CorpusError(f"every row of {shown} must have a `{column}`, and row {number} has {known}; add it")
        row[FILE_NAME] = name
    return rows


def decoded(shown: str, content: bytes, encoding: str | None) -> str:
    """The text of a table.

    Raises:
        CorpusError: it is in another encoding; the sentence names the line.
    """
    text = decode_text(content, encoding)
    if text is not None:
        return text
    if encoding is not None:
        raise CorpusError(f"{shown} is not in the encoding {encoding} that `caption_encoding` names; correct it")
    try:
        content.decode("utf-8-sig")
        line = content[: content.find(b"\0")].count(b"\n") + 1
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
    raise CorpusError(
        f"line {line} of {shown} is not UTF-8 text; save the file as UTF-8, or name its encoding, such as"
        " `caption_encoding: cp1252`"
    )


def _read_jsonl(shown: str, text: str) -> Rows:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            row = parse_json(line, f"line {number} of {shown}")
            if not isinstance(row, dict):
                raise CorpusError(f"line {number} of {shown} must be an object {{…}}; correct it")
            rows.append(row)
    return rows


def _read_json(shown: str, text: str) -> Rows:
    rows = parse_json(text, shown)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise CorpusError(f"{shown} must be a list of objects, [{{…}}, …], with a `file_name` each; correct it")
    return rows


def parse_json(text: str, what: str) -> Any:
    """A JSON text, in which no object has a key twice.

    Raises:
        CorpusError: it is none.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _check_columns([name for name, _ in pairs], what)
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{what} is not valid JSON; correct it") from error


def _read_csv(shown: str, text: str, image_names: Sequence[str]) -> Rows:
    lines = io.StringIO(text, newline="")
    # a first line by which Excel knows the separator
    first = lines.readline()
    hint = first.strip().lower()
    if not (len(hint) == len("sep=;") and hint.startswith("sep=")):
        lines.seek(0)
    separator = _separator(shown, lines, image_names)
    # with an odd number one may stay open, and take in all rows behind it
    reader = csv.reader(lines, delimiter=separator, strict=text.count('"') % 2 == 1)
    try:
        columns = [name.strip() for name in next(reader)]
        _check_columns([name for name in columns if name], shown)
        rows = []
        for fields in reader:
            if len(fields) > len(columns):
                raise CorpusError(
                    f"line {reader.line_num} of {shown} has more fields than the first line; quote texts with commas"
                )
            if fields:
                # a column without a name is the number of the row, as pandas writes it
                rows.append({name: value for name, value in zip(columns, fields, strict=False) if name})
        return rows
    except csv.Error as error:
        raise CorpusError(f"line {reader.line_num} of {shown} cannot be read ({error}); correct its quotes") from error


def _separator(shown: str, lines: io.StringIO, image_names: Sequence[str]) -> str:
    """The one that gives a column `file_name`, or one of these names; the lines stay where they are.

    Raises:
        CorpusError: none does.
    """
    start = lines.tell()
    header = lines.readline()
    lines.seek(start)
    columns: list[str] = []
    for separator in SEPARATORS:
        try:
            names = [name.strip() for name in next(csv.reader([header], delimiter=separator), [])]
        except csv.Error:
            continue
        if set(image_names) & set(names):
            return separator
        columns = names if len(names) > len(columns) else columns
    raise CorpusError(
        f"the first line of {shown} must name the columns, among them `{'` or `'.join(image_names)}`; it has"
        f" {', '.join(columns)[:200] or 'nothing'}"
    )


def _read_parquet(shown: str, content: bytes) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorpusError(
            f"{shown} is no parquet file that can be read ({one_line(error)}); write it again"
        ) from error
    _check_columns(table.column_names, shown)
    rows: Rows = table.to_pylist()
    return rows


def _check_columns(names: Sequence[str], what: str) -> None:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise CorpusError(f"{what} has the column {twice!r} twice; rename or remove one")
