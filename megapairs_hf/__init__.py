"""Composed-image-retrieval data from any captioned image corpus, and retrievers trained on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megapairs_hf.core import lazy
from megapairs_hf.core.version import __version__ as __version__

if TYPE_CHECKING:
    from megapairs_hf.dataset import load_triplets
    from megapairs_hf.evaluation import evaluate
    from megapairs_hf.models import load_mmret
else:
    __getattr__, __dir__ = lazy.exports(
        __name__, {"dataset": ["load_triplets"], "evaluation": ["evaluate"], "models": ["load_mmret"]}
    )

__all__ = ["evaluate", "load_mmret", "load_triplets"]
