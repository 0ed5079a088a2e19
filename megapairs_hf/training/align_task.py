"""What `align` learns: two heads on cached tower outputs, and how well a held-out image is found by its caption."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.training.collectives import first_own, gather
from megapairs_hf.training.data.sampler import batch_rows, own_part
from megapairs_hf.training.loss import info_nce
from megapairs_hf.training.small_encoder_tasks import WholeBatchTask

if TYPE_CHECKING:
    import torch
    from torch import nn

    from megapairs_hf.training.config import LoopConfig
    from megapairs_hf.training.tower_outputs import TowerOutputs

KS = (1, 10)
# images whose cosine is above this are near-duplicates (paper, section 3.1)
NEAR_DUPLICATE = 0.96
BLOCK = 4096


class AlignTask(WholeBatchTask):
    """Images against their captions, both ways, on what the towers gave.

    Args:
        model: the two towers, of which the heads are trained.
        outputs: of the towers.
        train: rows of `outputs` to learn from.
        config: the settings.
    """

    def __init__(self, model: Any, outputs: TowerOutputs, train: np.ndarray, config: LoopConfig) -> None:
        self.module, self.outputs, self.train, self.config = heads(model), outputs, train, config
        self.rows = len(train)

    def batch(self, step: int, rank: int, world: int) -> tuple[np.ndarray, np.ndarray, int]:
        """The corpus rows and the sampled captions of the whole batch, and how many rows each process has."""
        import torch

        rows = self.train[batch_rows(self.rows, self.config, step)]
        own = self.outputs.captions[rows]
        rng = np.random.default_rng([self.config.seed, step, 7])
        sampled = own[np.arange(len(rows)), (rng.random(len(rows)) * (own >= 0).sum(1)).astype(int)]
        # dropout depends on the step, so that a resumed run draws the same
        torch.manual_seed(self.config.seed * 1_000_003 + step * 1009 + rank)
        return rows, sampled, len(rows) // world

    def loss(
        self, module: nn.Module, batch: tuple[np.ndarray, np.ndarray, int], rank: int, device: Any
    ) -> torch.Tensor:
        """Mean of image → text and text → image; a caption that an image has too is no negative of it."""
        import torch
        from torch.nn.functional import normalize

        rows, sampled, size = batch
        own = own_part(list(range(size * (len(rows) // size))), rank, len(rows) // size)
        image, text = module(
            _tensor(self.outputs.images[rows[own]], device), _tensor(self.outputs.texts[sampled[own]], device)
        )
        image, text = normalize(image, dim=-1), normalize(text, dim=-1)
        shared = (self.outputs.captions[rows][:, :, None] == sampled[None, None]).any(1)
        np.fill_diagonal(shared, False)
        positives = first_own(rank, len(own)) + torch.arange(len(own), device=device)
        masks = [torch.from_numpy(np.ascontiguousarray(mask[own])).to(device) for mask in (shared, shared.T)]
        forth = info_nce(image, gather(text), positives, masks[0], self.config.temperature)
        return (forth + info_nce(text, gather(image), positives, masks[1], self.config.temperature)) / 2


def heads(model: Any) -> nn.Module:
    """A module whose forward gives the outputs of both heads, because DDP wraps only a forward."""
    from torch import nn

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_head, self.text_head = model[0].model.vision_head, model[0].model.text_head

        def forward(self, images: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.vision_head(images), self.text_head(texts)

    return Heads()


def split_rows(outputs: TowerOutputs, share: float, most: int, seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Rows to learn from, and rows that are held out.

    Args:
        outputs: of the towers.
        share: of the rows that is held out.
        most: rows that are held out at most.
        seed: decides which.

    Returns:
        [T] rows to learn from, in order; [V] held-out rows; how many near-duplicates of held-out images are neither.
    """
    count = min(int(share * len(outputs.images)), most)
    order = np.random.default_rng([seed, 11]).permutation(len(outputs.images))
    held_out, rest = np.sort(order[:count]), np.sort(order[count:])
    if not count:
        return rest, held_out, 0
    units = _units(outputs.images[held_out])
    near = np.concatenate(
        [
            (_units(outputs.images[rest[start : start + BLOCK]]) @ units.T).max(1) >= NEAR_DUPLICATE
            for start in range(0, len(rest), BLOCK)
        ]
    )
    return rest[~near], held_out, int(near.sum())


def caption_retrieval(module: nn.Module, outputs: TowerOutputs, rows: np.ndarray) -> dict[str, float]:
    """How well the first caption of each of some images finds an image that has it, among all of them.

    An image that scores like the best right one counts as ranked before it.

    Returns:
        `recall@1` and `recall@10` in percent, `mrr` from 0 to 1.
    """
    import torch
    from torch.nn.functional import normalize

    device = next(module.parameters()).device
    texts = outputs.captions[rows, 0]
    with torch.inference_mode():
        image, text = module(_tensor(outputs.images[rows], device), _tensor(outputs.texts[texts], device))
        scores = (normalize(text, dim=-1) @ normalize(image, dim=-1).T).double().cpu().numpy()
    right = (outputs.captions[rows][None] == texts[:, None, None]).any(2)
    best = np.where(right, scores, -np.inf).max(1)
    ranks = 1 + ((scores >= best[:, None] - 1e-6) & ~right).sum(1)
    return {**{f"recall@{k}": float(100 * (ranks <= k).mean()) for k in KS}, "mrr": float((1 / ranks).mean())}


def chance_retrieval(outputs: TowerOutputs, rows: np.ndarray) -> dict[str, float]:
    """What `caption_retrieval` gives on average where images are in random order, in percent."""
    texts, total = outputs.captions[rows, 0], len(rows)
    right = (outputs.captions[rows][None] == texts[:, None, None]).any(2).sum(1)
    # that the first k are all among the images without the caption
    missed = {k: np.ones(total) for k in KS}
    for k in KS:
        for i in range(min(k, total)):
            missed[k] *= np.clip(total - right - i, 0, None) / (total - i)
    return {f"recall@{k}": float(100 * (1 - missed[k].mean())) for k in KS}


def balance(module: Any, outputs: TowerOutputs, rows: np.ndarray) -> None:
    """Scale the heads so that the embeddings of some images, and of their captions, have length one on average.

    Otherwise the longer of the two decides a joint query, which is their sum.
    """
    import torch

    device = next(module.parameters()).device
    # without dropout, which a run that only had this left to do would draw anew
    module.eval()
    with torch.inference_mode():
        inputs = outputs.images[rows], outputs.texts[outputs.captions[rows, 0]]
        image, text = module(*(_tensor(values, device) for values in inputs))
    module.vision_head.scale(1 / float(image.norm(dim=-1).mean()))
    module.text_head.scale(1 / float(text.norm(dim=-1).mean()))


def _units(values: np.ndarray) -> np.ndarray:
    wide = values.astype(np.float32)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return wide / np.maximum(lengths, 1e-12)


def _tensor(values: np.ndarray, device: Any) -> torch.Tensor:
    import torch

    return torch.from_numpy(values.astype(np.float32)).to(device)
