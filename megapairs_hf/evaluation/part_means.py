"""The unweighted mean over the parts of a benchmark: of one run, and of parts that were measured apart.

What surprises: parts are joined only where model, strategy and ranking rule are one; prompts may differ, since a task
of GeneCIS may have a text of its own. The interval of joined parts takes them as independent, which they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.evaluation.benchmarks.spec import PARTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Record = Mapping[str, Any]
# options that count something, and so add up over parts
COUNTS = {"missing_images", "queries_left_out", "repeated_candidates", "requests", "unusable", "unusable_rerank"}
# options that must be equal in parts that are joined
RULES = ("gallery", "remove_reference", "join", "text", "dtype", "rerank", "reranker")
DIGITS = 6


def mean_options(options: Mapping[str, Record], parts: Sequence[str]) -> dict[str, Any]:
    """The options of a mean: counts added up, what is equal once, what differs by part.

    Args:
        options: of the parts that are there.
        parts: all of them; where some are absent, `partial` says so.
    """
    joined: dict[str, Any] = {}
    for key in dict.fromkeys(key for entries in options.values() for key in entries):
        values = {part: entries[key] for part, entries in options.items() if key in entries}
        if key in COUNTS:
            joined[key] = sum(values.values())
        elif key == "partial":
            joined[key] = "; ".join(f"{part}: {value}" for part, value in values.items())
        elif len(values) == len(options) and len({str(value) for value in values.values()}) == 1:
            joined[key] = next(iter(values.values()))
        else:
            joined[key] = values
    if len(options) < len(parts):
        partial = f"{len(options)} of {len(parts)}: {', '.join(options)}"
        joined["partial"] = f"{partial}; {joined['partial']}" if "partial" in joined else partial
    return joined | {"mean": "unweighted over " + ", ".join(options)}


def join_parts(records: Mapping[str, Sequence[Record]]) -> dict[str, list[dict[str, Any]]]:
    """Runs that measured other parts of one benchmark with one model, as one run with their mean.

    Args:
        records: by folder. Runs that have a part in common stay apart.

    Returns:
        By folder; the joined records stand in the first folder of each.
    """
    joined: dict[str, list[dict[str, Any]]] = {folder: [dict(r) for r in some] for folder, some in records.items()}
    runs: dict[tuple[str, ...], dict[str, list[dict[str, Any]]]] = {}
    for folder, some in joined.items():
        for record in some:
            if record["benchmark"] in PARTS:
                runs.setdefault(_run_of(record), {}).setdefault(folder, []).append(record)
    for by_folder in runs.values():
        of_parts = [record for some in by_folder.values() for record in some if record.get("group")]
        names = [{r["group"] for r in some if r.get("group")} for some in by_folder.values()]
        if len(by_folder) < len(("one", "another")) or sum(map(len, names)) > len(set().union(*names)):
            continue
        for folder, some in by_folder.items():
            joined[folder] = [record for record in joined[folder] if not any(record is one for one in some)]
        joined[next(iter(by_folder))] += [*_means(of_parts), *of_parts]
    return joined


def _run_of(record: Record) -> tuple[str, ...]:
    options = record.get("options") or {}
    rules = [options.get(name) for name in RULES]
    return tuple(
        map(
            str,
            (record["benchmark"], record["split"], record["model"], record.get("revision"), record["strategy"], rules),
        )
    )


def _means(parts: Sequence[Record]) -> list[dict[str, Any]]:
    """A record of the whole for each metric."""
    means = []
    for metric in dict.fromkeys(record["metric"] for record in parts):
        order = PARTS[parts[0]["benchmark"]]
        some = sorted((r for r in parts if r["metric"] == metric), key=lambda r: order.index(r["group"]))
        values = np.array([record["value"] for record in some])
        edges = np.array([record["ci95"] for record in some])
        # half widths of independent parts add up as squares
        widths = np.sqrt(((edges - values[:, None]) ** 2).sum(0)) / len(some)
        interval = [round(float(edge), DIGITS) for edge in values.mean() + widths * (-1, 1)]
        counts = {name: sum(record[name] for record in some) for name in ("queries", "gallery", "ties")}
        options = mean_options({record["group"]: record["options"] for record in some}, order)
        value = round(float(values.mean()), DIGITS)
        means.append({**some[0], **counts, "group": None, "value": value, "ci95": interval, "options": options})
    return means
