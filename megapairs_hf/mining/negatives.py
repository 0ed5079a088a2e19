"""`hard_negatives`: for any image data set and the embeddings of any model, without a recipe.

The search is exact: candidates are the nearest rows of the data set, the same that brute force finds. What surprises:
near-duplicates of a positive are left out by the similarity of the two, whatever the similarity to the query is; a
positive that stands in the data set twice would otherwise be its own hard negative. So are those of the query itself.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from megapairs_hf.artifacts.leftovers import scratch_folder
from megapairs_hf.core.columns import format_counts
from megapairs_hf.core.config import given_settings
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.progress import Progress, note
from megapairs_hf.core.row_function import ERROR, reason_of
from megapairs_hf.core.whole_data import check_dataset
from megapairs_hf.mining.config import MineConfig, NegativesConfig
from megapairs_hf.mining.embedded_rows import check_ids, dataset_rows
from megapairs_hf.mining.knn.embeddings import Embeddings, SelectedRows, has_embedding
from megapairs_hf.mining.knn.rescoring import score_rows
from megapairs_hf.mining.queries import Queries, Targets, read_queries
from megapairs_hf.mining.sampling import in_tiers, sample_tiers
from megapairs_hf.mining.unit_embeddings import unit_embeddings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datasets import Dataset

    from megapairs_hf.mining.embedded_rows import EmbeddedRows
    from megapairs_hf.mining.queries import Positives

ALL_TAKEN = "; there are no more images, so add some"
# what leaves out candidates, and how it leaves out fewer
LOOSEN = {
    "max_score": "raise",
    "min_score": "lower",
    "absolute_margin": "lower",
    "relative_margin": "lower",
    "near_duplicate": "raise",
}

SCHEMA = pa.schema(
    [
        ("positive_ids", pa.list_(pa.string())),
        ("positive_scores", pa.list_(pa.float32())),
        ("negative_ids", pa.list_(pa.string())),
        ("negative_rows", pa.list_(pa.int64())),
        ("negative_scores", pa.list_(pa.float32())),
        (ERROR, pa.string()),
    ]
)


def hard_negatives(
    dataset: Dataset,
    queries: Dataset | np.ndarray,
    positives: Positives,
    *,
    column: str = "embedding",
    query_column: str | None = None,
    config: NegativesConfig | None = None,
    **settings: Any,
) -> Dataset:
    """Find hard negatives: images that are similar to a query and are not what it looks for.

        images = add_columns(images, EmbedImages("google/siglip-base-patch16-224", column="embedding"))
        found = hard_negatives(images, model.encode_query(texts), positives, num_negatives=5, relative_margin=0.05)

    Embeddings may be of any model that gives queries and images one space. Similarity is cosine; embeddings that are
    not of unit length are normalized in a copy, and all are compared as float16. The query's own image (the row with
    the same `image_id`), its positives and near-duplicates of the query, its image or a positive are no negatives, and
    neither is a row with an `error` or without an embedding (zeros).

    Args:
        dataset: N rows with `image_id` and `column`, the embeddings of images: lists of one length, float16 or
            float32.
        queries: a `Dataset` with embeddings in `query_column`, or an array [Q, D].
        positives: for each query the id of its positive, or a list of ids; or the column of `queries` that has them.
        column: the embeddings in `dataset`.
        query_column: the embeddings in `queries`; None for the same name.
        config: the settings as one object.
        **settings: the fields of `NegativesConfig`, instead of `config`, such as `num_negatives`, `range_min`,
            `range_max`, `max_score`, `min_score`, `absolute_margin`, `relative_margin`, `sampling_strategy`,
            `near_duplicate`, `negatives_from`.

    Returns:
        A row per query, in their order: `positive_ids`, `positive_scores`, `negative_ids`, `negative_rows` (of
        `dataset`), `negative_scores`, the most similar first, and `error`: a query that cannot be served has empty
        lists. A note says how many queries have fewer negatives than asked for.

    Raises:
        ConfigError: a setting or a column does not fit.
        MissingDependencyError: the extra `mine` is not installed.
    """
    import datasets

    config = given_settings(NegativesConfig, config, settings, "hard_negatives")
    rows = dataset_rows(check_dataset(dataset, "hard_negatives"), [column], ())
    check_ids(rows.ids, rows.excluded, rows.what)
    require("mine", "hard_negatives")
    with scratch_folder(Path(datasets.config.HF_DATASETS_CACHE) / "megapairs_hf" / "negatives") as folder:
        targets = _open_targets(rows, column, folder / "embeddings.npy")
        asked, records = read_queries(dataset, queries, positives, query_column or column, targets)
        _fill(records, asked, targets, config)
    _note_counts(records, config, len(targets.rows))
    columns = {name: [record.get(name, []) for record in records] for name in SCHEMA.names}
    return datasets.Dataset(pa.table(columns, schema=SCHEMA))


def _open_targets(rows: EmbeddedRows, column: str, file: Path) -> Targets:
    """The rows with an embedding and without an error; `file` is where a copy of unit length may lie."""
    embeddings = unit_embeddings(rows.embeddings[column], file, shared=False)
    mask = has_embedding(embeddings)
    if rows.excluded is not None:
        mask &= ~rows.excluded
    if not mask.any():
        raise ConfigError(f"no row has an embedding in {column!r}, so there are no negatives; embed the images again")
    usable = np.flatnonzero(mask)
    return Targets(embeddings if mask.all() else SelectedRows(embeddings, usable), usable, rows.ids)


def _fill(records: list[dict[str, Any]], queries: Queries, targets: Targets, config: NegativesConfig) -> None:
    """Search, and write what was found into the records."""
    for part, indices, scores in _searched(queries, targets, config):
        similarity = _positive_scores(part, targets)
        usable = _usable(part, indices, scores, similarity, targets, config)
        for n, number in enumerate(part.numbers.tolist()):
            chosen = _sample(np.flatnonzero(usable[n]), scores[n], number, config)
            record = records[number]
            record["positive_scores"] = similarity[n][part.positives[n] >= 0].tolist()
            record["negative_ids"] = targets.names(indices[n][chosen])
            record["negative_rows"] = targets.rows[indices[n][chosen]].tolist()
            record["negative_scores"] = scores[n][chosen].tolist()


def _searched(
    queries: Queries, targets: Targets, config: NegativesConfig
) -> Iterator[tuple[Queries, np.ndarray, np.ndarray]]:
    """Some queries at a time, with the indices [B, K] and the scores [B, K] of their nearest targets."""
    from megapairs_hf.mining.knn.exact import ExactSearch
    from megapairs_hf.mining.knn.plan import make_plan
    from megapairs_hf.mining.knn.quantize import integers_are_faster
    from megapairs_hf.mining.knn.thread_pool import workers

    count, dimension = len(targets.embeddings), targets.embeddings.dimension
    # beside the candidates, the query's own image and all its positives may be found
    k = min(count, config.last + queries.positives.shape[1] + 1)
    budget = MineConfig(neighbors=k, search="exact", memory_gb=config.memory_gb, threads=config.threads)
    plan = make_plan(budget, count, dimension, same=False, integers=integers_are_faster(dimension))
    total = len(queries.numbers)
    with workers(config.threads) as crew, Progress("hard_negatives", total, "queries") as bar:
        search = ExactSearch(targets.embeddings, k, crew, block_rows=plan.block_rows)
        for low in range(0, total, plan.group_rows):
            part = queries.part(slice(low, low + plan.group_rows))
            yield part, *search.search(part.embeddings)
            bar.advance(len(part.numbers))


def _positive_scores(queries: Queries, targets: Targets) -> np.ndarray:
    """The similarity of each query to its positives, [B, P] float64; infinite where there is none."""
    scores = np.full(queries.positives.shape, np.inf)
    rows, columns = np.nonzero(queries.positives >= 0)
    own = Embeddings([queries.embeddings])
    scores[rows, columns] = score_rows(own, targets.embeddings, rows, queries.positives[rows, columns])
    return scores


def _usable(
    queries: Queries,
    indices: np.ndarray,
    scores: np.ndarray,
    similarity: np.ndarray,
    targets: Targets,
    config: NegativesConfig,
) -> np.ndarray:
    """Which of the nearest targets may be negatives, [B, K] bool."""
    usable = (indices >= 0) & (indices != queries.own[:, None])
    for positive in queries.positives.T:
        usable &= indices != positive[:, None]
    rank = np.cumsum(usable, axis=1) - 1
    usable &= (rank >= config.range_min) & (rank < config.last)
    lowest = similarity.min(axis=1)[:, None]
    if config.max_score is not None:
        usable &= scores <= config.max_score
    if config.min_score is not None:
        usable &= scores >= config.min_score
    if config.absolute_margin is not None:
        usable &= scores <= lowest - config.absolute_margin
    if config.relative_margin is not None:
        usable &= scores <= lowest - config.relative_margin * np.abs(lowest)
    if config.near_duplicate is not None:
        usable &= scores < config.near_duplicate
        for image in (queries.own, *queries.positives.T):
            rows, columns = np.nonzero(usable & (image >= 0)[:, None])
            near = score_rows(targets.embeddings, targets.embeddings, indices[rows, columns], image[rows])
            usable[rows, columns] = near < config.near_duplicate
    return usable


def _sample(candidates: np.ndarray, scores: np.ndarray, number: int, config: NegativesConfig) -> np.ndarray:
    low, high = config.similarity_range
    related = {n for n in candidates.tolist() if low < scores[n] < high}
    tiers = [np.array(tier, np.int64) for tier in in_tiers(candidates.tolist(), related, config.negatives_from)]
    if config.sampling_strategy == "top" or len(candidates) <= config.num_negatives:
        chosen = np.concatenate(tiers)[: config.num_negatives]
    else:
        chosen = np.array(sample_tiers(tiers, config.num_negatives, random.Random(f"{config.seed}/{number}")))
    return np.sort(chosen)


def _more_candidates(config: NegativesConfig, images: int) -> str:
    """How a query gets more hard negatives, by what is set."""
    if config.num_negatives >= images:
        return ALL_TAKEN
    ways = [] if config.last >= images else ["raise `range_max`"]
    for name, loosen in LOOSEN.items():
        if getattr(config, name) is not None:
            ways.append(f"{loosen} `{name}`")
    return f"; {', or '.join(ways)}" if ways else ALL_TAKEN


def _note_counts(records: Sequence[dict[str, Any]], config: NegativesConfig, images: int) -> None:
    errors = Counter(reason_of(record[ERROR]) for record in records if record[ERROR])
    few = sum(len(r["negative_ids"]) < config.num_negatives for r in records if not r[ERROR])
    total = sum(len(r.get("negative_ids", ())) for r in records)
    sentences = [f"hard_negatives: {total:,} for {len(records):,} queries"]
    if few:
        sentences.append(f"{few:,} have fewer than {config.num_negatives}{_more_candidates(config, images)}")
    if errors:
        sentences.append(f"without any: {format_counts(errors)}")
    note("; ".join(sentences))
