"""What can be learnt: composed retrieval from triplets, image and caption from a corpus, two views of one picture.

In a batch of triplets each distinct picture goes through the model once: the query image serves as part of the query
and as its own hard negative, and pictures that several rows share are computed for one of them.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.train.loop import batch_rows, own_part, sibling_order
from megapairs_hf.train.loss import first_own, gather, info_nce

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

    from megapairs_hf.train.config import LoopConfig, TrainConfig
    from megapairs_hf.train.pixels import PixelCache


@dataclass(frozen=True)
class TripletBatch:
    """One process's part of a batch.

    Attributes:
        images: distinct image ids.
        texts: the instruction of each query.
        queries: place of each query image in `images`.
        candidates: places of each row's positive and hard negatives, positive first.
    """

    images: list[str]
    texts: list[str]
    queries: list[int]
    candidates: list[list[int]]


class TripletTask:
    """Composed retrieval: query image plus instruction against target and hard negatives.

    Args:
        model: an MMRet.
        triplets: rows with image ids (`ids`), as `load_triplets` gives them.
        pixels: pictures by id.
        config: the settings.
    """

    def __init__(self, model: Any, triplets: Any, pixels: PixelCache, config: TrainConfig) -> None:
        self.model, self.pixels, self.config = model, pixels, config
        self.module = towers(model[0].model)
        self.tokenizer = model[0].tokenizer
        wanted = set(config.relations)
        relations = triplets.rows["relation"]
        kept = [i for i, names in enumerate(relations) if not wanted or wanted & set(names)]
        self.table = triplets.rows.select(kept)
        self.rows = len(kept)
        self.numbers: dict[str, int] = {}
        self.queries = np.unique(self.table["q_img"], return_inverse=True)[1] if kept else np.empty(0, int)
        self.order: tuple[int, Any] = (-1, None)

    def batch(self, step: int, rank: int, world: int) -> TripletBatch:
        """This process's rows; the instruction and the negatives are drawn by seed and step."""
        rows = own_part(self._batch_rows(step), rank, world)
        images: dict[str, int] = {}
        texts, queries, candidates = [], [], []
        for index in rows:
            row = self.table[index]
            rng = random.Random(f"{self.config.seed}/{step}/{index}")
            texts.append(rng.choice(row["q_text"]))
            queries.append(images.setdefault(row["q_img"], len(images)))
            names = [row["t_img"], *self._negatives(row["hns"], rng)]
            candidates.append([images.setdefault(name, len(images)) for name in names])
        return TripletBatch(list(images), texts, queries, candidates)

    def _batch_rows(self, step: int) -> list[int]:
        size = self.config.batch_size
        epoch, place = divmod(step, self.rows // size)
        if self.order[0] != epoch:
            order = sibling_order(self.queries, self.config.seed, epoch, self.config.group_siblings)
            self.order = (epoch, order)
        return [int(row) for row in self.order[1][place * size : (place + 1) * size]]

    def _negatives(self, names: list[str], rng: random.Random) -> list[str]:
        # a row without mined negatives is padded with its query image, so that all rows are equally long
        mined = names[1:] or names[:1]
        first = names[:1] if self.config.query_image_negative else []
        count = max(0, self.config.negatives - len(first))
        drawn = rng.sample(mined, min(count, len(mined)))
        # every row has the same number, or the rows of several processes could not be gathered
        while len(drawn) < count:
            drawn.append(rng.choice(mined))
        return (first + drawn)[: self.config.negatives]

    def loss(self, module: nn.Module, batch: TripletBatch, rank: int, device: Any) -> torch.Tensor:
        """InfoNCE over the candidates of all processes."""
        import torch
        from torch.nn.functional import normalize

        pixels = self.pixels(batch.images).to(device)
        tokens = self.tokenizer(batch.texts, padding=True, truncation=True, return_tensors="pt").to(device)
        image, text = module(pixels, tokens["input_ids"], tokens["attention_mask"])
        queries = normalize(image[batch.queries] + text, dim=-1)
        width = len(batch.candidates[0])
        places = torch.tensor(batch.candidates, device=device)
        local = normalize(image, dim=-1)[places.flatten()]
        numbers = [self._number(batch.images[i]) for row in batch.candidates for i in row]
        names = gather(torch.tensor(numbers, device=device))
        candidates = gather(local)
        start = first_own(rank, len(batch.texts)) * width
        positives = start + width * torch.arange(len(batch.texts), device=device)
        # the positive's own picture elsewhere among the candidates is no negative
        mask = names[positives][:, None] == names[None]
        mask[torch.arange(len(positives)), positives] = False
        return info_nce(queries, candidates, positives, mask, self.config.temperature)

    def _number(self, name: str) -> int:
        # a hash instead of a counter, because the numbers must agree between processes
        if name not in self.numbers:
            from hashlib import blake2b

            self.numbers[name] = int.from_bytes(blake2b(name.encode(), digest_size=7).digest(), "big")
        return self.numbers[name]


class CaptionTask:
    """CLIP from scratch: pictures against their captions, both ways.

    Args:
        model: a transformers CLIP.
        tokenizer: its tokenizer.
        ids: image id of each row.
        captions: caption of each row.
        pixels: pictures by id.
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
        places: dict[str, int] = {}
        self.groups = [places.setdefault(caption, len(places)) for caption in captions]

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


class ViewsTask:
    """Two random views of each picture must find each other (SimCLR).

    Args:
        model: a transformers vision model; the class token of its last layer is learnt.
        ids: image ids.
        pixels: pictures by id.
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
        vectors = normalize(module(pixel_values=views).last_hidden_state[:, 0], dim=-1)
        left, right = vectors.chunk(2)
        positives = first_own(rank, len(rows)) + torch.arange(len(rows), device=device)
        tau = self.config.temperature
        forth = info_nce(left, gather(right), positives, None, tau)
        return (forth + info_nce(right, gather(left), positives, None, tau)) / 2


def random_views(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random crop of each picture, perhaps mirrored, in other hues, paler or darker.

    Hue and brightness change so much that the model cannot find a view again by its colours; it learns patterns,
    which is what DINOv2 is there for among the similarity models.

    Args:
        pixels (Tensor[B, 3, H, W]): the pictures.
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
    """Colour matrices that turn the hue and scale the saturation, and leave grey as it is.

    Args:
        angles (Tensor[B]): in radians.
        saturations (Tensor[B]): 1 keeps the saturation, 0 makes everything grey.

    Returns:
        Tensor[B, 3, 3].
    """
    import torch

    grey = torch.full((3, 3), 1 / 3)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    cosines, sines = torch.cos(angles)[:, None, None], torch.sin(angles)[:, None, None]
    colour = cosines * (torch.eye(3) - grey) + sines * cross
    return grey + saturations[:, None, None] * colour


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
