"""Every image and caption of a corpus becomes a unit vector under each encoder."""

from typing import TYPE_CHECKING

from megapairs_hf.core import lazy

if TYPE_CHECKING:
    from megapairs_hf.embedding.config import EmbedConfig, EncoderConfig
    from megapairs_hf.embedding.embed import EmbedImages, EmbedTexts
    from megapairs_hf.embedding.stage import embed_corpus
else:
    __getattr__, __dir__ = lazy.exports(
        __name__,
        {
            "config": ["EmbedConfig", "EncoderConfig"],
            "embed": ["EmbedImages", "EmbedTexts"],
            "stage": ["embed_corpus"],
        },
    )

__all__ = ["EmbedConfig", "EmbedImages", "EmbedTexts", "EncoderConfig", "embed_corpus"]
