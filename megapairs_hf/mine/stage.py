"""The mine stage: pairs of images that are related in one or more of several ways (paper, section 3.1, Figure 1a).

First every row's nearest neighbours are found under each relation (`neighbours.py`), then near-duplicates are joined
(`clusters.py`), then targets are drawn from those inside the similarity band and hard negatives from all that were
retrieved (`pick.py`). A pair carries all its relations and all its scores. What surprises: the first picture of a
cluster of near-duplicates stands for all of it; the others are neither queries nor targets nor negatives.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from megapairs_hf import launch, storage
from megapairs_hf.artifact import Artifact, shard_names
from megapairs_hf.artifact_writer import ArtifactWriter, Rejection, create_artifact
from megapairs_hf.dependencies import require
from megapairs_hf.errors import ArtifactError, ConfigError
from megapairs_hf.mine.clusters import cluster_stats, representatives
from megapairs_hf.mine.config import MineConfig, RelationConfig
from megapairs_hf.mine.neighbours import Neighbours, Relation, find_neighbours, open_relations
from megapairs_hf.mine.pick import Drawn, draw_pairs
from megapairs_hf.mine.workers import give_back
from megapairs_hf.overwriting import PARTS
from megapairs_hf.schema import PAIRS
from megapairs_hf.storage import PathLike, join

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CLUSTERS = "clusters.npy"
# more of the corpus than this in one cluster means that the threshold is too low
LARGE_CLUSTER = 0.01
PAIR_BYTES = 16_000_000


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
    if corpus.rows == 0:
        raise ConfigError(f"the corpus {corpus.path} has no pictures, so it has no pairs; make it again")
    inputs = {"corpus": corpus.fingerprint, **{name: art.fingerprint for name, art in embeddings.items()}}
    names = shard_names(len(corpus.manifest.shards), "parquet")
    writer = create_artifact(out, kind="pairs", config=config, inputs=inputs, names=names, overwrite=overwrite)
    if isinstance(writer, Artifact):
        return _usable(writer)
    with writer:
        require("mine", "mine")
        wanted = config.relations or tuple(RelationConfig(name) for name in embeddings)
        relations = open_relations(embeddings, wanted)
        starts = np.cumsum([0, *(int(shard["rows"]) for shard in corpus.manifest.shards)])
        files = Neighbours(writer.path, starts)
        searches = find_neighbours(relations, config, files)
        bands = {r.name: _band(r, setting, config, files) for r, setting in zip(relations, wanted, strict=True)}
        representative = _join_near_duplicates(relations, bands, config, files)
        _pick_all(_Mining(relations, bands, representative, config, files), corpus, writer)
        told = {name: [round(float(end), 4) for end in band] for name, band in bands.items()}
        stats = {"bands": told, "search": searches, "near_duplicates": cluster_stats(representative)}
        no_pairs = "" if _any_rows(writer) else no_pairs_sentence(relations, config, files)
        pairs = writer.finish(stats)
        if no_pairs:
            raise ConfigError(no_pairs)
    return pairs


def _usable(pairs: Artifact) -> Artifact:
    if pairs.rows == 0:
        raise ConfigError(f"{pairs.path} holds no pair; choose another `band`, or `band_kind: quantile`")
    return pairs


def _any_rows(writer: ArtifactWriter) -> bool:
    launch.barrier()
    return any(writer.rows(i) for i in range(len(writer.names)))


def _band(relation: Relation, setting: RelationConfig, config: MineConfig, files: Neighbours) -> tuple[float, float]:
    """The band of one relation; quantiles are measured once, by the main process."""
    band, kind = setting.band or config.band, setting.band_kind or config.band_kind
    if kind == "absolute":
        return band
    measured: dict[str, float] = {}
    if launch.is_main() and not storage.exists(files.fact_file(f"band-{relation.name}")):
        others = _sampled_scores(relation, config, files)
        if not len(others):
            raise ConfigError("the corpus has one picture only, so it has no pairs; add pictures")
        low, high = np.quantile(others, band)
        measured = {"low": float(low), "high": float(high)}
    settled = files.settle(f"band-{relation.name}", measured)
    return settled["low"], settled["high"]


def _sampled_scores(relation: Relation, config: MineConfig, files: Neighbours) -> np.ndarray:
    """The similarities of the neighbours of a sample of queries, the queries themselves left out."""
    rng = np.random.default_rng(config.seed)
    rows = np.sort(rng.permutation(int(files.starts[-1]))[: config.sample])
    parts = [np.empty(0)]
    for shard in range(len(files.starts) - 1):
        low, high = files.starts[shard], files.starts[shard + 1]
        own = rows[(rows >= low) & (rows < high)]
        if len(own):
            places, scores = files.read(relation.name, shard)
            chosen = own - low
            kept = (places[chosen] != own[:, None]) & (places[chosen] >= 0)
            parts.append(scores[chosen][kept].astype(np.float64))
    return np.concatenate(parts)


def _join_near_duplicates(
    relations: Sequence[Relation], bands: Mapping[str, tuple[float, float]], config: MineConfig, files: Neighbours
) -> np.ndarray:
    path = join(files.path, PARTS, CLUSTERS)
    if launch.is_main() and not storage.exists(path):
        found = representatives(int(files.starts[-1]), _close_pairs(relations, bands, config, files))
        largest = cluster_stats(found)["largest"]
        if largest > max(10, LARGE_CLUSTER * len(found)):
            launch.note(
                f"mine: {largest:,} pictures are one cluster of near-duplicates, because similarity is chained;"
                " if they are different pictures, raise `near_duplicate`"
            )
        sink = io.BytesIO()
        np.save(sink, found)
        storage.write_bytes(path, sink.getvalue())
    launch.barrier()
    result: np.ndarray = np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False)
    return result


def threshold(band: tuple[float, float], config: MineConfig) -> float:
    """The similarity from which two pictures are one."""
    return band[1] if config.near_duplicate is None else config.near_duplicate


def _close_pairs(
    relations: Sequence[Relation], bands: Mapping[str, tuple[float, float]], config: MineConfig, files: Neighbours
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for relation in relations:
        if not relation.visual:
            continue
        for shard in range(len(files.starts) - 1):
            places, scores = files.read(relation.name, shard)
            rows, columns = np.nonzero((scores >= threshold(bands[relation.name], config)) & (places >= 0))
            yield rows + files.starts[shard], places[rows, columns].astype(np.int64)


@dataclass(frozen=True)
class _Mining:
    """What the picking of every shard needs."""

    relations: Sequence[Relation]
    bands: Mapping[str, tuple[float, float]]
    representative: np.ndarray
    config: MineConfig
    files: Neighbours


def _pick_all(mining: _Mining, corpus: Artifact, writer: ArtifactWriter) -> None:
    # a plain string array holds 2 GB
    ids = corpus.table(["image_id"])["image_id"].cast(pa.large_string()).combine_chunks()
    starts = mining.files.starts
    mine = launch.my_shards(len(writer.names))
    todo = writer.mine()
    total, left = (sum(int(starts[i + 1] - starts[i]) for i in some) for some in (mine, todo))
    with launch.Progress("mine", total, "queries", total - left) as bar:
        for i in todo:
            _pick_shard(i, mining, ids, writer)
            give_back()
            bar.advance(int(starts[i + 1] - starts[i]))


def _pick_shard(index: int, mining: _Mining, ids: pa.Array, writer: ArtifactWriter) -> None:
    low, high = int(mining.files.starts[index]), int(mining.files.starts[index + 1])
    found = {r.name: mining.files.read(r.name, index) for r in mining.relations}
    drawn: list[Drawn] = []
    rejected: list[Rejection] = []
    for row in range(low, high):
        key = ids[row].as_py()
        own = mining.representative[row]
        if own != row:
            rejected.append((key, "near_duplicate", f"the same picture as {ids[int(own)].as_py()}"))
            drawn.append(Drawn([], []))
            continue
        neighbours = {name: (places[row - low], scores[row - low]) for name, (places, scores) in found.items()}
        rng = random.Random(f"{mining.config.seed}/{key}")
        drawn.append(draw_pairs(row, neighbours, mining.bands, mining.representative, mining.config, rng))
        if drawn[-1].reason is not None:
            rejected.append((key, *drawn[-1].reason))
    table, alone = _pair_table(low, drawn, mining, ids)
    rejected += [(ids[row].as_py(), "no_neighbour_in_band", "every target drawn is a near-duplicate") for row in alone]
    stats = {"rows_in": high - low, **pair_counts(table, mining.bands)}
    writer.write(index, table, rejected, stats)


def _pair_table(low: int, drawn: Sequence[Drawn], mining: _Mining, ids: pa.Array) -> tuple[pa.Table, list[int]]:
    """The pairs of one shard with exact scores under every relation, and the rows that lost all their targets."""
    left = np.array([low + n for n, one in enumerate(drawn) for _ in one.targets], np.int64)
    right = np.array([target for one in drawn for target in one.targets], np.int64)
    negatives = [places for one in drawn for places in one.negatives]
    scores = {r.name: _scores(r, left, right) for r in mining.relations}
    sizes = [len(places) for places in negatives]
    tried = np.array([place for places in negatives for place in places], np.int64)
    owner = np.repeat(right, sizes) if sizes else np.empty(0, np.int64)
    same_pair = _same_picture(left, right, mining, scores)
    same_negative = np.split(_same_picture(owner, tried, mining), np.cumsum(sizes)[:-1]) if sizes else []
    kept = np.flatnonzero(~same_pair)
    rows: list[dict[str, Any]] = []
    for n in kept:
        values = {name: float(np.float32(column[n])) for name, column in scores.items()}
        inside = [name for name, value in values.items() if mining.bands[name][0] < value < mining.bands[name][1]]
        usable = [place for place, same in zip(negatives[n], same_negative[n], strict=True) if not same]
        rows.append(
            {
                "query_id": ids[int(left[n])].as_py(),
                "target_id": ids[int(right[n])].as_py(),
                "relation": inside,
                "scores": [{"relation": name, "score": value} for name, value in values.items()],
                "negative_ids": [ids[place].as_py() for place in usable[: mining.config.negatives]],
            }
        )
    alone = sorted(set(left.tolist()) - set(left[kept].tolist()))
    return pa.Table.from_pylist(rows, schema=PAIRS), alone


def _scores(relation: Relation, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Exact similarities of pairs of places, [P] float64."""
    from megapairs_hf.mine.kernels import score_pairs

    result = np.empty(len(left))
    step = max(1, PAIR_BYTES // (4 * relation.query.dimension))
    for start in range(0, len(left), step):
        part = slice(start, start + step)
        some_left, left_rows = np.unique(left[part], return_inverse=True)
        some_right, right_rows = np.unique(right[part], return_inverse=True)
        left_bits, right_bits = relation.query.take(some_left), relation.target.take(some_right)
        score_pairs(left_bits.view(np.uint16), left_rows, right_bits.view(np.uint16), right_rows, result[part])
    return result


def _same_picture(
    left: np.ndarray, right: np.ndarray, mining: _Mining, scores: Mapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """Whether any visual relation finds the two nearer than its threshold: those that no list of neighbours showed."""
    same = np.zeros(len(left), bool)
    for relation in mining.relations:
        if relation.visual:
            values = _scores(relation, left, right) if scores is None else scores[relation.name]
            same |= values >= threshold(mining.bands[relation.name], mining.config)
    return same


def pair_counts(table: pa.Table, bands: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """Statistics of pairs: by relation, by number of relations, by place in the band (quarters), by negatives."""
    stats: dict[str, Any] = {"relations": {}, "pairs_per_relation_count": {}, "band_quarters": {}, "negatives": {}}
    for row in table.to_pylist():
        for name in row["relation"]:
            stats["relations"][name] = stats["relations"].get(name, 0) + 1
        for score in row["scores"]:
            if score["relation"] in row["relation"]:
                low, high = bands[score["relation"]]
                quarter = str(1 + min(3, int(4 * (score["score"] - low) / (high - low))))
                own = stats["band_quarters"].setdefault(score["relation"], dict.fromkeys("1234", 0))
                own[quarter] += 1
        for part, key in (("pairs_per_relation_count", "relation"), ("negatives", "negative_ids")):
            stats[part][str(len(row[key]))] = stats[part].get(str(len(row[key])), 0) + 1
    return stats


def no_pairs_sentence(relations: Sequence[Relation], config: MineConfig, files: Neighbours) -> str:
    """What to say when the band leaves nothing: where the neighbours' similarities really lie."""
    seen = []
    for relation in relations:
        scores = _sampled_scores(relation, config, files)
        low, high = np.quantile(scores, (0.1, 0.9)) if len(scores) else (1.0, 1.0)
        seen.append(f"{relation.name} {low:.2f} to {high:.2f}")
    return (
        f"no pair lies in the band {list(config.band)}: the similarities of the nearest neighbours are"
        f" {', '.join(seen)}; choose a `band` there, or `band_kind: quantile`"
    )
