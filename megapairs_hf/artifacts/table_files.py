"""Tables from files: parquet, CSV and JSON lines as a `Dataset` in the columns of an artifact kind.

Parquet goes through the cache of `datasets`, which maps it into memory; CSV and JSON lines are read as text, because
every reader that guesses types turns the id `007` into 7. What surprises: only the line feed ends a line of JSON; a
caption may hold any other character that ends lines elsewhere.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import hashlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.as_dataset import load
from megapairs_hf.artifacts.conform import REQUIRED, check_columns, conform, kind_schema
from megapairs_hf.artifacts.fingerprints import sha256_of
from megapairs_hf.artifacts.storage import join
from megapairs_hf.core.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datasets import Dataset

FORMATS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
# of a file that is named; in a folder it is mostly settings
NAMED_ONLY = {".json": "jsonl"}
BATCH = 10_000
LONGEST_CELL = 1 << 30


def suffix(path: str) -> str:
    """The ending of a file's name, in small letters."""
    return Path(path).suffix.lower()


def table_files(path: str) -> list[str]:
    """The files of tables at a path: the file itself, or those directly in a folder; none where there are none.

    Raises:
        ArtifactError: a folder holds several formats, or a file is of another.
    """
    names = storage.list_names(path)
    if storage.exists(path) and not names and not storage.is_folder(path):
        if suffix(path) not in FORMATS | NAMED_ONLY:
            raise ArtifactError(f"{path} is no table; name a {', '.join(FORMATS)} file, or a folder of them")
        return [path]
    names = [name for name in names if name[0] not in "._" and suffix(name) in FORMATS]
    formats = {FORMATS[suffix(name)] for name in names}
    if len(formats) > 1:
        raise ArtifactError(f"{path} holds files of several formats ({', '.join(sorted(formats))}); name one file")
    return [join(path, name) for name in names]


def check_file(path: str) -> None:
    """Refuse the name of a table that is not there.

    Raises:
        ArtifactError: there is no such file; the message names the nearest one in its folder.
    """
    if suffix(path) not in FORMATS | NAMED_ONLY or storage.exists(path):
        return
    folder = storage.parent(path) or "."
    if storage.HUB_ID.fullmatch(path) and not storage.exists(folder):
        return
    near = difflib.get_close_matches(Path(path).name, storage.list_names(folder), n=1)
    raise ArtifactError(f"there is no file {path}; " + (f"did you mean {near[0]!r}?" if near else "check the path"))


def format_of(file: str) -> str:
    """`parquet`, `csv` or `jsonl`."""
    return (FORMATS | NAMED_ONLY)[suffix(file)]


def read_files(files: Sequence[str], kind: str, what: str) -> tuple[Dataset, str]:
    """The rows of files, and the fingerprint of the files.

    Args:
        files: of one format.
        kind: of artifact.
        what: where they are from, for errors.

    Raises:
        SchemaMismatchError: a column is missing, or a value does not fit its column.
        ArtifactError: a file cannot be read.
    """
    digest = hashlib.sha256("\n".join(sha256_of(file) for file in files).encode()).hexdigest()[:16]
    if format_of(files[0]) == "parquet":
        local = [str(storage.local(file)) if storage.is_local(file) else file for file in files]
        data_files = {"train": local}
        return load("parquet", name=f"{kind}-{digest}", data_files=data_files, split="train", what=what), digest
    from datasets import Dataset

    tables = [table for file in files for table in _text_tables(file, kind, what if len(files) == 1 else file)]
    if not tables:
        raise ArtifactError(f"{what} has no rows; name another file")
    return Dataset(pa.concat_tables(tables, promote_options="default")), digest


def _text_tables(file: str, kind: str, what: str) -> Iterator[pa.Table]:
    rows = _csv_rows(file, what) if format_of(file) == "csv" else _json_rows(file, what)
    batch: list[dict[str, Any]] = []
    first = 0
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield _table(batch, kind, what, first)
            first += BATCH
            batch = []
    if batch:
        yield _table(batch, kind, what, first)


def _table(rows: list[dict[str, Any]], kind: str, what: str, first: int) -> pa.Table:
    names = list(dict.fromkeys(name for row in rows for name in row))
    check_columns(names, kind, what)
    schema = _text_schema(kind)
    texts = {name for name in schema.names if pa.types.is_string(schema.field(name).type)}
    columns = {}
    for name in [name for name in names if name in schema.names]:
        values = [row.get(name) for row in rows]
        if name in texts:
            values = [None if value is None else value if isinstance(value, str) else str(value) for value in values]
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowException, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ArtifactError(f"{what} has values of several types in {name!r} ({reason}); change them") from error
    table = conform(pa.table(columns), schema, what, first=first)
    # facts of images, for whoever names them; as texts, since the next rows may have other types
    facts = [name for name in names if name and name not in schema.names] if kind == "corpus" else []
    for name in facts:
        table = table.append_column(name, pa.array([_as_text(row.get(name)) for row in rows], pa.string()))
    return table


def _as_text(value: Any) -> str | None:
    text = value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    # half a surrogate is in no Arrow text
    return None if text is None else text.encode("utf-8", "replace").decode()


def _text_schema(kind: str) -> pa.Schema:
    embedding = pa.schema([("embedding", pa.list_(pa.float32()))])
    return kind_schema(kind, embedding if "embedding" in REQUIRED[kind] else pa.schema([]))


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Let one cell hold a long list; the limit is the whole process's, and goes back to what it was."""
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _csv_rows(file: str, what: str) -> Iterator[dict[str, Any]]:
    """The rows of a CSV or TSV file, every cell as text."""
    with storage.open_read(file) as raw, _long_fields():
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
        reader = csv.DictReader(text, delimiter="\t" if suffix(file) == ".tsv" else ",", restkey="", strict=True)
        try:
            for row in reader:
                if "" in row and isinstance(row[""], list):
                    raise ArtifactError(
                        f"{what} line {reader.line_num} has more cells than there are columns; put texts with commas"
                        " into double quotes"
                    )
                yield row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ArtifactError(f"{what} line {reader.line_num + 1} is no CSV ({error}); correct it") from error


def _json_rows(file: str, what: str) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    with storage.open_read(file) as raw:
        # a file of bytes is cut at "\n" alone
        for number, line in enumerate(raw, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ArtifactError(f"{what} line {number} is not JSON ({error}); correct it") from error
            if not isinstance(row, dict):
                raise ArtifactError(f"{what} line {number} is no JSON object; write one object a line")
            yield row
