"""Result records, one number each, as cards and `push results` show them.

What surprises: records hold fractions, and only what is shown is in percent.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.workspace import read_results
from megapairs_hf.core.errors import HubError
from megapairs_hf.evaluation.comparability import caveats
from megapairs_hf.evaluation.metrics import metric_label
from megapairs_hf.evaluation.results_table import BASE, TRAINED
from megapairs_hf.hub.secret_scan import public

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.hub.config import PushConfig

UNIT = "fraction"


def read_records(path: PathLike) -> list[dict[str, Any]]:
    """The records of a `results` folder or of one file of JSON lines, in fractions.

    Raises:
        ArtifactError: there is no such file, or a line is no record.
        HubError: it has no line, or another unit.
        IncompleteArtifactError: the evaluation is not finished.
    """
    records = read_results(path)
    if not records:
        raise HubError(f"{path} is empty; run `megapairs eval` first")
    for number, record in enumerate(records, start=1):
        if record.get("unit") != UNIT:
            unit = record.get("unit")
            raise HubError(f"{path} line {number} has the unit {unit!r}, not {UNIT!r}; run the evaluation again")
    return records


def percent(value: float) -> float:
    """A fraction in percent, without the noise of floating point."""
    return round(100 * value, 4)


def of_wholes(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of whole benchmarks; one of a category, a task or an aspect would stand under the whole's name.

    Raises:
        HubError: all records are of groups.
    """
    wholes = [record for record in records if not record.get("group")]
    if not wholes:
        raise HubError("every record is of a category or a task only; measure the whole benchmark")
    return wholes


def public_records(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same records without folders of this machine, for tables."""
    return [
        {key: value for key, value in record.items() if key != "unit"}
        | {"model": last_part(str(record["model"])), "options": shown_options(record)}
        for record in records
    ]


def shown_options(record: dict[str, Any]) -> dict[str, Any]:
    """The options that were set; one that is called like a key of the record gets another name beside it."""
    options = public(record.get("options") or {})
    return {f"{key} by" if key in record else key: value for key, value in options.items()}


def last_part(name: str) -> str:
    """A model's name without the folders of this machine; a Hub id as it is."""
    return name.rstrip("/").rsplit("/", 1)[-1] if name.startswith(("/", ".", "~")) else name


def model_name(records: Sequence[dict[str, Any]]) -> str:
    """By which name the result records call the model that is pushed: `trained`, or the only one that was measured."""
    names = {str(record["model"]) for record in records} - {BASE}
    return TRAINED if TRAINED in names or len(names) != 1 else names.pop()


def records_of_model(records: Sequence[dict[str, Any]], config: PushConfig) -> list[dict[str, Any]]:
    """The records of the model that is pushed.

    Raises:
        HubError: it is not clear which one that is, or it was not measured.
    """
    name = config.model or model_name(records)
    own = [record for record in records if str(record["model"]) == name]
    if not own:
        names = ", ".join(sorted({str(record["model"]) for record in records}))
        raise HubError(f"no result record is of a model called {name!r}; name one of {names} with --model")
    return own


def eval_results(records: Sequence[dict[str, Any]]) -> list[Any]:
    """Records as entries of a card's `model-index`, in percent; of whole benchmarks, not of their groups."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="information-retrieval",
            task_name="Composed image retrieval",
            dataset_type=str(record.get("dataset") or slug(str(record["benchmark"]))),
            dataset_name=str(record["benchmark"]),
            dataset_split=record.get("split") or None,
            dataset_revision=record.get("dataset_revision") or None,
            metric_type=str(record["metric"]).replace("@", "_at_"),
            # the Hub shows the name and the value, and nothing else of the record
            metric_name=f"{metric_label(str(record['metric']))} ({'; '.join([record['strategy'], *caveats(record)])})",
            metric_value=percent(record["value"]),
            metric_args={k: record[k] for k in ("queries", "gallery", "ties") if record.get(k)}
            | ({"ci95": [percent(edge) for edge in record["ci95"]]} if record.get("ci95") else {})
            | ({"options": options} if (options := public(record.get("options") or {})) else {})
            or None,
        )
        for record in records
        if not record.get("group")
    ]


def slug(text: str) -> str:
    """A name in the letters of a file name or an identifier."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
