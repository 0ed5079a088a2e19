"""The data sheet: what a data set holds, what it was made of and with, and what it cost, as Markdown or JSON.

Every figure is read from the manifests of a work folder and from the shards of its triplets. What surprises: nothing
is guessed, so a fact that no manifest records (the license of most corpora, the price of one's own servers) stands
there as `not recorded`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.artifacts.artifact import iter_batches
from megapairs_hf.artifacts.shards import part_shards
from megapairs_hf.artifacts.workspace import RULE_BASED, Work, open_work, source_name
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.formatting import table_cell

if TYPE_CHECKING:
    import pyarrow as pa

    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.storage import PathLike

DATASHEET = "DATASHEET.md"
UNKNOWN = "not recorded"
BIN = 0.02
EDGES = np.linspace(-1, 1, round(2 / BIN) + 1)
LICENSE_COLUMNS = ("license", "license")
ANNOTATED = ("descriptions", "instructions", "verified")
BATCH = 10_000
PLACE = re.compile(r"(/|~|\.{1,2}/|file://|[A-Za-z]:\\)")


@dataclass
class _Counted:
    """What is counted in the shards of the triplets."""

    splits: Counter[str] = field(default_factory=Counter)
    relations: Counter[str] = field(default_factory=Counter)
    negatives: Counter[int] = field(default_factory=Counter)
    words: Counter[int] = field(default_factory=Counter)
    scores: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, split: str, batch: pa.RecordBatch) -> None:
        """Count one batch of triplets; what a data set of others leaves empty is left out."""
        import pyarrow.compute as pc

        self.splits[split] += len(batch)
        self.relations.update(pc.list_flatten(batch["relation"]).to_pylist())
        self.negatives.update(pc.list_value_length(batch["hns"]).drop_null().to_pylist())
        words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(pc.list_flatten(batch["q_text"])))
        self.words.update(pc.list_value_length(words).drop_null().to_pylist())
        scores = pc.list_flatten(batch["scores"])
        names, values = scores.field("relation"), scores.field("score")
        for name in names.unique().drop_null().to_pylist():
            own = values.filter(pc.equal(names, name)).drop_null().to_numpy(zero_copy_only=False)
            # the last bin holds 1 itself; a little more than 1 is the rounding of float16
            counts = np.histogram(np.clip(own, -1, 1), EDGES)[0]
            self.scores[name] = self.scores.get(name, np.zeros(len(EDGES) - 1, np.int64)) + counts


def datasheet(work: PathLike, triplets: Artifact | None = None) -> str:
    """The data sheet of a work folder as Markdown.

    Args:
        work: the folder with `corpus`, `pairs`, …, `triplets`; what is absent is said to be.
        triplets: the data set; None for the one of the work folder.

    Raises:
        ArtifactError: there are no triplets.
    """
    return rendered(statistics(work, triplets))


def rendered(told: dict[str, Any]) -> str:
    """What `statistics` tells, as Markdown; texts of others are escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Markdown, not HTML: what is escaped here would be read with its entities
    environment = Environment(  # noqa: S701
        loader=PackageLoader("megapairs_hf", "dataset/templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = table_cell
    return environment.get_template("datasheet.md.jinja").render(sheet=told, unknown=UNKNOWN)


def statistics(work: PathLike, triplets: Artifact | None = None) -> dict[str, Any]:
    """The facts of the data sheet as plain JSON values; None for what no manifest records.

    Args:
        work: the work folder, of which only that is told that the data set was made of.
        triplets: the data set; None for the one of the work folder.

    Raises:
        ArtifactError: there are no triplets.
    """
    if triplets is None:
        folder = open_work(work)
        triplets = folder.artifacts.get("triplets")
        if triplets is None:
            raise ArtifactError(f"the triplets are {folder.status('triplets')} in {work}; run `megapairs build` first")
    opened = Work(str(work), ("triplets", triplets))
    return {
        **_contents(triplets),
        "rejected": [
            {"stage": name, "reason": reason, "rows": count}
            for name, artifact in opened.artifacts.items()
            for reason, count in sorted(artifact.manifest.rejected.items(), key=lambda item: (-item[1], item[0]))
        ],
        "removals": triplets.manifest.stats.get("removals", []),
        "provenance": _provenance(opened.artifacts.get("corpus")),
        "encoders": [_similarity(name, one) for name, one in opened.embeddings.items()],
        "annotators": [_annotator(name, opened.artifacts[name]) for name in ANNOTATED if name in opened.artifacts],
        "stand_ins": opened.stand_ins(),
        "cost": _cost(opened),
        "fingerprint": triplets.fingerprint,
        "version": triplets.manifest.version,
    }


def _contents(triplets: Artifact) -> dict[str, Any]:
    counted = _Counted()
    for index, shard in part_shards(triplets, "triplets"):
        split = str(shard["file"]).rsplit("/", 1)[-1].split("-", 1)[0]
        for batch in iter_batches(triplets, ["q_text", "hns", "relation", "scores"], index, BATCH):
            counted.add(split, batch)
    return {
        "triplets": dict(counted.splits),
        "images": sum(int(shard["rows"]) for _, shard in part_shards(triplets, "images")),
        "relations": dict(sorted(counted.relations.items(), key=lambda item: (-item[1], item[0]))),
        "hard_negatives": _summary(counted.negatives),
        "words_per_instruction": _summary(counted.words),
        "similarity": {name: _histogram(counts) for name, counts in sorted(counted.scores.items())},
    }


def _summary(counts: Counter[int]) -> dict[str, Any] | None:
    """Mean, quartiles and all counts of small whole numbers; None where there are none."""
    if not counts:
        return None
    values = np.array(sorted(counts))
    many = np.array([counts[int(value)] for value in values])
    ends = np.cumsum(many)
    low, middle, high = (int(values[np.searchsorted(ends, share * ends[-1])]) for share in (0.25, 0.5, 0.75))
    return {
        "count": int(ends[-1]),
        "mean": float((values * many).sum() / ends[-1]),
        "quartiles": [low, middle, high],
        "smallest": int(values[0]),
        "largest": int(values[-1]),
        "counts": {str(value): int(count) for value, count in zip(values, many, strict=True)},
    }


def _histogram(counts: np.ndarray) -> list[dict[str, float]]:
    """The bins from the first to the last that holds anything."""
    held = np.nonzero(counts)[0]
    return [
        {"from": round(float(EDGES[i]), 4), "to": round(float(EDGES[i + 1]), 4), "triplets": int(counts[i])}
        for i in range(held[0], held[-1] + 1)
    ]


def _provenance(corpus: Artifact | None) -> dict[str, Any]:
    told: dict[str, Any] = dict.fromkeys(("source", "name", "revision", "split", "images", "licenses", "fingerprint"))
    if corpus is None:
        return told
    config = corpus.manifest.config
    return told | {
        "source": config.get("source"),
        "name": source_name(corpus) or None,
        "revision": config.get("revision"),
        "split": config.get("split") if config.get("source") == "dataset" else None,
        "images": corpus.rows,
        "licenses": _licenses(corpus),
        "fingerprint": corpus.fingerprint,
    }


def _licenses(corpus: Artifact) -> dict[str, int] | None:
    """Images by the license that the source's own column states; None where no such column was kept."""
    kept = [name for name in corpus.manifest.config.get("meta") or [] if str(name).lower() in LICENSE_COLUMNS]
    if not kept:
        return None
    counts: Counter[str] = Counter()
    for index in range(len(corpus.manifest.shards)):
        for batch in iter_batches(corpus, ["meta"], index, BATCH):
            counts.update(str(value) if value else UNKNOWN for value in batch["meta"].field(kept[0]).to_pylist())
    return dict(counts.most_common())


def _similarity(name: str, artifact: Artifact) -> dict[str, Any]:
    config, stats = artifact.manifest.config, artifact.manifest.stats
    inner = config.get("model")
    model = inner if isinstance(inner, dict) else config
    return {
        "relation": name,
        "model": _public(model.get("model")),
        "revision": model.get("revision"),
        "encodes": model.get("input"),
        "dimension": stats.get("dimension"),
        "fingerprint": artifact.fingerprint,
    }


def _annotator(name: str, artifact: Artifact) -> dict[str, Any]:
    config, inputs = artifact.manifest.config, artifact.manifest.inputs
    offline = config.get("engine") == RULE_BASED
    return {
        "step": name,
        "model": "none (written from the captions)" if offline else _public(config.get("model")),
        "revision": config.get("revision"),
        "prompt": _public(config.get("prompt")) if config.get("prompt") else None,
        "prompt_digest": inputs.get("prompt"),
        "demonstrations_digest": inputs.get("demonstrations"),
    }


def _cost(work: Work) -> dict[str, Any]:
    """Answers, tokens and money of the annotation, by step: what the manifests count and no more."""
    steps = []
    for name in ANNOTATED:
        if name in work.artifacts:
            stats = work.artifacts[name].manifest.stats
            tokens = stats.get("tokens") or {}
            steps.append(
                {
                    "step": name,
                    "answers": stats.get("answers"),
                    "prompt_tokens": tokens.get("prompt"),
                    "completion_tokens": tokens.get("completion"),
                    "spend": stats.get("spend"),
                }
            )
    return {"steps": steps}


def _public(value: Any) -> Any:
    """A model or a prompt file without the folders of whoever ran it."""
    if isinstance(value, str) and PLACE.match(value):
        return value.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    return value
