"""What a card may say: the slots of the templates, filled from manifests and result records and from nothing else.

What surprises: a card is public, so a setting that is a path is reduced to its last part, and servers are left out.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.manifest import PUBLISHED_PARTS
from megapairs_hf.artifacts.shards import part_shards, split_of
from megapairs_hf.artifacts.storage import HUB_ID, join
from megapairs_hf.artifacts.workspace import RULE_BASED, STAGES, SYNTHETIC, Work, open_work, source_name
from megapairs_hf.core.errors import ArtifactError, CardError
from megapairs_hf.core.version import __version__
from megapairs_hf.core.yaml_values import dump_yaml
from megapairs_hf.evaluation.metrics import metric_label
from megapairs_hf.evaluation.results_table import results_tables
from megapairs_hf.hub.dataset_facts import dataset_facts
from megapairs_hf.hub.eval_results import model_name, public_records
from megapairs_hf.hub.secret_scan import public

if TYPE_CHECKING:
    from collections.abc import Container

    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.hub.config import PushConfig

# what a rule-based engine does not use
MODEL_SETTINGS = frozenset(
    "model word_num max_image_side temperature top_p max_new_tokens prompt attributes local"
    " num_few_shot few_shot_file response_format".split()
)
TRAINING = frozenset({"triplets", "base", "model", "results"})
HELD_OUT = "heldout"


def needed(work: PathLike, name: str, command: str, artifact: Artifact | None = None) -> tuple[Work, Artifact]:
    """The artifact that a card is about, and what of the work folder it was made of.

    Args:
        work: the work folder.
        name: triplets or model.
        command: the command that makes it.
        artifact: the artifact; None for the one of the work folder.

    Raises:
        CardError: it is not there.
    """
    if artifact is not None:
        return Work(str(work), (name, artifact)), artifact
    try:
        folder = open_work(work)
    except ArtifactError as error:
        raise CardError(
            f"{work} holds no artifact, so there is nothing for a card; name a pipeline's folder"
        ) from error
    artifact = folder.artifacts.get(name)
    if artifact is None:
        raise CardError(f"{name} is {folder.status(name)} in {work}; run `megapairs {command}` first")
    return Work(str(work), (name, artifact)), artifact


def settings_of(work: Work, names: Container[str]) -> list[tuple[str, str]]:
    """The settings of some stages as YAML, one of several embeddings under the name of all."""
    return [
        (name, dump_yaml(public(used(one.manifest.config))).strip())
        for name, one in work.artifacts.items()
        if one.manifest.config and name.split("/", 1)[0] in names and name != HELD_OUT
    ]


def used(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that had an effect: of a rule-based engine none of a model."""
    idle = MODEL_SETTINGS if config.get("engine") == RULE_BASED else frozenset()
    return {key: value for key, value in config.items() if key not in idle}


def common_slots(work: Work, config: PushConfig) -> dict[str, Any]:
    """Slots of both kinds of card.

    Raises:
        CardError: the license is not given.
    """
    if config.license is None:
        raise CardError(
            "a card must name the license and none is guessed; pass --license cc-by-4.0 or another one (in Python"
            ' license="cc-by-4.0")'
        )
    corpus = work.artifacts.get("corpus")
    return {
        "repo_id": config.repo_id,
        "name": config.repo_id.rsplit("/", 1)[-1],
        "license": config.license,
        "license_name": config.license_name,
        "license_link": config.license_link,
        "version": __version__,
        "source": source_name(corpus) if corpus is not None else "",
        "images": corpus.rows if corpus is not None else None,
        "stand_ins": work.stand_ins(),
        "warnings": work.warnings(),
        "rejections": [
            (name, reason, count)
            for name, artifact in work.artifacts.items()
            if name in STAGES and name != HELD_OUT
            for reason, count in sorted(artifact.manifest.rejected.items(), key=lambda item: (-item[1], item[0]))
        ],
    }


def dataset_slots(work: Work, triplets: Artifact) -> dict[str, Any]:
    """Slots of a dataset card."""
    corpus, pairs = work.artifacts.get("corpus"), work.artifacts.get("pairs")
    instructions = work.artifacts.get("instructions")
    splits = splits_of(triplets)
    stats = triplets.manifest.stats
    return {
        "settings": settings_of(work, frozenset(STAGES)),
        **dataset_facts(work, triplets),
        "synthetic": corpus is not None and source_name(corpus) == SYNTHETIC,
        "splits": splits,
        "tasks": [part for part in splits if part not in PUBLISHED_PARTS],
        "triplets": sum(splits.get("triplets", {}).values()),
        "images": sum(splits.get("images", {}).values()),
        "relations": _most_first((pairs or triplets).manifest.stats.get("relations", {})),
        "models": _most_first(stats.get("models", {})),
        "pairs": pairs.rows if pairs is not None else None,
        "instructions": instructions.rows if instructions is not None else None,
    }


def _most_first(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def splits_of(triplets: Artifact) -> dict[str, dict[str, int]]:
    """Rows of every split of every config of the published data set, the default config first; none of no rows."""
    splits: dict[str, dict[str, int]] = {}
    for part in triplets.manifest.parts:
        for _, shard in part_shards(triplets, part):
            if not shard["rows"]:
                continue
            split = split_of(str(shard["file"]))
            if split is None:
                raise CardError(f"{shard['file']} of {triplets.path} is named like no split; build the triplets again")
            rows = splits.setdefault(part, {})
            rows[split] = rows.get(split, 0) + int(shard["rows"])
    return splits


def model_slots(work: Work, model: Artifact, config: PushConfig) -> dict[str, Any]:
    """Slots of a model card."""
    records = work.results()
    triplets = work.artifacts.get("triplets")
    base = model.manifest.config.get("model")
    return {
        "settings": settings_of(work, TRAINING),
        "tables": results_tables(public_records(records)),
        "training": model.manifest.stats,
        "triplets": sum(splits_of(triplets).get("triplets", {}).values()) if triplets is not None else None,
        "base_model": base if isinstance(base, str) and HUB_ID.fullmatch(base) else "",
        "datasets": config.datasets,
        "needs_code": _needs_code(model.path),
        "value": _Values(records, model_name(records)),
    }


class _Values:
    """`value(benchmark, metric)` of a template: one measured number in percent, or an error that names it."""

    def __init__(self, records: list[dict[str, Any]], model: str) -> None:
        self.records, self.model = records, model

    def __call__(self, benchmark: str, metric: str, strategy: str = "fused", split: str | None = None) -> str:
        return f"{100 * self._record(benchmark, metric, strategy, split)['value']:.1f}"

    def split(self, benchmark: str, metric: str, strategy: str = "fused") -> str:
        """The split on which the one such number was measured."""
        return str(self._record(benchmark, metric, strategy, None)["split"])

    def _record(self, benchmark: str, metric: str, strategy: str, split: str | None) -> dict[str, Any]:
        records = [
            record
            for record in self.records
            if str(record["benchmark"]).lower() == benchmark.lower()
            and record["metric"] == metric
            and record["strategy"] == strategy
            and record["model"] == self.model
            and split in {None, record.get("split")}
            # a category's number is not the benchmark's
            and record.get("group") is None
        ]
        if len(records) != 1:
            number = "no result record has" if not records else f"{len(records)} result records have"
            raise CardError(
                f"{number} {metric_label(metric)} of {self.model!r}, {strategy}, on {benchmark};"
                " run `megapairs eval` on it, or use another card template"
            )
        return records[0]


def _needs_code(path: str) -> bool:
    """Whether the model brings a class of its own, which the Hub's users have to allow."""
    file = join(path, "config.json")
    try:
        return storage.exists(file) and "auto_map" in json.loads(storage.read_bytes(file))
    except ValueError as error:
        raise CardError(f"{file} is not JSON; save the model again") from error
