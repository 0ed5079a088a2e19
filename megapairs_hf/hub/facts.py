"""What a card may say: the slots of the templates, filled from manifests and result records and from nothing else.

A card is public. What surprises: so a setting that is a path is told by its last part only, and a server not at all.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import yaml

import megapairs_hf
from megapairs_hf import storage
from megapairs_hf.comparison import METRICS, TRAINED, UNTRAINED, results_tables
from megapairs_hf.errors import ArtifactError, CardError
from megapairs_hf.storage import join
from megapairs_hf.work import Work, open_work, part_shards, source_name

if TYPE_CHECKING:
    from megapairs_hf.artifact import Artifact
    from megapairs_hf.hub.config import PushConfig
    from megapairs_hf.storage import PathLike

# where a server stands, and what opens it, is nobody else's business
PRIVATE = frozenset({"base_url", "endpoint", "url", "api_key", "token"})
NOT_TOLD = "(not told)"
PARTS = ("triplets", "images", "preview")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[\w.\-]+")
BASE_KEYS = ("base_model", "model", "init", "initial")
SPLIT_FILE = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}\.parquet")
SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
)


def needed(work: PathLike, name: str, verb: str) -> tuple[Work, Artifact]:
    """The work folder and the artifact that a card is about.

    Raises:
        CardError: it is not there.
    """
    try:
        opened = open_work(work)
    except ArtifactError as error:
        raise CardError(
            f"{work} holds no artifact, so a card has nothing to tell; name a pipeline's folder"
        ) from error
    artifact = opened.artifacts.get(name)
    if artifact is None:
        raise CardError(f"{name} is {opened.status(name)} in {work}; run `megapairs {verb}` first")
    return opened, artifact


def common_slots(work: Work, config: PushConfig) -> dict[str, Any]:
    """Slots of both kinds of card.

    Raises:
        CardError: the licence is not given.
    """
    if config.licence is None:
        raise CardError(
            "a card must name the licence and none is guessed; pass --licence, for example --licence cc-by-4.0"
        )
    corpus = work.artifacts.get("corpus")
    return {
        "repo_id": config.repo_id,
        "name": config.repo_id.rsplit("/", 1)[-1],
        "licence": config.licence,
        "version": megapairs_hf.__version__,
        "source": source_name(corpus) if corpus is not None else "",
        "pictures": corpus.rows if corpus is not None else None,
        "stand_ins": work.stand_ins(),
        "rejections": [
            (name, reason, count)
            for name, artifact in work.artifacts.items()
            for reason, count in sorted(artifact.manifest.rejected.items(), key=lambda item: (-item[1], item[0]))
        ],
        "settings": [
            (name, yaml.safe_dump(public(one.manifest.config), sort_keys=False, allow_unicode=True).strip())
            for name, one in work.artifacts.items()
            if one.manifest.config
        ],
    }


def dataset_slots(work: Work, triplets: Artifact) -> dict[str, Any]:
    """Slots of a dataset card."""
    pairs = work.artifacts.get("pairs")
    instructions = work.artifacts.get("instructions")
    splits = splits_of(triplets)
    return {
        "splits": splits,
        "triplets": sum(splits.get("triplets", {}).values()),
        "images": sum(splits.get("images", {}).values()),
        "relations": pairs.manifest.stats.get("relations", {}) if pairs is not None else {},
        "pairs": pairs.rows if pairs is not None else None,
        "instructions": instructions.rows if instructions is not None else None,
    }


def splits_of(triplets: Artifact) -> dict[str, dict[str, int]]:
    """Rows of every split of every config of the published data set, the default config first."""
    found: dict[str, dict[str, int]] = {}
    for part in PARTS:
        for _, shard in part_shards(triplets, part):
            match = SPLIT_FILE.fullmatch(str(shard["file"]).rsplit("/", 1)[-1])
            if match is None:
                raise CardError(f"{shard['file']} of {triplets.path} is named like no split; build the triplets again")
            rows = found.setdefault(part, {})
            rows[match["split"]] = rows.get(match["split"], 0) + int(shard["rows"])
    return found


def size_category(rows: int) -> str:
    """The Hub's word for a number of rows."""
    return next((name for limit, name in SIZES if rows < limit), "n>1B")


def model_slots(work: Work, model: Artifact) -> dict[str, Any]:
    """Slots of a model card."""
    records = work.results()
    triplets = work.artifacts.get("triplets")
    base = next((model.manifest.config.get(key) for key in BASE_KEYS if model.manifest.config.get(key)), None)
    return {
        "tables": results_tables(records),
        "training": model.manifest.stats,
        "triplets": sum(splits_of(triplets).get("triplets", {}).values()) if triplets is not None else None,
        "base_model": base if isinstance(base, str) and HUB_ID.fullmatch(base) else "",
        "needs_code": _needs_code(model.path),
        "value": _Values(records, model_name(records)),
    }


def model_name(records: list[dict[str, Any]]) -> str:
    """By which name the result records call the model that is pushed: `trained`, or the only one that was measured."""
    names = {str(record["model"]) for record in records} - {UNTRAINED}
    return TRAINED if TRAINED in names or len(names) != 1 else names.pop()


class _Values:
    """`value(benchmark, metric)` of a template: one measured number in percent, or an error that names it."""

    def __init__(self, records: list[dict[str, Any]], model: str) -> None:
        self.records, self.model = records, model

    def __call__(self, benchmark: str, metric: str, strategy: str = "fused", split: str | None = None) -> str:
        found = [
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
        if len(found) != 1:
            told = "no result record has" if not found else f"{len(found)} result records have"
            raise CardError(
                f"{told} {METRICS.get(metric, metric)} of {self.model!r}, {strategy}, on {benchmark};"
                " run `megapairs eval` on it, or use another card template"
            )
        return f"{100 * found[0]['value']:.1f}"


def _needs_code(path: str) -> bool:
    """Whether the model brings a class of its own, which the Hub's users have to allow."""
    place = join(path, "config.json")
    return storage.exists(place) and "auto_map" in json.loads(storage.read_bytes(place))


def public(value: Any) -> Any:
    """A setting without the folders and the servers of whoever ran it."""
    if isinstance(value, dict):
        return {key: NOT_TOLD if key in PRIVATE and inner else public(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [public(inner) for inner in value]
    if isinstance(value, str) and re.match(r"(/|~|\.{1,2}/|file://|[A-Za-z]:\\)", value):
        return value.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
    return value
