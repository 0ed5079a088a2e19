"""MMEB's precision@1 from scores: the target must beat every other candidate, and a tie is no win."""

import datasets
import evaluate
import numpy as np

from megapairs_hf.core.errors import EvaluationError

DESCRIPTION = "Share of the queries whose target scores higher than every other candidate of the query (MMEB)."
ARGUMENTS = """
Args:
    predictions: scores of each query's candidates, two at the least, finite and not all equal.
    references: position of each query's target among its candidates (0 throughout MMEB).

Returns:
    `precision_at_1`, from 0 to 1, and `ties`: how many queries have another candidate with the target's score.
"""
CITATION = """@inproceedings{jiang2025vlm2vec, title={VLM2Vec: Training Vision-Language Models for Massive Multimodal
Embedding Tasks}, author={Ziyan Jiang and Rui Meng and Xinyi Yang and Semih Yavuz and Yingbo Zhou and Wenhu Chen},
booktitle={ICLR}, year={2025}}"""


class PrecisionAt1(evaluate.Metric):
    """The metric as a module of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        scores = datasets.List(datasets.Value("float64"))
        features = datasets.Features({"predictions": scores, "references": datasets.Value("int32")})
        return evaluate.MetricInfo(
            description=DESCRIPTION, citation=CITATION, inputs_description=ARGUMENTS, features=features
        )

    def _compute(self, predictions: list[list[float]], references: list[int]) -> dict[str, float | int]:
        right, ties = 0, 0
        for row, (scores, target) in enumerate(zip(predictions, references, strict=True)):
            values = np.array(scores, float)
            if not 0 <= target < len(values):
                raise EvaluationError(f"query {row} has {len(values)} candidates and no number {target}")
            if not np.isfinite(values).all():
                raise EvaluationError(f"a score of query {row} is not finite; look at the model's precision")
            # argmax of constants is 0, where the target stands: a broken model would score 100 %
            if len(values) < 2 or values.max() == values.min():
                raise EvaluationError(
                    f"all scores of query {row} are equal; the model tells no candidate from another"
                )
            others = np.delete(values, target)
            right += bool(values[target] > others.max())
            ties += bool((others == values[target]).any())
        return {"precision_at_1": right / len(predictions), "ties": ties}
