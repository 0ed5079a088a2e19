"""Composed retrieval: query image plus instruction against target and hard negatives, from one pool or several.

In a batch each distinct input goes through the model once: the query image serves as part of the query and as its own
hard negative, and images that several rows share are computed for one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.core import distributed
from megapairs_hf.core.errors import TrainingError
from megapairs_hf.core.progress import note
from megapairs_hf.training.collectives import gather_objects
from megapairs_hf.training.data.batch import COUNTS, Batch, make_batch
from megapairs_hf.training.data.loader import READ, ImageBatch, ImageLoader, ImageReader, StepImages
from megapairs_hf.training.data.sampler import sample_pools
from megapairs_hf.training.encoder import ImageTransform, head_rates, is_joint, prepared, trainable
from megapairs_hf.training.frozen import FrozenOutputs, freeze, keys_of
from megapairs_hf.training.grad_cache import cached_gradient, plain_gradient
from megapairs_hf.training.loss import BatchIndices, loss_and_gradient
from megapairs_hf.training.norms import NormWatch
from megapairs_hf.training.task import StepOutput
from megapairs_hf.training.token_budget import StepInputs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch
    from accelerate import Accelerator

    from megapairs_hf.training.config import TrainConfig
    from megapairs_hf.training.data.batch import BatchInput
    from megapairs_hf.training.data.dataset import TrainDataset
    from megapairs_hf.training.data.loader import Key as ImageKey
    from megapairs_hf.training.frozen import Key

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
        if config.max_tokens_per_pass is not None and not self.joint:
            raise TrainingError("`max_tokens_per_pass` is for language models; set `micro_batch` for this one")
        self.module = trainable(model)
        freeze(model, config.freeze)
        self.rates: Mapping[str, float] = head_rates(model, self.module, config)
        self.images = ImageLoader(ImageReader(Fetch(self.pools), ImageTransform(model)), config.workers)
        self.step_images = StepImages(self.images, self._requests, config.last_step)
        self.frozen = FrozenOutputs(model, config.freeze, self.images)
        self.norms = NormWatch()
        self.sampled, self.before = sample_pools(weights, config.steps, config.seed)
        self.bad: dict[str, str] = {}
        # of the steps whose images are being decoded
        self.planned: dict[int, Batch] = {}
        self.size = config.micro_batch or FORWARD_SIZE

    def fill(self, folder: Path, measured: Collection[Key] = ()) -> None:
        """Compute what the frozen towers give for every row of the run, and for what is measured.

        Args:
            folder: where it is kept.
            measured: inputs of the validation.
        """
        keys = set(measured)
        for number, pool in enumerate(self.pools):
            steps = [s for s in range(self.config.last_step) if self.sampled[s] == number]
            rows = {row for s in steps for row in pool.indices(int(self.before[s]), self.config.batch_size)}
            for item in pool.inputs(sorted(rows)) if rows else ():
                keys |= keys_of(number, item)
        self.frozen.fill(folder, keys)

    def batch(self, step: int, rank: int, world: int) -> Batch:
        """This process's part of the batch of a step; a function of the step."""
        if step not in self.planned:
            number = int(self.sampled[step])
            pool = self.pools[number]
            examples = pool.examples(pool.indices(int(self.before[step]), self.config.batch_size), step)
            self.planned[step] = make_batch(
                step, number, examples, rank, world, joint=self.joint, clusters=pool.clusters
            )
        return self.planned[step]

    def _requests(self, step: int) -> list[list[ImageKey]]:
        """The images of a step in the order in which its chunks go through the model, as they are decoded together."""
        if "vision" in self.config.freeze:
            # what the tower makes of them is kept, and they are not looked at
            return []
        batch = self.batch(step, distributed.rank(), distributed.world_size())
        return [keys for chunk in batch.chunks(self.size) for keys in self._parts(batch, chunk)]

    def _parts(self, batch: Batch, chunk: Sequence[int]) -> list[list[ImageKey]]:
        keys = [
            (batch.pool, str(item.image)) for item in map(batch.inputs.__getitem__, chunk) if item.image is not None
        ]
        return [keys[i : i + READ] for i in range(0, len(keys), READ)]

    def learn(self, module: Any, step: int, accelerator: Accelerator) -> StepOutput:
        """Leave the gradient of a step's batch on the parameters.

        Raises:
            TrainingError: too many images cannot be read.
        """
        import torch

        # dropout samples by step and process, so that a resumed run draws the same
        torch.manual_seed(self.config.seed * 1_000_003 + step * 1009 + distributed.rank())
        batch = self.batch(step, distributed.rank(), distributed.world_size())
        chunks = batch.chunks(self.size)
        read = self.step_images.begin(step)
        counts: dict[str, int] = {}
        values: dict[str, float] = {}

        def features(part: Sequence[BatchInput], images: ImageBatch) -> tuple[dict[str, Any], dict[str, str]]:
            return self.features(batch.pool, part, accelerator.device, images)

        parts = [[batch.inputs[k] for k in chunk] for chunk in chunks]
        inputs = StepInputs(
            parts, lambda i: self._read(read, batch, chunks[i]), features, self.config.max_tokens_per_pass
        )

        def loss(embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if not self.joint:
                values.update(self.norms.ratio(embeddings, batch.inputs))
            lost = self._unreadable(batch.pool, inputs.errors)
            pieces = self._pieces(batch.without(lost) if lost else batch, embeddings.device, counts)
            config = self.config
            return loss_and_gradient(embeddings, pieces, config.temperature, config.matryoshka, config)

        way = cached_gradient if self.config.micro_batch or self.config.max_tokens_per_pass else plain_gradient
        value = way(module, accelerator, len(chunks), inputs.load, loss)
        self.planned = {later: plan for later, plan in self.planned.items() if later > step}
        decoded = sum(item.image is not None for item in batch.inputs)
        counted = {"images": decoded, "unreadable": len(inputs.errors), **counts}
        return StepOutput(value, batch.names, counted, values)

    def _read(self, read: Iterator[ImageBatch], batch: Batch, chunk: Sequence[int]) -> ImageBatch:
        if "vision" in self.config.freeze:
            return ImageBatch()
        return ImageBatch.joined([next(read) for _ in self._parts(batch, chunk)])

    def features(
        self, pool: int, inputs: Sequence[BatchInput], device: Any, images: ImageBatch
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """One chunk for the module, and what is wrong with its images (black ones take their place).

        Args:
            pool: of the rows.
            inputs: of one role and kind.
            device: where to.
            images: of those that have one; none where their tower is frozen.
        """
        known, wrong = self.frozen.features(pool, inputs, device)
        if known is not None:
            return known, wrong
        return prepared(self.model, inputs, images, device, self.pools[pool].prompted), images.errors

    def _pieces(self, batch: Batch, device: Any, counts: dict[str, int]) -> BatchIndices:
        """How the embeddings are put together; what is masked is counted."""
        import torch

        masked, known = batch.mask(self.config.mask_false_negatives)
        counts.update(zip(COUNTS, known, strict=True))
        if self.config.score_margin is not None:
            scored = batch.as_good(self.config.score_margin) & ~masked
            masked, counts["masked_score"] = masked | scored, int(scored.sum())
        arrays = (batch.queries, batch.candidates, masked)
        queries, candidates, mask = (torch.from_numpy(array).to(device) for array in arrays)
        scores = torch.from_numpy(batch.scores).to(device) if self.config.soft_labels else None
        return BatchIndices(queries, candidates, batch.first * batch.width, batch.width, mask, scores)

    def _unreadable(self, pool: int, wrong: dict[str, str]) -> set[str]:
        """The images of this step that any process could not read, each noted once.

        Raises:
            TrainingError: they are too many.
        """
        errors = {name: error for part in gather_objects(wrong) for name, error in part.items()}
        for name, error in sorted(errors.items()):
            if f"{pool}/{name}" not in self.bad:
                self.bad[f"{pool}/{name}"] = error
                note(f"left out the image {name}: {error}")
        if len(self.bad) > self.config.max_rejected:
            name, error = next(iter(sorted(self.bad.items())))
            raise TrainingError(
                f"{len(self.bad)} images cannot be read, more than max_rejected {self.config.max_rejected}"
                f" ({name.partition('/')[2]}: {error}, …); mend them, or raise max_rejected"
            )
        return set(errors)

    def state(self) -> dict[str, Any]:
        """Which images could not be read, for the record; no batch depends on it."""
        return {"rejected": dict(self.bad)}

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from `state`."""
        self.bad = dict(state.get("rejected", {}))

    def close(self) -> None:
        """Let the workers go."""
        self.step_images.close()
