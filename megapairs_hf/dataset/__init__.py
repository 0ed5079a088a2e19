"""The data set: built from instructions and pairs, and read back row by row with its pictures."""

from megapairs_hf.dataset.config import BuildConfig
from megapairs_hf.dataset.load import Triplets, load_triplets
from megapairs_hf.dataset.stage import build_triplets

__all__ = ["BuildConfig", "Triplets", "build_triplets", "load_triplets"]
