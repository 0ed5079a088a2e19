"""MMRet by score fusion: a dual encoder with one more method, the sum of its two outputs (paper, section 3.2, eq. 2).

This file is copied beside the weights of every saved model, so it imports nothing but transformers. The weights stay a
plain checkpoint of the backbone: whoever does not want this file loads them with `AutoModel` as the model they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import CLIPModel, SiglipModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

if TYPE_CHECKING:
    import torch

PREFIX = "MMRet"


class ScoreFusionMixin:
    """Adds `get_multimodal_features` to a model with `get_text_features` and `get_image_features`."""

    get_text_features: Any
    get_image_features: Any

    def get_multimodal_features(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """Text features plus image features; normalizing comes after the sum, in the module that follows.

        Args:
            input_ids (LongTensor[B, T]): tokens of the texts.
            attention_mask (LongTensor[B, T]): 1 for a token, 0 for padding; absent for SigLIP, which was trained
                without one.
            pixel_values (Tensor[B, 3, H, W]): the images.

        Returns:
            An output whose `pooler_output` (Tensor[B, D]) is the sum.
        """
        texts = self.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output
        images = self.get_image_features(pixel_values=pixel_values).pooler_output
        return BaseModelOutputWithPooling(pooler_output=texts + images)


class MMRetCLIPModel(ScoreFusionMixin, CLIPModel):
    """CLIP with score fusion."""


class MMRetSiglipModel(ScoreFusionMixin, SiglipModel):
    """SigLIP with score fusion."""
