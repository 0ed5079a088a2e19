"""Composed retrieval, measured: queries with known answers, strategies over anything with `encode`, metrics."""

from megapairs_hf.evaluation.config import EvalConfig, RuleConfig
from megapairs_hf.evaluation.stage import evaluate

__all__ = ["EvalConfig", "RuleConfig", "evaluate"]
