"""The mine stage: pairs of images that are related in one or more of several ways (paper, section 3.1, Figure 1a).

For each relation the K nearest neighbours inside the similarity band are targets; relations are joined, so that a pair
carries all its relations and all its scores; hard negatives are other retrieved images. What surprises: a picture that
any visual model finds nearer than the band's upper end is the same picture for us, and is neither a target nor a
negative.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from megapairs_hf import launch, storage
from megapairs_hf.artifact import Artifact, json_bytes, read_json, shard_names
from megapairs_hf.artifact_writer import PARTS, ArtifactWriter, Rejection, create_artifact
from megapairs_hf.errors import ArtifactError, ConfigError
from megapairs_hf.mine.config import MineConfig, RelationConfig
from megapairs_hf.mine.pick import Picked, pick_pairs
from megapairs_hf.mine.search import ExactIndex
from megapairs_hf.schema import PAIRS
from megapairs_hf.storage import PathLike, join

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Relation:
    """A relation with its vectors.

    Attributes:
        name: of the relation.
        query: [N, D] float16, the vectors that are searched with.
        index: the vectors that are searched in.
        visual: whether both sides are pictures, so that a very high score means the same picture.
        band: low and high similarity.
    """

    name: str
    query: np.ndarray
    index: ExactIndex
    visual: bool
    band: tuple[float, float]


def mine_pairs(
    embeddings: Mapping[str, Artifact],
    corpus: Artifact,
    *,
    config: MineConfig,
    out: PathLike,
    overwrite: bool = False,
) -> Artifact:
    """Find related pairs of images.

    Args:
        embeddings: the vectors of the corpus under each similarity model, by name.
        corpus: the corpus that they were made of.
        config: the settings.
        out: the artifact's folder.
        overwrite: throw away what is there.

    Returns:
        A `pairs` artifact.

    Raises:
        ConfigError: a relation names embeddings that are not there, or the band leaves no pair.
        ArtifactError: embeddings were made of another corpus.
    """
    for name, artifact in embeddings.items():
        if artifact.manifest.inputs["corpus"] != corpus.fingerprint:
            raise ArtifactError(f"the embeddings {name} were made of another corpus; run `megapairs embed` again")
    inputs = {"corpus": corpus.fingerprint, **{name: art.fingerprint for name, art in embeddings.items()}}
    names = shard_names(len(corpus.manifest.shards), "parquet")
    writer = create_artifact(out, kind="pairs", config=config, inputs=inputs, names=names, overwrite=overwrite)
    if isinstance(writer, Artifact):
        return _usable(writer)
    with writer:
        relations = open_relations(embeddings, config, writer.path)
        ids = np.array(corpus.table(["image_id"])["image_id"].to_pylist(), object)
        starts = np.cumsum([0, *(int(shard["rows"]) for shard in corpus.manifest.shards)])
        mine = [i for i in launch.my_shards(len(names))]
        total = sum(int(starts[i + 1] - starts[i]) for i in mine)
        todo = writer.mine()
        left = sum(int(starts[i + 1] - starts[i]) for i in todo)
        with launch.Progress("mine", total, "queries", total - left) as bar:
            for i in todo:
                _mine_shard(i, np.arange(starts[i], starts[i + 1]), relations, ids, config, writer)
                bar.advance(int(starts[i + 1] - starts[i]))
        pairs = writer.finish({"bands": {r.name: [round(float(end), 4) for end in r.band] for r in relations}})
        if pairs.rows == 0:
            raise ConfigError(no_pairs_sentence(relations, config))
    return pairs


def _usable(pairs: Artifact) -> Artifact:
    if pairs.rows == 0:
        raise ConfigError(f"{pairs.path} holds no pair; choose another `band`, or `band_kind: quantile`")
    return pairs


def open_relations(embeddings: Mapping[str, Artifact], config: MineConfig, path: str) -> list[Relation]:
    """Load the vectors of every relation and settle its band.

    Args:
        embeddings: by name.
        config: the settings.
        path: the artifact's folder, where the main process leaves measured bands for the others.
    """
    wanted = config.relations or tuple(RelationConfig(name) for name in embeddings)
    arrays: dict[str, np.ndarray] = {}
    indexes: dict[str, ExactIndex] = {}
    relations = []
    for relation in wanted:
        query, target = relation.query or relation.name, relation.target or relation.query or relation.name
        for name in (query, target):
            if name not in embeddings:
                known = ", ".join(embeddings)
                raise ConfigError(f"relation {relation.name!r} needs embeddings {name!r}; there are {known}")
            arrays.setdefault(name, embeddings[name].arrays())
        if arrays[query].shape[1] != arrays[target].shape[1]:
            raise ConfigError(
                f"relation {relation.name!r} compares {query} with {target}, but their vectors have"
                f" {arrays[query].shape[1]} and {arrays[target].shape[1]} dimensions; take two towers of one model"
            )
        index = indexes.setdefault(target, ExactIndex(arrays[target]))
        kinds = {embeddings[name].manifest.stats.get("input") for name in (query, target)}
        band, kind = relation.band or config.band, relation.band_kind or config.band_kind
        if kind == "quantile":
            band = _measured_band(relation.name, arrays[query], index, band, config, path)
        relations.append(Relation(relation.name, arrays[query], index, kinds == {"image"}, band))
    return relations


def _measured_band(
    name: str, queries: np.ndarray, index: ExactIndex, band: tuple[float, float], config: MineConfig, path: str
) -> tuple[float, float]:
    """Quantiles of the neighbours' similarities; measured once, by the main process."""
    file = join(path, PARTS, f"band-{name}.json")
    if launch.is_main() and not storage.exists(file):
        rng = np.random.default_rng(config.seed)
        rows = np.sort(rng.permutation(len(queries))[: config.sample])
        ids, scores = index.search(queries[rows], config.neighbours + 1)
        others = scores[ids != rows[:, None]]
        if not len(others):
            raise ConfigError("the corpus has one picture only, so it has no pairs; add pictures")
        low, high = np.quantile(others, band)
        storage.write_bytes(file, json_bytes({"low": float(low), "high": float(high)}))
    launch.barrier()
    measured = read_json(file)
    return measured["low"], measured["high"]


def _mine_shard(
    index: int,
    rows: np.ndarray,
    relations: list[Relation],
    ids: np.ndarray,
    config: MineConfig,
    writer: ArtifactWriter,
) -> None:
    found = {r.name: r.index.search(r.query[rows], config.neighbours + 1) for r in relations}
    table: list[dict[str, Any]] = []
    rejected: list[Rejection] = []
    stats: dict[str, Any] = {"rows_in": len(rows), "relations": {}, "pairs_per_relation_count": {}, "negatives": {}}
    for offset, row in enumerate(rows):
        neighbours = {name: (places[offset], scores[offset]) for name, (places, scores) in found.items()}
        rng = random.Random(f"{config.seed}/{ids[row]}")
        picked, reason = pick_pairs(int(row), neighbours, relations, config, rng)
        if not picked:
            rejected.append((ids[row], *reason))
        for pair in picked:
            table.append(_pair_row(ids, int(row), pair))
            _count(stats, pair)
    writer.write(index, pa.Table.from_pylist(table, schema=PAIRS), rejected, stats)


def _pair_row(ids: np.ndarray, row: int, pair: Picked) -> dict[str, Any]:
    return {
        "query_id": ids[row],
        "target_id": ids[pair.target],
        "relation": pair.relations,
        "scores": [{"relation": name, "score": score} for name, score in pair.scores.items()],
        "negative_ids": [ids[negative] for negative in pair.negatives],
    }


def _count(stats: dict[str, Any], pair: Picked) -> None:
    for name in pair.relations:
        stats["relations"][name] = stats["relations"].get(name, 0) + 1
    for part, key in (("pairs_per_relation_count", len(pair.relations)), ("negatives", len(pair.negatives))):
        stats[part][str(key)] = stats[part].get(str(key), 0) + 1


def no_pairs_sentence(relations: list[Relation], config: MineConfig) -> str:
    """What to say when the band leaves nothing: where the neighbours' similarities really lie."""
    seen = []
    for relation in relations:
        sample = relation.query[: min(len(relation.query), 200)]
        _, scores = relation.index.search(sample, min(config.neighbours, 10) + 1)
        low, high = np.quantile(scores[:, 1:], (0.1, 0.9)) if scores.shape[1] > 1 else (1.0, 1.0)
        seen.append(f"{relation.name} {low:.2f} to {high:.2f}")
    return (
        f"no pair lies in the band {list(config.band)}: the similarities of the nearest neighbours are"
        f" {', '.join(seen)}; choose a `band` there, or `band_kind: quantile`"
    )
