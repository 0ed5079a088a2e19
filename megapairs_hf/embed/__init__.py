"""Every picture and caption of a corpus becomes a unit vector under each similarity model."""

from megapairs_hf.embed.config import EmbedConfig, SimilarityModelConfig
from megapairs_hf.embed.stage import embed_corpus

__all__ = ["EmbedConfig", "SimilarityModelConfig", "embed_corpus"]
