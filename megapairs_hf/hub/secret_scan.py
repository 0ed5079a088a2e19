"""The last look before an upload: no token and no folder of this machine in any text that goes out.

Texts are files of text and the columns of text of the shards. What surprises: a vocabulary, and the captions and
instructions of a data set, are searched for tokens only. They are pieces of other people's texts, and paths are among
them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megapairs_hf.artifacts.integrity import reading
from megapairs_hf.core.errors import HubError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping

TEXTS = frozenset({".md", ".json", ".jsonl", ".py", ".yaml", ".yml", ".txt", ".jinja", ".csv"})
VOCABULARY = re.compile(r"(.*/)?(tokenizer\.json|vocab\.\w+|merges\.txt|added_tokens\.json)")
# the Hub's user and organization tokens, and the signed ones
TOKEN = re.compile(r"\b(hf|api_org|hf_jwt)_[A-Za-z0-9]{20,}")
FOLDER = re.compile(
    r"(?<![\w.:/~\-])/(?:home|Users|root|tmp|mnt|media|srv|scratch|workspace|private|var/folders|nfs|gpfs|lustre)"
    r"/[\w.\-]+|\b[A-Za-z]:\\+Users\\+\w+|\bfile://"
)
REFUSAL = "holds what looks like a token of the Hub; remove it, revoke the token, and push again"
AGAIN = "put back a good copy in the folder that it comes from, and push again"
PRIVATE = frozenset({"base_url", "endpoint", "url", "api_key", "token"})
WITHHELD = "(withheld)"
PATH_LIKE = re.compile(r"(/|~|\.{1,2}/|file://|[A-Za-z]:\\)")


def public(value: Any) -> Any:
    """A setting without what was left unset, and without the folders and the servers of whoever ran it."""
    if isinstance(value, dict):
        set_values = {key: inner for key, inner in value.items() if inner is not None and inner not in ([], {}, "")}
        return {key: WITHHELD if key in PRIVATE and inner else public(inner) for key, inner in set_values.items()}
    if isinstance(value, list):
        return [public(inner) for inner in value]
    if isinstance(value, str) and PATH_LIKE.match(value):
        return value.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    return value


def check_public(folder: Path, names: Iterable[str], known: Mapping[str, Container[str]] | None = None) -> None:
    """Refuse texts with a token or a folder of this machine.

    Args:
        folder: the prepared folder.
        names: its files.
        known: lines of a file that were public before, which are passed over.

    Raises:
        HubError: one does; the message names file and line, and never shows a token.
    """
    for name in names:
        if Path(name).suffix not in TEXTS:
            continue
        for number, line in enumerate((folder / name).read_text(encoding="utf-8", errors="replace").split("\n"), 1):
            if line not in (known or {}).get(name, ()):
                _check_text(f"{name} line {number}", line, folders=VOCABULARY.fullmatch(name) is None)


def _check_text(where: str, text: str, *, folders: bool) -> None:
    if TOKEN.search(text):
        raise HubError(f"{where} {REFUSAL}")
    home = str(Path.home())
    match = FOLDER.search(text) if folders else None
    folder = match.group() if match else home if folders and len(home) > len("/root") and home in text else ""
    if folder:
        raise HubError(f"{where} names a folder of this machine ({folder}); remove it and push again")


def check_shards(folder: Path, names: Iterable[str]) -> None:
    """Refuse shards with a token in a column of text.

    Args:
        folder: the prepared folder.
        names: its files.

    Raises:
        HubError: one has; the message names file and column, and never shows a token.
    """
    for name in names:
        for batch in _text_batches(folder / name):
            for column, values in zip(batch.schema.names, batch.columns, strict=True):
                for texts in _texts(values):
                    if pc.any(pc.match_substring_regex(texts, TOKEN.pattern)).as_py():
                        raise HubError(f"{name}, column {column}, {REFUSAL}")


def _text_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The columns of text of a shard, or of a table of an index; of any other file nothing."""
    with reading(str(path), AGAIN):
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            columns = sorted({part for field in file.schema_arrow for part in _text_columns(field.name, field.type)})
            yield from file.iter_batches(batch_size=1000, columns=columns)
        elif path.suffix == ".arrow":
            with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as stream:
                for number in range(stream.num_record_batches):
                    batch = stream.get_batch(number)
                    yield batch.select([field.name for field in batch.schema if list(_text_columns("", field.type))])


def _text_columns(name: str, kind: pa.DataType) -> Iterator[str]:
    """The columns of a parquet file that hold text, without the bytes of the images beside them."""
    if pa.types.is_struct(kind):
        for field in kind:
            yield from _text_columns(f"{name}.{field.name}", field.type)
    elif not (pa.types.is_binary(kind) or pa.types.is_primitive(kind)):
        yield name


def _texts(values: pa.Array) -> Iterator[pa.Array]:
    """The texts in an array, however deep."""
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        yield values
    elif pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        yield from _texts(values.flatten())
    elif pa.types.is_struct(values.type):
        for part in values.flatten():
            yield from _texts(part)
