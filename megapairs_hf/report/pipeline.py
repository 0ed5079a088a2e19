"""What each stage took in, made and left out: the strip at the top of the page and the tables under it.

Everything here is read from manifests, where rows in = rows out + rows left out (DESIGN section 4); nothing is counted
again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from megapairs_hf.artifacts.shards import part_rows
from megapairs_hf.artifacts.workspace import FINISHED, Work
from megapairs_hf.core.formatting import format_value

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


@dataclass(frozen=True)
class Node:
    """One stage of the flow strip.

    Attributes:
        name: of its folder.
        status: finished, not finished, or not made yet.
        taken: what it read, as text; empty where that is not known.
        made: how much it made, as a number.
        unit: of what.
        rejected: how many rows it left out.
        note: one more fact.
    """

    name: str
    status: str
    taken: str = ""
    made: str = ""
    unit: str = ""
    rejected: int = 0
    note: str = ""

    @property
    def finished(self) -> bool:
        """Whether its artifact is complete."""
        return self.status == FINISHED


def flow(work: Work) -> list[Node]:
    """The stages in order, made or not."""
    return [_embeddings(work) if name == "embeddings" else _node(work, name) for name in UNITS]


def _node(work: Work, name: str) -> Node:
    artifact = work.artifacts.get(name)
    if artifact is None:
        return Node(name, work.status(name))
    left_out = sum(artifact.manifest.rejected.values())
    made, note = _made(work, name, artifact)
    taken = f"{artifact.rows + left_out:,} images" if name == "corpus" else _taken(work, name)
    return Node(name, FINISHED, taken, made, UNITS[name], left_out, note)


def _embeddings(work: Work) -> Node:
    found = work.embeddings
    if not found:
        return Node("embeddings", work.status("embeddings"))
    left_out = sum(sum(one.manifest.rejected.values()) for one in found.values())
    rows = f"{sum(one.rows for one in found.values()):,}"
    note = ", ".join(
        f"{name} ({format_value(one.manifest.stats.get('dimension', '?'))}\u2011d)" for name, one in found.items()
    )
    return Node("embeddings", FINISHED, _taken(work, "embeddings"), rows, UNITS["embeddings"], left_out, note)


def _taken(work: Work, name: str) -> str:
    before = READS[name]
    artifact = work.artifacts.get(before)
    if artifact is None:
        return ""
    rows = part_rows(artifact, "triplets") if before == "triplets" else artifact.rows
    return f"{rows:,} {'held-out images' if before == 'heldout' else UNITS[before]}"


def _made(work: Work, name: str, artifact: Artifact) -> tuple[str, str]:
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


@dataclass(frozen=True)
class Count:
    """One row of a table of counts.

    Attributes:
        name: what is counted.
        value: how many.
        share: of the largest in the table, 0 … 1, for its bar; None for a fact that is no count.
    """

    name: str
    value: str
    share: float | None = None


def counts(values: dict[str, Any]) -> list[Count]:
    """The rows of a table of counts, nested ones with their keys joined."""
    flat = _flat(values)
    numbers = [v for v in flat.values() if _is_count(v)]
    largest = max(numbers, default=0)
    return [Count(k, format_value(v), v / largest if largest > 0 and _is_count(v) else None) for k, v in flat.items()]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key} · ") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def made_tables(work: Work) -> list[tuple[str, list[Count]]]:
    """Title and rows of each table of what was made: pairs by relation, negatives, instructions."""
    titles = [
        ("pairs", "relations", "Pairs by relation"),
        ("pairs", "pairs_per_relation_count", "Pairs by number of relations"),
        ("pairs", "range_quarters", "Pairs by quarter of the similarity range, from low"),
        ("pairs", "negatives", "Hard negatives"),
        ("pairs", "near_duplicates", "Near-duplicates"),
        ("pairs", "search", "Search"),
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
    return tables


@dataclass(frozen=True)
class Rejection:
    """Rows that one stage left out for one reason, with the first of them.

    Attributes:
        stage: which stage.
        reason: a short word.
        count: how many rows.
        key: of the first.
        detail: what was found there.
    """

    stage: str
    reason: str
    count: int
    key: str
    detail: str


def rejections(work: Work) -> list[Rejection]:
    """What was left out, by stage and reason, in the order of the flow."""
    told = []
    for name, artifact in work.artifacts.items():
        if not artifact.manifest.rejected:
            continue
        first: dict[str, dict[str, str]] = {}
        for row in artifact.rejected().to_pylist():
            first.setdefault(row["reason"], row)
        for reason, count in sorted(artifact.manifest.rejected.items(), key=lambda item: -item[1]):
            row = first.get(reason, {})
            told.append(Rejection(name, reason, count, row.get("key") or "", shorten(row.get("detail") or "")))
    return told


def shorten(text: str, limit: int = DETAIL_LENGTH) -> str:
    """One line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


@dataclass(frozen=True)
class Settings:
    """The settings of one artifact, as the page shows them.

    Attributes:
        name: of its folder.
        kind: of artifact.
        lines: its settings as YAML.
        config_hash: of the settings.
        fingerprint: of the artifact.
        version: of the package that made it.
        inputs: fingerprint of each input by name.
    """

    name: str
    kind: str
    lines: str
    config_hash: str
    fingerprint: str
    version: str
    inputs: dict[str, str]


def settings(work: Work) -> list[Settings]:
    """The settings of every artifact, in the order of the flow."""
    told = []
    for name, artifact in work.artifacts.items():
        manifest = artifact.manifest
        lines = yaml.safe_dump(manifest.config, sort_keys=False, allow_unicode=True) if manifest.config else "none\n"
        told.append(
            Settings(
                name,
                manifest.kind,
                lines,
                manifest.config_hash,
                artifact.fingerprint,
                manifest.version,
                manifest.inputs,
            )
        )
    return told
