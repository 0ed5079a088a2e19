"""What the encoders of one run share: the forward pass of a frozen image tower; and the tower that none of them uses.

A model that `align` trained and the image encoder under it differ by a head, and the tower is what costs time. What
surprises: nothing is computed differently, only once; a batch is compared with the one before, pixel by pixel.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

from megapairs_hf.embedding.encoders import SHARING
from megapairs_hf.embedding.transformers_encoder import TransformersEncoder

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch

    from megapairs_hf.embedding.config import EncoderConfig
    from megapairs_hf.embedding.encoder import Encoder


class SharedForward:
    """A tower's forward pass that remembers its last batch.

    Args:
        tower: of the first encoder.
    """

    def __init__(self, tower: Any) -> None:
        self.forward = tower.forward
        self.pixels: torch.Tensor | None = None
        self.output: Any = None

    def __call__(self, pixel_values: torch.Tensor) -> Any:
        """What the tower gives for images (Tensor[B, 3, H, W])."""
        import torch

        if self.pixels is None or not torch.equal(self.pixels, pixel_values):
            self.output, self.pixels = self.forward(pixel_values=pixel_values), pixel_values
        return self.output


def share_towers(encoders: Iterable[Encoder]) -> int:
    """Let equal image towers share their forward pass; how many passes per batch that saves."""
    towers = [_tower(encoder) for encoder in encoders if encoder.transform is not None]
    shared: set[int] = set()
    for first, second in combinations([tower for tower in towers if tower is not None], 2):
        if id(second) not in shared and _equal(first, second):
            if not isinstance(first.forward, SharedForward):
                first.forward = SharedForward(first)
            second.forward = first.forward
            shared.add(id(second))
    return len(shared)


# what only one tower of a dual encoder consists of, by what it embeds
OF_TOWER = {
    "image": ("vision_model", "visual_projection", "vision_head", "visual"),
    "caption": ("text_model", "text_projection", "text_head", "text", "transformer", "token_embedding", "ln_final"),
}


def drop_unused_towers(encoders: Iterable[tuple[EncoderConfig, Encoder]]) -> None:
    """Free the tower of each dual encoder that none of these encoders uses."""
    used: dict[int, tuple[Any, set[str]]] = {}
    for config, encoder in encoders:
        # of code from elsewhere nothing is known
        if config.library in SHARING and not config.trust_remote_code:
            model: Any = encoder.model  # type: ignore[attr-defined]
            if config.library == "open_clip" or hasattr(model, "get_text_features"):
                used.setdefault(id(model), (model, set()))[1].add(config.input)
    for model, inputs in used.values():
        for name in (name for kind in OF_TOWER.keys() - inputs for name in OF_TOWER[kind]):
            model._modules.pop(name, None)


def _tower(encoder: Encoder) -> Any:
    """The module that is called with pixels alone: all of a plain vision model, the image tower of two towers."""
    from megapairs_hf.models.modeling_two_towers import TwoTowersModel

    if not isinstance(encoder, TransformersEncoder):
        return None
    if isinstance(encoder.model, TwoTowersModel):
        return encoder.model.vision_model
    return None if hasattr(encoder.model, "get_image_features") else encoder.model


def _equal(first: Any, second: Any) -> bool:
    """Whether two modules are of one class and have the same weights, names and bits."""
    import torch

    ours, theirs = first.state_dict(), second.state_dict()
    return (
        type(first) is type(second)
        and ours.keys() == theirs.keys()
        and all(
            tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]) for name, tensor in ours.items()
        )
    )
