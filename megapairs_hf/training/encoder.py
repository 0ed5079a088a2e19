"""The model as training sees it: distinct inputs in, embeddings before normalizing out.

One class serves both families, because Sentence Transformers tells them apart: a dual encoder is given images
and texts by themselves, a language model whole inputs. What surprises: the forward takes a list of chunks, because
DDP allows one forward call for each backward pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import TrainingError
from megapairs_hf.core.inputs import Input
from megapairs_hf.models.processor import DualProcessor, Prepared
from megapairs_hf.training.config import HEAD_LR

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from PIL import Image
    from torch import nn

    from megapairs_hf.training.config import TrainConfig
    from megapairs_hf.training.data.batch import BatchInput
    from megapairs_hf.training.data.loader import ImageBatch

UNUSED = ("logit_scale", "logit_bias")
# the projection behind each tower, by what goes into it
HEADS = {"image": ("visual_projection", "vision_head"), "text": ("text_projection", "text_head")}


def is_joint(model: Any) -> bool:
    """Whether text and image go through the model together, as in a language model."""
    return not isinstance(model.preparer, DualProcessor)


def head_of(model: Any, kind: str) -> nn.Module | None:
    """What follows the tower of images or texts; None where the tower's output is the embedding, as in SigLIP."""
    children: dict[str, nn.Module] = dict(model[0].model.named_children())
    return next((children[name] for name in HEADS[kind] if name in children), None)


def head_rates(model: Any, module: nn.Module, config: TrainConfig) -> dict[str, float]:
    """The learning rate of each parameter of the heads, by its name in the module that trains.

    Raises:
        TrainingError: `head_lr` is set, and the model has no head.
    """
    heads = [] if is_joint(model) else list(filter(None, (head_of(model, kind) for kind in HEADS)))
    if config.head_lr is not None and not heads:
        raise TrainingError(f"`head_lr` is {config.head_lr:g}, but the model has no heads; leave it out, or set `lr`")
    rate = config.head_lr or (HEAD_LR if config.freeze else config.lr)
    own = {id(parameter) for head in heads for parameter in head.parameters()}
    return {name: rate for name, parameter in module.named_parameters() if id(parameter) in own}


class ImageTransform:
    """What is kept of an image of this model; travels to worker processes."""

    def __init__(self, model: Any) -> None:
        self.preparer = model.preparer

    def __call__(self, image: Image.Image) -> Any:
        """Bytes after the resize, the processor's arrays, or the image as a language model's processor takes it."""
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

        def train(self, mode: bool = True) -> Encoder:
            """Training mode for all but the statistics of batch norms."""
            super().train(mode)
            hold_statistics(self)
            return self

        def forward(self, chunks: list[dict[str, Any]]) -> torch.Tensor:
            """Embeddings (Tensor[P, D]) of the inputs of all chunks."""
            return torch.cat([self._one(dict(chunk)) for chunk in chunks])

        def _one(self, features: dict[str, Any]) -> torch.Tensor:
            if "tower_outputs" in features:
                head = head_of(self.body, features["modality"])
                outputs: torch.Tensor = features["tower_outputs"]
                return outputs if head is None else head(outputs)
            for module in self.body:
                features = module(features)
            embeddings: torch.Tensor = features["sentence_embedding"]
            return embeddings

    # the loss has its own temperature, so a scale of the model's own would only decay
    for name, parameter in model.named_parameters():
        if name.rsplit(".", 1)[-1] in UNUSED:
            parameter.requires_grad_(False)
    return Encoder()


def hold_statistics(module: nn.Module) -> None:
    """Keep batch norms on the statistics of the pretraining.

    A dozen batches of few images replace them by their own, which halved what such a model found (R@1 32 to 16).
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.training = False


def prepared(
    model: Any, inputs: Sequence[BatchInput], images: ImageBatch, device: Any, prompted: bool = True
) -> dict[str, Any]:
    """One chunk as tensors on the device.

    Args:
        model: the MMRet.
        inputs: of one role and kind.
        images: of those that have one, in order.
        device: where to.
        prompted: whether queries have the model's own instruction; those that bring theirs have the frame alone.
    """
    from PIL import Image

    role, kind = inputs[0].role, inputs[0].kind
    if kind == "image" and not role and model.preparer.pixels.plain is not None:
        return {"pixel_values": pixel_values(model.preparer.pixels.table, images.parts, device), "modality": "image"}
    shown = images.each()
    ready = []
    for item in inputs:
        one = Prepared() if item.text is None else Prepared(text=item.text)
        if item.image is not None:
            # a language model's processor takes images
            one["image"] = Image.fromarray(next(shown)) if is_joint(model) else next(shown)
        ready.append(one)
    settings = {}
    if role:
        # without an instruction a query is still one: the prompt's frame for queries, as the released code has it
        instruction = (model.prompts or {}).get(role) if prompted or role != "query" else None
        settings = {"prompt": instruction or None, "task": role}
    return moved(model.preprocess(ready, **settings), device)


def pixel_values(table: torch.Tensor, images: Sequence[Any], device: Any) -> torch.Tensor:
    """The processor's floats for bytes, looked up on the device.

    Args:
        table (Tensor[3, 256]): the float of each byte in each channel.
        images: [n, H, W, 3] tensors, or lists of [H, W, 3] each.
        device: where to.

    Returns:
        Tensor[B, 3, H, W].
    """
    import torch

    parts = [part if isinstance(part, torch.Tensor) else torch.stack(part) for part in images]
    stacked = torch.cat([part.to(device, non_blocking=True) for part in parts]).permute(0, 3, 1, 2)
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
