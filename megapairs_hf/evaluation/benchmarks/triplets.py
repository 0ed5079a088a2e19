"""A data set of triplets as a benchmark of one's own: its rows are the queries, all of its images the gallery.

Rows of one query image and one text are one query with several right answers. What surprises: where rows have hard
negatives there is a second benchmark, which ranks the right answers against those alone; of votes these are the images
that somebody called wrong.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import MANIFEST, Artifact, open_artifact
from megapairs_hf.artifacts.lookup import IdIndex
from megapairs_hf.artifacts.sources import as_artifact
from megapairs_hf.artifacts.storage import HUB_ID, join
from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.inputs import Input
from megapairs_hf.core.schema import IMAGE, IMAGE_ID
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.images.decode import to_rgb
from megapairs_hf.images.locate import ROOT, image_columns, row_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

    from megapairs_hf.evaluation.config import EvalConfig

SPLIT, HARD = "triplets", "hard negatives"


def is_triplets(name: str) -> bool:
    """Whether a word names a data set, and no benchmark of the field."""
    on_hub = HUB_ID.fullmatch(name) is not None and not name.endswith((".yaml", ".yml"))
    return Path(name).is_dir() or (on_hub and not Path(name).exists())


def read_triplets(source: Artifact | str, config: EvalConfig) -> list[Benchmark]:
    """The data set as one benchmark, or two where it has hard negatives.

    Args:
        source: an artifact, its folder, or a data set on the Hub, with its images.
        config: which metrics.

    Raises:
        EvaluationError: it has no triplets, or lacks an image that they name.
    """
    path = source.path if isinstance(source, Artifact) else source
    images = _Images(path)
    queries = _queries(path)
    known = set(images.ids)
    for query in queries:
        absent = [name for name in (query.input.image, *query.targets, *query.subset) if name not in known]
        if absent:
            raise EvaluationError(
                f"{path}: query {query.key} names the image {absent[0]}, which is not among its images"
            )
    metrics = (*(f"recall@{k}" for k in config.recall_at), *(f"map@{k}" for k in config.map_at))
    whole = Benchmark(
        path.rstrip("/").rsplit("/", 1)[-1],
        SPLIT,
        [replace(query, subset=()) for query in queries],
        {name: Input(image=name) for name in images.ids if name not in images.query_only},
        images,
        options={"remove_reference": True},
        metrics=metrics,
    )
    judged = [replace(query, candidates=query.subset, subset=()) for query in queries if query.subset]
    return [whole, replace(whole, split=HARD, queries=judged, metrics=("recall@1",))] if judged else [whole]


def _queries(path: str) -> list[Query]:
    """One query for each text of a query image; `subset` holds its right answers and its hard negatives."""
    rows = as_artifact(path, "triplets").dataset()
    targets = defaultdict[tuple[str, str], dict[str, None]](dict)
    negatives = defaultdict[tuple[str, str], dict[str, None]](dict)
    for row in rows:
        for text in row["q_text"]:
            key = (row["q_img"], text)
            targets[key][row["t_img"]] = None
            negatives[key].update(dict.fromkeys(row.get("hns") or ()))
    if not targets:
        raise EvaluationError(f"{path} holds no triplets to make queries of; name another data set")
    queries = []
    for number, ((image, text), right) in enumerate(targets.items()):
        wrong = [name for name in negatives[image, text] if name not in right and name != image]
        queries.append(
            Query(
                f"{number}",
                Input(text, image),
                tuple(right),
                exclude=(image,),
                subset=(*right, *wrong) if wrong else (),
                caption=text,
            )
        )
    return queries


class _Images:
    """The images of a data set by id.

    Args:
        path: of the data set.
    """

    def __init__(self, path: str) -> None:
        from datasets import Image as ImageFeature

        artifact = as_artifact(path, "corpus")
        # images that were searched with and are none of those that were searched
        there = storage.exists(join(path, MANIFEST))
        self.query_only = frozenset(open_artifact(path).manifest.stats.get("query_only", ()) if there else ())
        self.root: str | None = artifact.manifest.stats.get(ROOT)
        rows = artifact.dataset()
        self.rows = rows.cast_column(IMAGE, ImageFeature(decode=False)).select_columns(list(image_columns(self.root)))
        self.index = IdIndex(rows)
        self.ids: list[str] = list(rows[IMAGE_ID])

    def __call__(self, name: str) -> Image:
        """The RGB image of an id."""
        [row] = self.index.rows([name])
        return to_rgb(row_bytes(self.rows[int(row)], self.root))
