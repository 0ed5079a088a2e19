"""Composed-image-retrieval data from any captioned image corpus, and retrievers trained on it."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["evaluate", "load_mmret", "load_triplets"]

_PLACES = {
    "evaluate": "megapairs_hf.evaluation",
    "load_mmret": "megapairs_hf.models",
    "load_triplets": "megapairs_hf.dataset",
}


def __getattr__(name: str) -> Any:
    # importing is free: what is heavy is loaded when it is named
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
