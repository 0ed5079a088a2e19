"""Any captioned image collection becomes a `corpus`: really decoded, upright, opaque, without exact doubles."""

from typing import TYPE_CHECKING

from megapairs_hf import lazy

if TYPE_CHECKING:
    from megapairs_hf.corpus.config import CorpusConfig
    from megapairs_hf.corpus.scenes import ScenesConfig
    from megapairs_hf.corpus.stage import make_corpus
else:
    __getattr__, __dir__ = lazy.exports(
        __name__, {"config": ["CorpusConfig"], "scenes": ["ScenesConfig"], "stage": ["make_corpus"]}
    )

__all__ = ["CorpusConfig", "ScenesConfig", "make_corpus"]
