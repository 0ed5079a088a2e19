"""Metrics of composed image retrieval for `evaluate`, by name: `evaluate.load("eval/metrics", "recall_at_k")`.

`recall_at_k`, `map_at_k` (CIRCO), `subset_recall_at_k` (CIRR) and `precision_at_1` (MMEB), from the functions that
`megapairs eval` uses.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.evaluation.metrics import average_precision_at_k, recall_at_k
from megapairs_hf.evaluation.score_checks import check_scores

RECALL, MAP, SUBSET_RECALL, PRECISION = "recall_at_k", "map_at_k", "subset_recall_at_k", "precision_at_1"
DESCRIPTIONS = {
    RECALL: "Share of the queries whose target is among the first k of their ranking.",
    MAP: "Mean over queries of AP@k, with min(number of targets, k) in the denominator (CIRCO).",
    SUBSET_RECALL: "Share of the queries whose target is among the first k when only its own subset is ranked (CIRR).",
    PRECISION: "Share of the queries whose target scores higher than every other candidate of the query (MMEB).",
}
ARGUMENTS = """
Args:
    predictions: ids of each query's ranking, best first, without repeats; may be shorter than k. For `precision_at_1`
        scores of each query's candidates, two at the least, finite and not all equal.
    references: id of each query's target; for `map_at_k` ids of all its targets; for `precision_at_1` the position of
        the target among the candidates (0 throughout MMEB).
    subsets: for `subset_recall_at_k`, ids that count, the target among them; the reference image must not be.
    k: the cut, 1 by default, 5 of `map_at_k`.

Returns:
    The value from 0 to 1 under the metric's name; of `precision_at_1` also `ties`: how many queries have another
    candidate with the target's score, which is no win.
"""
CITATION = """@inproceedings{liu2021cirr, title={Image Retrieval on Real-life Images with Pre-trained
Vision-and-Language Models}, author={Zheyuan Liu and Cristian Rodriguez-Opazo and Damien Teney and Stephen Gould},
booktitle={ICCV}, year={2021}}
@inproceedings{baldrati2023searle, title={Zero-Shot Composed Image Retrieval with Textual Inversion},
author={Alberto Baldrati and Lorenzo Agnolucci and Marco Bertini and Alberto Del Bimbo}, booktitle={ICCV}, year={2023}}
@inproceedings{jiang2025vlm2vec, title={VLM2Vec: Training Vision-Language Models for Massive Multimodal
Embedding Tasks}, author={Ziyan Jiang and Rui Meng and Xinyi Yang and Semih Yavuz and Yingbo Zhou and Wenhu Chen},
booktitle={ICLR}, year={2025}}
"""


class RetrievalMetric(evaluate.Metric):
    """The metrics as one module of `evaluate`; the configuration names which."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in DESCRIPTIONS:
            raise EvaluationError(f"name one of {', '.join(DESCRIPTIONS)}, as in evaluate.load(PATH, {RECALL!r})")
        one, many = datasets.Value("string"), datasets.List(datasets.Value("string"))
        features = {"predictions": many, "references": many if self.config_name == MAP else one}
        if self.config_name == SUBSET_RECALL:
            features["subsets"] = many
        if self.config_name == PRECISION:
            scores = datasets.List(datasets.Value("float64"))
            features = {"predictions": scores, "references": datasets.Value("int32")}
        return evaluate.MetricInfo(
            description=DESCRIPTIONS[self.config_name],
            citation=CITATION,
            inputs_description=ARGUMENTS,
            features=datasets.Features(features),
        )

    def _compute(
        self, predictions: list, references: list, subsets: list | None = None, k: int | None = None
    ) -> dict[str, float | int]:
        if self.config_name == PRECISION:
            return precision_at_1(predictions, references)
        k = (5 if self.config_name == MAP else 1) if k is None else k
        if k < 1:
            raise EvaluationError(f"k is {k}, but must be at least 1")
        if self.config_name == SUBSET_RECALL:
            triples = zip(predictions, references, subsets or [], strict=True)
            predictions = [subset_of(row, *triple) for row, triple in enumerate(triples)]
        for row, ranking in enumerate(predictions):
            if len(set(ranking)) != len(ranking):
                raise EvaluationError(f"ranking {row} names an id twice; give each id once")
        metric = mean_precision if self.config_name == MAP else recall
        return {self.config_name: metric(predictions, references, k)}


def recall(rankings: Sequence[list[str]], targets: Sequence[str], k: int) -> float:
    """Recall@k; a target that is not in its ranking is beyond every cut."""
    ranks = [
        ranking.index(target) + 1 if target in ranking else np.inf
        for ranking, target in zip(rankings, targets, strict=True)
    ]
    return recall_at_k(np.array(ranks), k)


def mean_precision(rankings: Sequence[list[str]], targets: Sequence[list[str]], k: int) -> float:
    """mAP@k as CIRCO defines it."""
    if not all(targets):
        row = list(map(bool, targets)).index(False)
        raise EvaluationError(f"query {row} has no target; leave out queries whose answers are unknown")
    pairs = zip(rankings, targets, strict=True)
    return float(
        np.mean([average_precision_at_k(np.isin(ids[:k], right), len(set(right)), k) for ids, right in pairs])
    )


def subset_of(row: int, ranking: list[str], target: str, subset: list[str]) -> list[str]:
    """The ranking of a query's subset alone."""
    if target not in subset:
        raise EvaluationError(f"the target of query {row} is not in its subset; compare the annotations")
    members = [name for name in ranking if name in set(subset)]
    if sorted(members) != sorted(set(subset)):
        raise EvaluationError(
            f"ranking {row} does not hold each id of its subset once; rank the whole gallery or the subset"
        )
    return members


def precision_at_1(candidates: Sequence[list[float]], targets: Sequence[int]) -> dict[str, float | int]:
    """MMEB's precision@1: the target must beat every other candidate, and a tie is no win."""
    right, ties = 0, 0
    for row, (listed, target) in enumerate(zip(candidates, targets, strict=True)):
        scores = np.array(listed, float)
        if not 0 <= target < len(scores):
            raise EvaluationError(f"query {row} has {len(scores)} candidates and no number {target}")
        if len(scores) < len(("target", "another")):
            raise EvaluationError(f"query {row} has one candidate only, so every model would be right")
        check_scores(str(row), scores.min(), scores.max(), len(scores))
        others = np.delete(scores, target)
        right += bool(scores[target] > others.max())
        ties += bool((others == scores[target]).any())
    return {PRECISION: right / len(candidates), "ties": ties}
