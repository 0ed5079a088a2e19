"""What each stage took in, made and left out: the strip at the top of the page and the tables under it.

Everything here is read from manifests, where rows in = rows out + rows left out (DESIGN section 4); nothing is counted
again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.shards import part_rows
from megapairs_hf.artifacts.workspace import FINISHED, Work
from megapairs_hf.core.formatting import format_value
from megapairs_hf.core.yaml_values import dump_yaml

if TYPE_CHECKING:
    from megapairs_hf.artifacts.artifact import Artifact

DETAIL_LENGTH = 140
UNITS = {
    "corpus": "images",
    "embeddings": "embeddings",
    "pairs": "pairs",
    "descriptions": "descriptions",
    "instructions": "pairs with instructions",
    "triplets": "triplets",
    "model": "training steps",
    "results": "result records",
}
# whose rows a stage reads
READS = {
    "embeddings": "corpus",
    "pairs": "corpus",
    "descriptions": "pairs",
    "instructions": "descriptions",
    "triplets": "instructions",
    "model": "triplets",
    "results": "heldout",
}


def flow(work: Work) -> list[dict[str, Any]]:
    """The stages in order, made or not: name, status, and of a finished one input, rows, unit, rejected, note."""
    return [_embeddings(work) if name == "embeddings" else _stage(work, name) for name in UNITS]


def _stage(work: Work, name: str) -> dict[str, Any]:
    artifact = work.artifacts.get(name)
    if artifact is None and name == "results" and work.results():
        return _finished(
            name, "", f"{len(work.results()):,}", 0, "measured by the training itself, on held-out triplets"
        )
    if artifact is None:
        return {"name": name, "status": work.status(name)}
    rejected = sum(artifact.manifest.rejected.values())
    rows, note = _output(work, name, artifact)
    source = f"{artifact.rows + rejected:,} images" if name == "corpus" else _input(work, name)
    return _finished(name, source, rows, rejected, note)


def _embeddings(work: Work) -> dict[str, Any]:
    artifacts = work.embeddings
    if not artifacts:
        return {"name": "embeddings", "status": work.status("embeddings")}
    rejected = sum(sum(one.manifest.rejected.values()) for one in artifacts.values())
    rows = f"{sum(one.rows for one in artifacts.values()):,}"
    note = ", ".join(
        f"{name} ({format_value(one.manifest.stats.get('dimension', '?'))}\u2011d)" for name, one in artifacts.items()
    )
    return _finished("embeddings", _input(work, "embeddings"), rows, rejected, note)


def _finished(name: str, source: str, rows: str, rejected: int, note: str) -> dict[str, Any]:
    facts = {"input": source, "rows": rows, "unit": UNITS[name], "rejected": rejected, "note": note}
    return {"name": name, "status": FINISHED, **facts}


def _input(work: Work, name: str) -> str:
    before = READS[name]
    artifact = work.artifacts.get(before)
    if artifact is None:
        return ""
    rows = part_rows(artifact, "triplets") if before == "triplets" else artifact.rows
    return f"{rows:,} {'held-out images' if before == 'heldout' else UNITS[before]}"


def _output(work: Work, name: str, artifact: Artifact) -> tuple[str, str]:
    stats = artifact.manifest.stats
    if name == "triplets":
        parts = ("images", "preview")
        note = ", ".join(f"{part_rows(artifact, p):,} {p}" for p in parts if part_rows(artifact, p))
        return f"{part_rows(artifact, 'triplets'):,}", note
    if name == "model":
        loss = stats.get("final_loss")
        return format_value(stats.get("steps", "?")), "" if loss is None else f"final loss {format_value(loss)}"
    if name == "results":
        return f"{len(work.results()):,}", ""
    return f"{artifact.rows:,}", ""


def counts(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a table of counts, nested ones with their keys joined; `share` of the largest is for a row's bar."""
    flat = _flat(values)
    numbers = [v for v in flat.values() if _is_count(v)]
    largest = max(numbers, default=0)
    return [
        {"name": name, "value": format_value(v), "share": v / largest if largest > 0 and _is_count(v) else None}
        for name, v in flat.items()
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key} · ") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def count_tables(work: Work) -> list[tuple[str, list[dict[str, Any]]]]:
    """Title and rows of each table of what was made: pairs by relation, negatives, instructions."""
    titles = [
        ("pairs", "relations", "Pairs by relation"),
        ("pairs", "pairs_per_relation_count", "Pairs by number of relations"),
        ("pairs", "range_quarters", "Pairs by quarter of the similarity range, from low"),
        ("pairs", "negatives", "Hard negatives"),
        ("pairs", "near_duplicates", "Near-duplicates"),
        ("pairs", "joining", "Pairs with near-duplicates joined, and without"),
        ("pairs", "search", "Search"),
        ("pairs", "agreement", "Agreement: caption words shared with neighbors, times those shared at random"),
        ("pairs", "share_in_range", "Share of images with a neighbor in the similarity range"),
        ("instructions", "instructions", "Instructions"),
        ("descriptions", "wording", "Wording of the descriptions"),
        ("instructions", "wording", "Wording of the instructions"),
        ("verified", "verdicts", "Verdicts on the instructions"),
    ]
    tables = []
    for name, key, title in titles:
        artifact = work.artifacts.get(name)
        values = artifact.manifest.stats.get(key) if artifact is not None else None
        if values is not None:
            tables.append((title, counts(values if isinstance(values, dict) else {key: values})))
    ranks = {
        name: artifact.manifest.stats["effective_rank"]
        for name, artifact in work.embeddings.items()
        if "effective_rank" in artifact.manifest.stats
    }
    return [*tables, ("Centered effective rank of the embeddings", counts(ranks))] if ranks else tables


def rejections(work: Work) -> list[dict[str, Any]]:
    """What was left out, by stage and reason, in the order of the flow, with the first row of each."""
    rows = []
    for stage, artifact in work.artifacts.items():
        if not artifact.manifest.rejected:
            continue
        first: dict[str, dict[str, str]] = {}
        for row in artifact.rejected().to_pylist():
            first.setdefault(row["reason"], row)
        for reason, count in sorted(artifact.manifest.rejected.items(), key=lambda item: -item[1]):
            row = first.get(reason, {})
            facts = {"key": row.get("key") or "", "detail": shorten(row.get("detail") or "")}
            rows.append({"stage": stage, "reason": reason, "count": count, **facts})
    return rows


def shorten(text: str, limit: int = DETAIL_LENGTH) -> str:
    """One line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def settings(work: Work) -> list[dict[str, Any]]:
    """The settings of every artifact as YAML, with its manifest, in the order of the flow."""
    return [
        {
            "name": name,
            "lines": dump_yaml(one.manifest.config) if one.manifest.config else "none\n",
            "manifest": one.manifest,
        }
        for name, one in work.artifacts.items()
    ]
