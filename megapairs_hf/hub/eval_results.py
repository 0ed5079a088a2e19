"""Result records, one number each, as cards and `push results` show them: in percent, one spelling per metric.

What surprises: a file's values may be shares or percent. Each record's `unit` says which; records of other tools that
say nothing are in percent where any of their values or intervals is above one, and shares otherwise.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import MANIFEST, PLAN, open_artifact
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.artifacts.workspace import RECORD_KEYS, RESULTS
from megapairs_hf.core.errors import HubError
from megapairs_hf.evaluation.comparability import caveats
from megapairs_hf.evaluation.metrics import metric_label
from megapairs_hf.evaluation.results_table import BASE, TRAINED
from megapairs_hf.hub.secret_scan import public

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.hub.config import PushConfig

FACTORS = {"fraction": 100, "percent": 1}


def read_records(path: PathLike) -> list[dict[str, Any]]:
    """The records of a `results` folder or of one file of JSON lines.

    Raises:
        HubError: there is no such file, or a line is no record.
        IncompleteArtifactError: the evaluation is not finished.
    """
    file = str(path)
    if not file.endswith(".jsonl"):
        if any(storage.exists(join(path, name)) for name in (MANIFEST, PLAN)):
            open_artifact(path, "results")
        file = join(path, RESULTS)
    if not storage.exists(file):
        raise HubError(f"{path} holds no {RESULTS}; name the folder or the file that `megapairs eval` wrote")
    records = []
    for number, line in enumerate(storage.read_bytes(file).decode("utf-8", errors="replace").split("\n"), start=1):
        if line.strip():
            records.append(_record(line, f"{file} line {number}"))
    if not records:
        raise HubError(f"{file} is empty; run `megapairs eval` first")
    return in_percent(records)


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise HubError(f"{where} is not JSON; run the evaluation again") from error
    fields = record if isinstance(record, dict) else {}
    lacking = [key for key in RECORD_KEYS if key != "value" and not (isinstance(fields.get(key), str) and fields[key])]
    lacking += [] if "value" in fields else ["value"]
    if lacking:
        raise HubError(f"{where} has no `{lacking[0]}`; run the evaluation again")
    value = record["value"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise HubError(f"{where} has the value {value!r}, which is no number; run the evaluation again")
    return dict(record)


def in_percent(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same records with values in percent and metrics spelled as ours (`recall@1`, `map@5`)."""
    silent = [r for r in records if r.get("unit") not in FACTORS]
    above = any(edge > 1 for r in silent for edge in (r["value"], *(r.get("ci95") or ())))
    converted = []
    for r in records:
        factor = FACTORS.get(str(r.get("unit")), 1 if above else 100)
        record = {**r, "metric": spelled(str(r["metric"])), "value": round(r["value"] * factor, 4), "unit": "percent"}
        if r.get("ci95"):
            record["ci95"] = [round(edge * factor, 4) for edge in r["ci95"]]
        converted.append(record)
    return converted


def of_wholes(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of whole benchmarks; one of a category, a task or an aspect would stand under the whole's name.

    Raises:
        HubError: all records are of groups.
    """
    wholes = [record for record in records if not record.get("group")]
    if not wholes:
        raise HubError("every record is of a category or a task only; measure the whole benchmark")
    return wholes


def as_shares(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same records as `comparison` reads them, with values from 0 to 1."""
    return [
        {k: v for k, v in r.items() if k != "unit"}
        | ({"ci95": [edge / 100 for edge in r["ci95"]]} if r.get("ci95") else {})
        | {"value": r["value"] / 100, "model": last_part(str(r["model"])), "options": shown_options(r)}
        for r in in_percent(records)
    ]


def shown_options(record: dict[str, Any]) -> dict[str, Any]:
    """The options that were set; one that is called like a key of the record gets another name beside it."""
    options = public(record.get("options") or {})
    return {f"{key} by" if key in record else key: value for key, value in options.items()}


def last_part(name: str) -> str:
    """A model's name without the folders of this machine; a Hub id as it is."""
    return name.rstrip("/").rsplit("/", 1)[-1] if name.startswith(("/", ".", "~")) else name


def spelled(metric: str) -> str:
    """`R@1`, `recall@1` and `Recall@1` under one name, likewise `mAP@5`; any other metric as it is."""
    match = re.fullmatch(r"(recall|r|map)@(\d+)", metric, re.IGNORECASE)
    if match is None:
        return metric
    return f"{'map' if match[1].lower() == 'map' else 'recall'}@{match[2]}"


def shown_metric(metric: str) -> str:
    """A metric as people write it: `R@1`, `mAP@5`."""
    return metric_label(metric)


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
    """Records in percent as entries of a card's `model-index`; of whole benchmarks, not of their groups."""
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
            metric_name=f"{shown_metric(str(record['metric']))} ({'; '.join([record['strategy'], *caveats(record)])})",
            metric_value=record["value"],
            metric_args={k: record[k] for k in ("queries", "gallery", "ties", "ci95") if record.get(k)}
            | ({"options": options} if (options := public(record.get("options") or {})) else {})
            or None,
        )
        for record in records
        if not record.get("group")
    ]


def slug(text: str) -> str:
    """A name in the letters of a file name or an identifier."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
