"""What the small encoders learn: image and caption of a corpus, and two views of one image."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from megapairs_hf.core import distributed
from megapairs_hf.training.collectives import first_own, gather
from megapairs_hf.training.data.sampler import batch_rows, own_part
from megapairs_hf.training.loss import info_nce
from megapairs_hf.training.task import StepOutput

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from accelerate import Accelerator
    from torch import nn

    from megapairs_hf.training.config import LoopConfig
    from megapairs_hf.training.data.loader import PixelCache


class WholeBatchTask(ABC):
    """What is learned from batches whose graph fits into memory; the loss is a scalar.

    Attributes:
        module: what is trained.
        rates: learning rates of parameters by name, where they are not `lr`.
        rows: rows of the data.
    """

    module: nn.Module
    rates: Mapping[str, float] = MappingProxyType({})
    rows: int
    config: LoopConfig

    @abstractmethod
    def batch(self, step: int, rank: int, world: int) -> Any:
        """This process's part of the batch of a step."""

    @abstractmethod
    def loss(self, module: nn.Module, batch: Any, rank: int, device: Any) -> torch.Tensor:
        """The loss of this process's rows against those of all."""

    def learn(self, module: nn.Module, step: int, accelerator: Accelerator) -> StepOutput:
        """Leave the gradient of a step's batch on the parameters."""
        batch = self.batch(step, distributed.rank(), distributed.world_size())
        with accelerator.autocast():
            loss = self.loss(module, batch, distributed.rank(), accelerator.device)
        accelerator.backward(loss)
        rows = batch_rows(self.rows, self.config, step)
        return StepOutput(loss.detach(), [str(row) for row in rows], {"images": len(rows) // distributed.world_size()})

    def state(self) -> dict[str, Any]:
        """Nothing; the batch depends on the step alone."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from nothing."""
        return

    def close(self) -> None:
        """Nothing is open."""
        return


class CaptionTask(WholeBatchTask):
    """CLIP from scratch: images against their captions, both ways.

    Args:
        model: a transformers CLIP.
        tokenizer: its tokenizer.
        ids: image id of each row.
        captions: caption of each row.
        pixels: images by id.
        config: the settings.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        ids: Sequence[str],
        captions: Sequence[str],
        pixels: PixelCache,
        config: LoopConfig,
    ) -> None:
        self.module, self.tokenizer = towers(model), tokenizer
        self.ids, self.captions, self.pixels, self.config = ids, captions, pixels, config
        self.rows = len(ids)
        numbers: dict[str, int] = {}
        self.groups = [numbers.setdefault(caption, len(numbers)) for caption in captions]

    def batch(self, step: int, rank: int, world: int) -> list[int]:
        """This process's rows."""
        return own_part(batch_rows(self.rows, self.config, step), rank, world)

    def loss(self, module: nn.Module, batch: list[int], rank: int, device: Any) -> torch.Tensor:
        """Mean of image → text and text → image."""
        import torch
        from torch.nn.functional import normalize

        pixels = self.pixels([self.ids[i] for i in batch]).to(device)
        texts = [self.captions[i] for i in batch]
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(device)
        image, text = module(pixels, tokens["input_ids"], tokens["attention_mask"])
        image, text = normalize(image, dim=-1), normalize(text, dim=-1)
        groups = gather(torch.tensor([self.groups[i] for i in batch], device=device))
        positives = first_own(rank, len(batch)) + torch.arange(len(batch), device=device)
        mask = groups[positives][:, None] == groups[None]
        mask[torch.arange(len(batch)), positives] = False
        tau = self.config.temperature
        forth = info_nce(image, gather(text), positives, mask, tau)
        return (forth + info_nce(text, gather(image), positives, mask, tau)) / 2


class ViewsTask(WholeBatchTask):
    """Two random views of each image must find each other (SimCLR).

    Args:
        model: a transformers vision model; the class token of its last layer is learned.
        ids: image ids.
        pixels: images by id.
        config: the settings.
    """

    def __init__(self, model: nn.Module, ids: Sequence[str], pixels: PixelCache, config: LoopConfig) -> None:
        self.module, self.ids, self.pixels, self.config = model, ids, pixels, config
        self.rows = len(ids)

    def batch(self, step: int, rank: int, world: int) -> tuple[list[int], int]:
        """This process's rows, and the seed of their views."""
        return own_part(batch_rows(self.rows, self.config, step), rank, world), self.config.seed * 1_000_003 + step

    def loss(self, module: nn.Module, batch: tuple[list[int], int], rank: int, device: Any) -> torch.Tensor:
        """Each view against all others."""
        import torch
        from torch.nn.functional import normalize

        rows, seed = batch
        pixels = self.pixels([self.ids[i] for i in rows])
        generator = torch.Generator().manual_seed(seed + 7919 * rank)
        views = torch.cat([random_views(pixels, generator), random_views(pixels, generator)]).to(device)
        embeddings = normalize(module(pixel_values=views).last_hidden_state[:, 0], dim=-1)
        left, right = embeddings.chunk(2)
        positives = first_own(rank, len(rows)) + torch.arange(len(rows), device=device)
        tau = self.config.temperature
        forth = info_nce(left, gather(right), positives, None, tau)
        return (forth + info_nce(right, gather(left), positives, None, tau)) / 2


def random_views(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random crop of each image, perhaps mirrored, in other hues, paler or darker.

    Hue and brightness change so much that the model cannot find a view again by its colors; it learns patterns,
    which is what DINOv2 is there for among the encoders.

    Args:
        pixels (Tensor[B, 3, H, W]): the images.
        generator: decides.

    Returns:
        Views of the same shape.
    """
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    count = len(pixels)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    zoom = uniform(0.7, 1.0)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    turn = torch.zeros(count, 2, 3)
    turn[:, 0, 0], turn[:, 1, 1] = zoom * mirror, zoom
    turn[:, 0, 2], turn[:, 1, 2] = uniform(-1, 1) * (1 - zoom), uniform(-1, 1) * (1 - zoom)
    grid = affine_grid(turn, list(pixels.shape), align_corners=False)
    views = grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    views = torch.einsum("bij,bjhw->bihw", hue_turns(uniform(0, 2 * math.pi), uniform(0.2, 1.2)), views)
    return views * uniform(0.6, 1.3)[:, None, None, None] + uniform(-0.4, 0.4)[:, None, None, None]


def hue_turns(angles: torch.Tensor, saturations: torch.Tensor) -> torch.Tensor:
    """Color matrices that turn the hue and scale the saturation, and leave gray as it is.

    Args:
        angles (Tensor[B]): in radians.
        saturations (Tensor[B]): 1 keeps the saturation, 0 makes everything gray.

    Returns:
        Tensor[B, 3, 3].
    """
    import torch

    gray = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    cosines, sines = torch.cos(angles)[:, None, None], torch.sin(angles)[:, None, None]
    color = cosines * (torch.eye(3) - gray) + sines * cross
    return gray + saturations[:, None, None] * color


def towers(clip: Any) -> nn.Module:
    """A module whose forward gives the image and the text features of a CLIP, because DDP wraps only a forward."""
    from torch import nn

    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = clip

        def forward(
            self, pixels: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            image = self.clip.get_image_features(pixel_values=pixels).pooler_output
            text = self.clip.get_text_features(input_ids=input_ids, attention_mask=attention_mask).pooler_output
            return image, text

    # the loss has its own temperature; a scale that is never used would stop DDP
    clip.logit_scale.requires_grad_(False)
    return Towers()
