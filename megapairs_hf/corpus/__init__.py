"""Any captioned image collection becomes a `corpus`: decoded, upright, opaque, without exact duplicates."""

from typing import TYPE_CHECKING

from megapairs_hf.core import lazy

if TYPE_CHECKING:
    from megapairs_hf.corpus.check import CheckImages
    from megapairs_hf.corpus.config import CorpusConfig
    from megapairs_hf.corpus.stage import make_corpus
    from megapairs_hf.corpus.synthetic.scenes import ScenesConfig
else:
    __getattr__, __dir__ = lazy.exports(
        __name__,
        {
            "check": ["CheckImages"],
            "config": ["CorpusConfig"],
            "stage": ["make_corpus"],
            "synthetic.scenes": ["ScenesConfig"],
        },
    )

__all__ = ["CheckImages", "CorpusConfig", "ScenesConfig", "make_corpus"]
