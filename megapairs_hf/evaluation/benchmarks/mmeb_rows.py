"""The rows of MMEB's data sets, from a copy on disk or from the Hub.

A copy is a folder of parquet files as on the Hub, or one file of JSON or JSON lines. What surprises: a folder that has
rows of any data set is taken for all, so that a data set that is missing there is an error and not a download.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import read_table
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.core.errors import ArtifactError, EvaluationError
from megapairs_hf.evaluation.benchmarks.annotations import parse_json

if TYPE_CHECKING:
    from megapairs_hf.evaluation.benchmarks.spec import BenchmarkSpec

# a copy of the rows of a data set: its folder of parquet files, or one of these files
SUFFIXES = ("", ".jsonl", ".json")
REPO = "TIGER-Lab/MMEB-eval"


def rows_path(name: str, data: str | Path) -> Path:
    """Where a copy of the rows of a data set is: its folder or file; the folder where there is none."""
    paths = [Path(data) / (name + suffix) for suffix in SUFFIXES]
    return next((path for path in paths if path.exists()), paths[0])


def rows_source(spec: BenchmarkSpec, data: PathLike) -> str:
    """The folder that has rows of any data set, else the Hub id."""
    files = (join(data, name + suffix) for name in spec.all_parts for suffix in SUFFIXES)
    return str(data) if any(map(storage.exists, files)) else spec.source


def read_rows(name: str, spec: BenchmarkSpec, source: str) -> list[dict[str, Any]]:
    """The rows of a data set, from a copy on disk or from the Hub.

    Raises:
        EvaluationError: they are not there, or are cut off.
    """
    if not storage.exists(source):
        return _hub_rows(name, spec)
    folder = join(source, name)
    files = [join(folder, file) for file in storage.list_names(folder) if file.endswith(".parquet")]
    tests = [file for file in files if file.rsplit("/", 1)[-1].startswith("test")]
    try:
        if files:
            table = pa.concat_tables([read_table(file) for file in tests or files])
            return [dict(row) for row in table.to_pylist()]
        for suffix in SUFFIXES[1:]:
            if storage.exists(folder + suffix):
                return _json_rows(folder + suffix)
    except (ArtifactError, OSError, ValueError) as error:
        raise EvaluationError(f"the rows of {name} in {source} are cut off or broken; get them again") from error
    raise EvaluationError(
        f"{source} has no rows of {name} ({name}/test-*.parquet, {name}.jsonl or {name}.json);"
        f" download {spec.source} there, or name fewer `parts`"
    )


def _json_rows(path: str) -> list[dict[str, Any]]:
    """The rows of a file of JSON or JSON lines; a byte order mark is passed over."""
    content = storage.read_bytes(path)
    if path.endswith(".json"):
        loaded = parse_json(content, path)
        if not isinstance(loaded, list):
            raise EvaluationError(f"{path} must hold a JSON list of rows; get it again")
        return loaded
    # a text may hold what Unicode calls the end of a line
    lines = content.decode("utf-8-sig").split("\n")
    return [parse_json(line.encode(), f"{path}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]


def _hub_rows(name: str, spec: BenchmarkSpec) -> list[dict[str, Any]]:
    from datasets import load_dataset
    from huggingface_hub.errors import HfHubHTTPError

    try:
        loaded = load_dataset(spec.source, name, split=spec.split, revision=spec.revision)
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise EvaluationError(
            f"cannot load {name} of {spec.source} at {spec.revision} ({type(error).__name__}); check the network and"
            " the id, accept the data set's terms on its page if it has any, or put a copy of the rows into --data"
        ) from error
    return [dict(row) for row in loaded]
