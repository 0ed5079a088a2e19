"""Every picture and caption of a corpus becomes a unit vector under each similarity model."""

from typing import TYPE_CHECKING

from megapairs_hf.core import lazy

if TYPE_CHECKING:
    from megapairs_hf.embedding.config import EmbedConfig, SimilarityModelConfig
    from megapairs_hf.embedding.stage import embed_corpus
else:
    __getattr__, __dir__ = lazy.exports(
        __name__, {"config": ["EmbedConfig", "SimilarityModelConfig"], "stage": ["embed_corpus"]}
    )

__all__ = ["EmbedConfig", "SimilarityModelConfig", "embed_corpus"]
