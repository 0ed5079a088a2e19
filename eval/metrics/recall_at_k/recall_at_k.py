"""Recall@k of composed image retrieval: the share of queries whose one target is among the first k."""

import datasets
import evaluate
import numpy as np

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.evaluation.metrics import recall_at_k

DESCRIPTION = (
    "Share of the queries whose target is among the first k of their ranking (CIRR, FashionIQ, GeneCIS, CIRCO)."
)
ARGUMENTS = """
Args:
    predictions: ids of each query's ranking, best first, without repeats; may be shorter than k.
    references: id of each query's target.
    k: the cut, 1 by default.

Returns:
    `recall_at_k`, from 0 to 1.
"""
CITATION = """@inproceedings{liu2021cirr, title={Image Retrieval on Real-life Images with Pre-trained
Vision-and-Language Models}, author={Zheyuan Liu and Cristian Rodriguez-Opazo and Damien Teney and Stephen Gould},
booktitle={ICCV},
year={2021}}"""


class RecallAtK(evaluate.Metric):
    """The metric as a module of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Value("string")
        features = datasets.Features({"predictions": datasets.List(ids), "references": ids})
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=ARGUMENTS, features=features
        )

    def _compute(self, predictions: list[list[str]], references: list[str], k: int = 1) -> dict[str, float]:
        if k < 1:
            raise EvaluationError(f"k is {k}, but must be at least 1")
        for row, ranking in enumerate(predictions):
            if len(set(ranking)) != len(ranking):
                raise EvaluationError(f"ranking {row} names an id twice; give each id once")
        # a target that is not in the ranking is beyond every cut
        ranks = [
            ranking.index(target) + 1 if target in ranking else np.inf
            for ranking, target in zip(predictions, references, strict=True)
        ]
        return {"recall_at_k": recall_at_k(np.array(ranks), k)}
