"""CIRR's subset recall: the target's place among the few images of its own set, without the reference."""

import datasets
import evaluate
import numpy as np

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.evaluation.metrics import recall_at_k

DESCRIPTION = (
    "Share of the queries whose target is among the first k when only the query's own subset is ranked (CIRR)."
)
ARGUMENTS = """
Args:
    predictions: ids of each query's ranking, best first, without repeats; the whole subset stands in it.
    references: id of each query's target.
    subsets: ids that count, the target among them; the reference image must not be (CIRR: 5 of 6 members).
    k: the cut, 1 by default.

Returns:
    `subset_recall_at_k`, from 0 to 1.
"""
CITATION = """@inproceedings{liu2021cirr, title={Image Retrieval on Real-life Images with Pre-trained
Vision-and-Language Models}, author={Zheyuan Liu and Cristian Rodriguez-Opazo and Damien Teney and Stephen Gould},
booktitle={ICCV},
year={2021}}"""


class SubsetRecallAtK(evaluate.Metric):
    """The metric as a module of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.Value("string")
        many = datasets.List(ids)
        features = datasets.Features({"predictions": many, "references": ids, "subsets": many})
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=ARGUMENTS, features=features
        )

    def _compute(
        self, predictions: list[list[str]], references: list[str], subsets: list[list[str]], k: int = 1
    ) -> dict[str, float]:
        if k < 1:
            raise EvaluationError(f"k is {k}, but must be at least 1")
        ranks = []
        for row, (ranking, target, subset) in enumerate(zip(predictions, references, subsets, strict=True)):
            if target not in subset:
                raise EvaluationError(f"the target of query {row} is not in its subset; compare the annotations")
            members = [name for name in ranking if name in set(subset)]
            if sorted(members) != sorted(set(subset)):
                raise EvaluationError(
                    f"ranking {row} does not hold each id of its subset once; rank the whole gallery or the subset"
                )
            ranks.append(members.index(target) + 1)
        return {"subset_recall_at_k": recall_at_k(np.array(ranks), k)}
