"""Composed retrieval: query image plus instruction against target and hard negatives, from one pool or several.

In a batch each distinct input goes through the model once: the query image serves as part of the query and as its own
hard negative, and images that several rows share are computed for one of them.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from megapairs_hf.core import distributed
from megapairs_hf.core.errors import TrainingError
from megapairs_hf.core.progress import note
from megapairs_hf.training.collectives import world
from megapairs_hf.training.data.batch import COUNTS, Batch, make_batch
from megapairs_hf.training.data.loader import ImageLoader, Reader
from megapairs_hf.training.data.sampler import sample_pools
from megapairs_hf.training.encoder import ImageTransform, is_joint, prepared, trainable
from megapairs_hf.training.grad_cache import cached_gradient, plain_gradient
from megapairs_hf.training.loss import BatchIndices, loss_and_gradient
from megapairs_hf.training.task import StepOutput

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from accelerate import Accelerator

    from megapairs_hf.training.config import TrainConfig
    from megapairs_hf.training.data.dataset import Example, TrainDataset

AHEAD = 4
# distinct inputs per forward pass without GradCache, whose activations all stay
FORWARD_SIZE = 64


class Fetch:
    """Gives the files of images of a pool; travels to worker processes."""

    def __init__(self, pools: Sequence[TrainDataset]) -> None:
        self.pools = pools

    def __call__(self, pool: int, names: Sequence[str]) -> dict[str, bytes]:
        """The files by id."""
        return self.pools[pool].files(names)


class ContrastTask:
    """What `train` learns.

    Args:
        model: an MMRet.
        pools: rows, each pool of one kind.
        weights: sampling weight of each.
        config: the settings.
    """

    def __init__(
        self, model: Any, pools: Sequence[TrainDataset], weights: Sequence[float], config: TrainConfig
    ) -> None:
        self.model, self.pools, self.config = model, list(pools), config
        self.joint = is_joint(model)
        self.module = trainable(model)
        self.partial = config.micro_batch is not None or len(pools) > 1 or self.joint
        self.images = ImageLoader(Reader(Fetch(self.pools), ImageTransform(model)), config.cache_gb, config.workers)
        self.sampled, self.before = sample_pools(weights, config.steps, config.seed)
        self.bad: dict[str, str] = {}
        self.planned: tuple[tuple[int, int], Batch] | None = None
        self.size = config.micro_batch or FORWARD_SIZE

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """This process's part of the batch of a step; a function of the step and of the images rejected so far."""
        key = (step, len(self.bad))
        if self.planned is not None and self.planned[0] == key:
            return self.planned[1]
        number = int(self.sampled[step])
        pool = self.pools[number]
        examples = self._examples(pool, number, step)
        batch = make_batch(step, number, examples, rank, world, joint=self.joint, cluster=pool.cluster)
        self.planned = key, batch
        return batch

    def _examples(self, pool: TrainDataset, number: int, step: int) -> list[Example]:
        size = self.config.batch_size
        bad = {name for key, _ in self.bad.items() for own, _, name in [key.partition("/")] if own == str(number)}
        rows = pool.indices(int(self.before[step]), size)
        examples = [example for example in pool.examples(rows, step, bad) if example is not None]
        taken, rng = set(rows), random.Random(f"{self.config.seed}/{step}/refill")
        while len(examples) < size:
            more = pool.others(taken, size - len(examples), rng)
            if not more:
                raise TrainingError(
                    f"step {step} has only {len(examples):,} rows with readable images for a batch of {size:,}; lower"
                    " batch_size, or mend the images"
                )
            taken.update(more)
            examples += [example for example in pool.examples(more, step, bad) if example is not None]
        return examples

    def learn(self, module: Any, step: int, accelerator: Accelerator) -> StepOutput:
        """Leave the gradient of a step's batch on the parameters.

        Raises:
            TrainingError: too many images cannot be read.
        """
        import torch

        # dropout samples by step and process, so that a resumed run draws the same
        torch.manual_seed(self.config.seed * 1_000_003 + step * 1009 + distributed.rank())
        while True:
            batch = self.batch(step, distributed.rank(), distributed.world_size())
            result = self._attempt(module, batch, accelerator)
            if result is not None:
                loss, counts = result
                if step + 1 < self.config.last_step:
                    self._ahead(self.batch(step + 1, distributed.rank(), distributed.world_size()), 0)
                images = sum(item.image is not None for item in batch.inputs)
                return StepOutput(loss, batch.names, {"images": images, **counts})

    def _attempt(
        self, module: Any, batch: Batch, accelerator: Accelerator
    ) -> tuple[torch.Tensor, dict[str, int]] | None:
        chunks = batch.chunks(self.size)
        wrong: dict[str, str] = {}
        counts = [0, 0, 0]

        def load(i: int) -> dict[str, Any]:
            self._ahead(batch, i)
            inputs = [batch.inputs[k] for k in chunks[i]]
            images, bad = self.images.load(batch.pool, [item.image for item in inputs if item.image is not None])
            wrong.update({f"{batch.pool}/{name}": error for name, error in bad.items()})
            return prepared(self.model, inputs, images, accelerator.device, self.pools[batch.pool].prompted)

        def loss(embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            pieces = self._pieces(batch, embeddings.device, counts)
            return loss_and_gradient(embeddings, pieces, self.config.temperature, self.config.matryoshka)

        way = plain_gradient if self.config.micro_batch is None else cached_gradient
        value = way(module, accelerator, len(chunks), load, lambda: not self._reject(wrong), loss)
        return None if value is None else (value, dict(zip(COUNTS, counts, strict=True)))

    def _ahead(self, batch: Batch, start: int) -> None:
        chunks = batch.chunks(self.size)
        for chunk in chunks[start : start + AHEAD]:
            names = [name for name in (batch.inputs[k].image for k in chunk) if name is not None]
            self.images.ahead(batch.pool, names)

    def _pieces(self, batch: Batch, device: Any, counts: list[int]) -> BatchIndices:
        import torch

        def mask(start: int, end: int) -> torch.Tensor:
            masked, masked_counts = batch.mask(start, end, self.config.mask_false_negatives)
            counts[:] = [a + b for a, b in zip(counts, masked_counts, strict=True)]
            return torch.from_numpy(masked).to(device)

        queries, candidates = (torch.from_numpy(rows).to(device) for rows in (batch.queries, batch.candidates))
        return BatchIndices(queries, candidates, batch.first * batch.width, batch.width, mask)

    def _reject(self, wrong: dict[str, str]) -> bool:
        """Note the images that any process could not read; whether there are any."""
        errors = dict(wrong)
        if world() > 1:
            from torch import distributed

            gathered: list[Any] = [None] * world()
            distributed.all_gather_object(gathered, wrong)
            errors = {name: error for part in gathered for name, error in part.items()}
        for name, error in sorted(errors.items()):
            self.bad[name] = error
            note(f"left out the image {name.partition('/')[2]}: {error}")
        if len(self.bad) > self.config.max_rejected:
            name, error = next(iter(sorted(self.bad.items())))
            raise TrainingError(
                f"{len(self.bad)} images cannot be read, more than max_rejected {self.config.max_rejected}"
                f" ({name.partition('/')[2]}: {error}, …); mend them, or raise max_rejected"
            )
        if errors:
            self.images.forget()
        return bool(errors)

    def state(self) -> dict[str, Any]:
        """What the plan depends on besides the step."""
        return {"rejected": dict(self.bad)}

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from `state`."""
        self.bad = dict(state.get("rejected", {}))

    def close(self) -> None:
        """Let the workers go."""
        self.images.close()
