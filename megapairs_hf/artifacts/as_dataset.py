"""Files of tables as a `datasets.Dataset`.

Arrow shards are mapped where they lie; parquet is never mapped, so `datasets` writes it to its cache once, under a
name that holds the artifact's fingerprint: a folder made again is not read stale.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.tables import is_arrow
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.formatting import one_line
from megapairs_hf.core.yaml_values import check_front_matter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from datasets import Dataset


def open_dataset(files: Sequence[str], name: str) -> Dataset:
    """The rows of parquet files or Arrow streams, all of one format.

    Args:
        files: at least one, each with rows.
        name: what tells this content from any other in the cache of `datasets`.

    Raises:
        ArtifactError: a file cannot be read.
    """
    if all(is_arrow(file) and storage.is_local(file) for file in files):
        return _mapped(files)
    local = [str(storage.local(file)) if storage.is_local(file) else file for file in files]
    reader = "arrow" if is_arrow(files[0]) else "parquet"
    loaded: Dataset = load(reader, name=re.sub(r"[^\w\-]", "-", name), data_files={"train": local}, split="train")
    return loaded


def _mapped(files: Sequence[str]) -> Dataset:
    from datasets import Dataset, concatenate_datasets

    parts = [Dataset.from_file(str(storage.local(file))) for file in files]
    return concatenate_datasets(parts) if len(parts) > 1 else parts[0]


def check_card(source: str) -> None:
    """Refuse a folder whose card `datasets` would read for hours.

    Raises:
        ArtifactError: its metadata cannot be read, or stand for too much.
    """
    card = Path(source) / "README.md"
    try:
        if card.is_file():
            check_front_matter(card.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read {card}: {one_line(error)}; correct its metadata, or delete it") from error


def load(source: str, **arguments: Any) -> Any:
    """`datasets.load_dataset`, whatever goes wrong in one sentence.

    Raises:
        ArtifactError: there is no such data set, or a file of it cannot be read.
    """
    import datasets

    what = arguments.pop("what", source)
    check_card(source)
    try:
        return datasets.load_dataset(source, **arguments)
    except Exception as error:  # datasets raises whatever its reader, parser or connection raises
        reason = " ".join(str(error.__cause__ or error).split())[:300] or type(error).__name__
        raise ArtifactError(f"cannot open the data set {what}: {reason}; check its name, split and files") from error
