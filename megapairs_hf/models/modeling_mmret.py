"""MMRet by score fusion: a dual encoder with one more method, the sum of its two outputs (paper, section 3.2, eq. 2).

This file is copied beside the weights of every saved model, so it imports nothing but transformers. The weights stay a
plain checkpoint of the backbone: whoever does not want this file loads them with `AutoModel` as the model they are.
What surprises: the classes are made when they are asked for. `MMRetSiglipModel` of this module is transformers'
`SiglipModel` with the method added, and so for every class of transformers that has the two towers.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import transformers
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
        token_type_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
    ) -> BaseModelOutputWithPooling:
        """Text features plus image features; normalizing comes after the sum, in the module that follows.

        Args:
            input_ids (LongTensor[B, T]): tokens of the texts.
            attention_mask (LongTensor[B, T]): 1 for a token, 0 for padding; absent for SigLIP, which was trained
                without one.
            token_type_ids (LongTensor[B, T]): for BERT-like towers that tell sentences apart.
            pixel_values (Tensor[B, 3, H, W]): the images.
            pixel_attention_mask (LongTensor[B, P]): for towers that take patches of any number.
            spatial_shapes (LongTensor[B, 2]): rows and columns of those patches.

        Returns:
            An output whose `pooler_output` (Tensor[B, D]) is the sum.
        """
        text = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        image = {"pixel_attention_mask": pixel_attention_mask, "spatial_shapes": spatial_shapes}
        texts = features(self.get_text_features, {"input_ids": input_ids, **text})
        images = features(self.get_image_features, {"pixel_values": pixel_values, **image})
        return BaseModelOutputWithPooling(pooler_output=texts + images)


def features(method: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The features (Tensor[B, D]) that a tower's method gives for those inputs that are there and that it knows."""
    known = inspect.signature(method).parameters
    output = method(**{name: value for name, value in inputs.items() if value is not None and name in known})
    # transformers 5 returns an object, other models the features themselves
    return output.pooler_output if "Output" in type(output).__name__ else output


def __getattr__(name: str) -> type:
    """The fused class of a transformers class: `MMRetCLIPModel` for `CLIPModel`."""
    base = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if not isinstance(base, type):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = type(name, (ScoreFusionMixin, base), {"__module__": __name__, "__doc__": f"{base.__name__} with fusion."})
    # kept, so that the class is one object and its instances can be pickled
    globals()[name] = made
    return made
