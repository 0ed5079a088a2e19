"""mAP@k as CIRCO defines it: precisions at the hits up to k, divided by min(number of targets, k)."""

import datasets
import evaluate
import numpy as np

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.evaluation.metrics import average_precision_at_k

DESCRIPTION = "Mean over queries of AP@k, with min(number of targets, k) in the denominator (CIRCO)."
ARGUMENTS = """
Args:
    predictions: ids of each query's ranking, best first, without repeats; may be shorter than k.
    references: ids of each query's targets, one at the least.
    k: the cut, 5 by default.

Returns:
    `map_at_k`, from 0 to 1.
"""
CITATION = """@inproceedings{baldrati2023searle, title={Zero-Shot Composed Image Retrieval with Textual Inversion},
author={Alberto Baldrati and Lorenzo Agnolucci and Marco Bertini and Alberto Del Bimbo}, booktitle={ICCV}, year={2023}}
"""


class MapAtK(evaluate.Metric):
    """The metric as a module of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.List(datasets.Value("string"))
        features = datasets.Features({"predictions": ids, "references": ids})
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=ARGUMENTS, features=features
        )

    def _compute(self, predictions: list[list[str]], references: list[list[str]], k: int = 5) -> dict[str, float]:
        if k < 1:
            raise EvaluationError(f"k is {k}, but must be at least 1")
        precisions = []
        for row, (ranking, targets) in enumerate(zip(predictions, references, strict=True)):
            if len(set(ranking)) != len(ranking):
                raise EvaluationError(f"ranking {row} names an id twice; give each id once")
            if not targets:
                raise EvaluationError(f"query {row} has no target; leave out queries whose answers are unknown")
            relevant = np.isin(ranking[:k], targets)
            precisions.append(average_precision_at_k(relevant, len(set(targets)), k))
        return {"map_at_k": float(np.mean(precisions))}
