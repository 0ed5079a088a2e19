"""Any captioned image collection becomes a `corpus`: really decoded, upright, opaque, without exact doubles."""

from megapairs_hf.corpus.config import CorpusConfig
from megapairs_hf.corpus.scenes import ScenesConfig
from megapairs_hf.corpus.stage import make_corpus

__all__ = ["CorpusConfig", "ScenesConfig", "make_corpus"]
