"""The model as training sees it: distinct inputs in, embeddings before normalizing out.

One class serves both families, because Sentence Transformers tells them apart: a dual encoder is given images
and texts by themselves, a language model whole inputs. What surprises: the forward takes a list of chunks, because
DDP allows one forward call for each backward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.inputs import Input
from megapairs_hf.models.processor import DualProcessor, Prepared

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from PIL import Image
    from torch import nn

    from megapairs_hf.training.data.batch import BatchInput

UNUSED = ("logit_scale", "logit_bias")


def is_joint(model: Any) -> bool:
    """Whether text and image go through the model together, as in a language model."""
    return not isinstance(model.preparer, DualProcessor)


class ImageTransform:
    """What is kept of an image of this model; travels to worker processes."""

    def __init__(self, model: Any) -> None:
        self.preparer = model.preparer

    def __call__(self, image: Image.Image) -> Any:
        """Bytes after the resize, or the processor's arrays."""
        return self.preparer.one(Input(None, image), 0)["image"]


def trainable(model: Any) -> nn.Module:
    """A module whose forward gives the embeddings of chunks of inputs, for DDP to wrap.

    Args:
        model: an MMRet; its last module normalizes and is left out.
    """
    import torch
    from torch import nn

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.ModuleList(list(model)[:-1])

        def forward(self, chunks: list[dict[str, Any]]) -> torch.Tensor:
            """Embeddings (Tensor[P, D]) of the inputs of all chunks."""
            return torch.cat([self._one(dict(chunk)) for chunk in chunks])

        def _one(self, features: dict[str, Any]) -> torch.Tensor:
            for module in self.body:
                features = module(features)
            embeddings: torch.Tensor = features["sentence_embedding"]
            return embeddings

    # the loss has its own temperature, so a scale of the model's own would only decay
    for name, parameter in model.named_parameters():
        if name.rsplit(".", 1)[-1] in UNUSED:
            parameter.requires_grad_(False)
    return Encoder()


def prepared(
    model: Any, inputs: Sequence[BatchInput], images: Sequence[Any], device: Any, prompted: bool = True
) -> dict[str, Any]:
    """One chunk as tensors on the device.

    Args:
        model: the MMRet.
        inputs: of one role and kind.
        images: what is kept of those that have one, in order.
        device: where to.
        prompted: whether queries have the model's own query prompt.
    """
    role, kind = inputs[0].role, inputs[0].kind
    if kind == "image" and not role and model.preparer.pixels.plain is not None:
        return {"pixel_values": pixel_values(model.preparer.pixels.table, images, device), "modality": "image"}
    shown = iter(images)
    ready = []
    for item in inputs:
        one = Prepared() if item.text is None else Prepared(text=item.text)
        if item.image is not None:
            one["image"] = next(shown)
        ready.append(one)
    settings = {}
    if role and (prompted or role != "query"):
        settings = {"prompt": (model.prompts or {}).get(role) or None, "task": role}
    return moved(model.preprocess(ready, **settings), device)


def pixel_values(table: torch.Tensor, images: Sequence[np.ndarray], device: Any) -> torch.Tensor:
    """The processor's floats for bytes, looked up on the device.

    Args:
        table (Tensor[3, 256]): the float of each byte in each channel.
        images: [H, W, 3] each.
        device: where to.

    Returns:
        Tensor[B, 3, H, W].
    """
    import torch

    stacked = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2)
    floats = table.to(device)
    pixels = torch.empty(stacked.shape, dtype=floats.dtype, device=floats.device)
    for channel, row in enumerate(floats):
        # a third of the time of plain indexing on a processor
        pixels[:, channel] = row.index_select(0, stacked[:, channel].reshape(-1).int()).view(pixels[:, channel].shape)
    return pixels


def moved(features: dict[str, Any], device: Any) -> dict[str, Any]:
    """The features with their tensors on the device."""
    import torch

    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in features.items()}
