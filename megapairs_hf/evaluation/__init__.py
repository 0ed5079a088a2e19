"""Composed retrieval, measured: queries with known answers, strategies over anything with `encode`, metrics."""

from typing import TYPE_CHECKING

from megapairs_hf.core import lazy

if TYPE_CHECKING:
    from megapairs_hf.evaluation.config import EvalConfig, RuleConfig
    from megapairs_hf.evaluation.entry import ModelSource, evaluate
else:
    __getattr__, __dir__ = lazy.exports(
        __name__, {"config": ["EvalConfig", "RuleConfig"], "entry": ["ModelSource", "evaluate"]}
    )

__all__ = ["EvalConfig", "ModelSource", "RuleConfig", "evaluate"]
