"""MMEB's means: four meta-tasks, in and out of distribution, and all 36; and MMEB measured with one model.

What surprises: VLM2Vec and MegaPairs average data sets, not meta-tasks, so retrieval counts three times as much as
grounding. A mean over fewer data sets or fewer queries says `partial` wherever it is written.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SET = "mmeb/"
# queries of each data set
ROWS = 1000
IND, OOD = "ind", "ood"
# how the model was loaded
LOADED = ("dtype", "attn_implementation", "query_prompt")

# meta-task -> (in distribution, out of distribution)
META_TASKS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "classification": (
        ("ImageNet-1K", "N24News", "HatefulMemes", "VOC2007", "SUN397"),
        ("Place365", "ImageNet-A", "ImageNet-R", "ObjectNet", "Country211"),
    ),
    "vqa": (
        ("OK-VQA", "A-OKVQA", "DocVQA", "InfographicsVQA", "ChartQA", "Visual7W"),
        ("ScienceQA", "VizWiz", "GQA", "TextVQA"),
    ),
    "retrieval": (
        (
            "VisDial",
            "CIRR",
            "VisualNews_t2i",
            "VisualNews_i2t",
            "MSCOCO_t2i",
            "MSCOCO_i2t",
            "NIGHTS",
            "WebQA",
        ),
        ("FashionIQ", "Wiki-SS-NQ", "OVEN", "EDIS"),
    ),
    "grounding": (("MSCOCO",), ("RefCOCO", "RefCOCO-Matching", "Visual7W-Pointing")),
}
TASKS: dict[str, tuple[str, str]] = {
    name: (meta, where)
    for meta, sides in META_TASKS.items()
    for where, names in zip((IND, OOD), sides, strict=True)
    for name in names
}


def known_name(name: str) -> str:
    """The name itself.

    Raises:
        EvaluationError: MMEB has no such data set; the nearest is named.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name.replace("_", "-"), list(TASKS), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else "known: " + ", ".join(TASKS)
        raise EvaluationError(f"MMEB has no data set {name!r}; {hint}")
    return name


def mmeb_means(values: Mapping[str, float], counts: Mapping[str, int] | None = None) -> dict[str, tuple[float, str]]:
    """Means over data sets: the four meta-tasks, in and out of distribution, and all.

    Args:
        values: precision@1 of each data set.
        counts: queries of each; where one has not 1,000, its means are partial too.

    Returns:
        By `classification`, `vqa`, `retrieval`, `grounding`, `ind`, `ood`, `all`: the plain mean over data sets, and
        a label that is empty only for the whole; a group without any data set is not in it.
    """
    for name in values:
        known_name(name)
    groups: dict[str, Sequence[str]] = {meta: [*sides[0], *sides[1]] for meta, sides in META_TASKS.items()}
    groups |= {side: [name for name, (_, where) in TASKS.items() if where == side] for side in (IND, OOD)}
    means = {}
    for group, names in (groups | {"all": list(TASKS)}).items():
        there = [name for name in names if name in values]
        short = [name for name in there if counts is not None and counts[name] != ROWS]
        label = "" if len(there) == len(names) else f"partial ({len(there)} of {len(names)})"
        if short and counts is not None:
            asked = sum(counts[name] for name in there)
            label = f"partial ({len(there)} of {len(names)}, {asked:,} of {ROWS * len(there):,} queries)"
        if there:
            means[group] = (sum(values[name] for name in there) / len(there), label)
    return means


def mean_records(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records of the means, from records of data sets; one list for each model, strategy, revision and setting.

    Args:
        records: as `records_of_runs` gives them; those of other benchmarks are passed over.

    Returns:
        Records of the benchmark `mmeb` whose `group` is the meta-task, `ind`, `ood` or `all`.

    Raises:
        EvaluationError: a data set stands twice with another value.
    """
    runs: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for record in records:
        if record["benchmark"].startswith(SET) and record["metric"] == "precision@1" and record["group"] is None:
            runs.setdefault(_run_of(record), []).append(record)
    means = []
    for some in runs.values():
        _check_once(some)
        values = {record["benchmark"].removeprefix(SET): float(record["value"]) for record in some}
        counts = {record["benchmark"].removeprefix(SET): int(record["queries"]) for record in some}
        for group, (value, label) in mmeb_means(values, counts).items():
            names = [name for name in values if group in {*TASKS[name], "all"}]
            options = {
                "placeholder": some[0]["options"].get("placeholder", ""),
                "mean": f"over {len(names)} data sets",
                **{name: some[0]["options"][name] for name in LOADED if name in some[0]["options"]},
            }
            notes = [label.removeprefix("partial ").strip("()")] if label else []
            missing = sum(
                r["options"].get("missing_images", 0) for r in some if r["benchmark"].removeprefix(SET) in names
            )
            notes += [f"{missing:,} images missing"] if missing else []
            options |= {"partial": "; ".join(notes)} if notes else {}
            changes = {"benchmark": "mmeb", "group": group, "value": round(value, 6), "options": options, "ci95": None}
            changes["queries"] = sum(counts[name] for name in names)
            changes["ties"] = sum(r["ties"] for r in some if r["benchmark"].removeprefix(SET) in names)
            changes["gallery"] = sum(r["gallery"] for r in some if r["benchmark"].removeprefix(SET) in names)
            means.append({**some[0], **changes})
    return means


def _run_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """What must be equal in records that are averaged: one model, measured one way on one copy of the rows."""
    options = [record["options"].get(name) for name in ("placeholder", "source", "revision", *LOADED)]
    return tuple(map(str, (record["model"], record["strategy"], record.get("revision"), *options)))


def _check_once(records: Sequence[Mapping[str, Any]]) -> None:
    values: dict[str, float] = {}
    for record in records:
        if values.setdefault(record["benchmark"], record["value"]) != record["value"]:
            raise EvaluationError(
                f"{record['model']} has two numbers for {record['benchmark']} ({values[record['benchmark']]} and"
                f" {record['value']}); give the results of one run"
            )
