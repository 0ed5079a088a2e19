"""What training changed: the same held-out queries before and after, by image, text, their best weight, and fused.

A run that makes a model worse looks like any other in its loss; what was measured on images that it never saw tells.
What surprises: everything goes through the module that trains, so that what frozen towers give is taken from where it
is kept, and measuring costs what the heads cost.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import repeat, zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.artifacts import storage
from megapairs_hf.core import distributed
from megapairs_hf.core.errors import TrainingError
from megapairs_hf.core.inputs import Input
from megapairs_hf.core.progress import note
from megapairs_hf.evaluation.fusion_weight import (
    TIE,
    FusionWeight,
    fit_weight,
    rank_values,
    target_ranks,
    weighted_ranks,
)
from megapairs_hf.training.collectives import broadcast, gather_objects
from megapairs_hf.training.data.batch import BatchInput
from megapairs_hf.training.data.loader import ImageBatch
from megapairs_hf.training.data.triplets import TripletPool
from megapairs_hf.training.frozen import keys_of
from megapairs_hf.training.verdict import (
    FUSED,
    HEADLINE,
    IMAGE,
    METRICS,
    TEXT,
    WEIGHTED,
    Ranks,
    result_records,
    verdict,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from megapairs_hf.training.config import TrainConfig
    from megapairs_hf.training.data.held_out import HeldOut
    from megapairs_hf.training.frozen import Key
    from megapairs_hf.training.retrieval_task import ContrastTask

QUERIES, BATCH = 500, 64
BEFORE = "before.json"
UNMEASURED = (
    "nobody knows whether training helped: there is no validation split and none was held out; set `validation` to a"
    " share such as 0.05, or use more triplets"
)


class Validation:
    """Held-out triplets, measured with a model as it is at the time.

    Args:
        task: of the training; its images and frozen outputs are used.
        pool: number of the task's pool that holds the validation triplets.
        triplets: these triplets; at most 500 are used, sampled.
        seed: of the sample.
        batch_size: inputs per forward pass.
    """

    def __init__(self, task: ContrastTask, pool: int, triplets: Any, seed: int, batch_size: int = BATCH) -> None:
        self.task, self.pool, self.batch_size = task, pool, batch_size
        chosen = np.sort(np.random.default_rng(seed).permutation(len(triplets))[:QUERIES])
        rows = self._readable(triplets.dataset[chosen.tolist()])
        self.queries = [Input(texts[0], image) for image, texts in zip(rows["q_img"], rows["q_text"], strict=True)]
        self.names = list(dict.fromkeys([*rows["t_img"], *rows["q_img"]]))
        index = {name: i for i, name in enumerate(self.names)}
        self.targets = np.array([index[name] for name in rows["t_img"]])
        self.own = np.array([index[name] for name in rows["q_img"]])

    def _readable(self, rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The rows whose two images can be read; a note says how many cannot."""
        images = [_image(name) for name in sorted({*rows["q_img"], *rows["t_img"]})]
        own = ImageBatch.joined([ImageBatch([], read.errors) for read in self._ahead(self._own_chunks(images))])
        wrong = {name: error for errors in gather_objects(own.errors) for name, error in errors.items()}
        if wrong:
            name, error = next(iter(wrong.items()))
            note(f"{len(wrong):,} images of the validation split cannot be read ({name}: {error}); left out")
        both = zip(rows["q_img"], rows["t_img"], strict=True)
        good = [i for i, pair in enumerate(both) if not wrong.keys() & set(pair)]
        return {name: [rows[name][i] for i in good] for name in ("q_img", "q_text", "t_img")}

    def keys(self) -> set[Key]:
        """What is kept of frozen towers for it."""
        return set().union(*(keys_of(self.pool, item) for item in [*self.queries, *map(_image, self.names)]))

    def recall(self) -> dict[str, float]:
        """Recall of the fused queries in percent, for the log and `best_metric`."""
        _, _, fused, gallery = self._embeddings()
        ranks = self._ranks(fused, gallery)
        return {name: 100 * float(rank_values(ranks, name).mean()) for name in METRICS[:2]}

    def measure(self) -> Ranks:
        """Every strategy.

        Raises:
            TrainingError: an embedding is not finite.
        """
        images, texts, fused, gallery = self._embeddings()
        fitted = self._fit(images, texts, gallery)
        best = weighted_ranks(images, texts, gallery, self.targets, [fitted.weight], exclude=self.own)[:, 0]
        of = {IMAGE: self._ranks(images, gallery), TEXT: self._ranks(texts, gallery), WEIGHTED: best}
        of[FUSED] = self._ranks(fused, gallery)
        curve = [[point.weight, point.value, *point.ci95] for point in fitted.curve]
        return Ranks({name: ranks.tolist() for name, ranks in of.items()}, fitted.weight, curve)

    def before(self, folder: Path) -> Ranks:
        """What the base model gives: measured once by all processes, and kept for a run that resumes."""
        file = folder / BEFORE
        known = file.read_text(encoding="utf-8") if distributed.is_main() and file.is_file() else ""
        stored = broadcast({"ranks": json.loads(known or "null")})["ranks"]
        if stored is not None:
            return Ranks(**stored)
        ranks = self.measure()
        if distributed.is_main():
            storage.write_bytes(file, json.dumps(asdict(ranks)).encode())
        return ranks

    def _fit(self, images: np.ndarray, texts: np.ndarray, gallery: np.ndarray) -> FusionWeight:
        return fit_weight(images, texts, gallery, self.targets, exclude=self.own, metric=HEADLINE)

    def _ranks(self, queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        return target_ranks(queries @ gallery.T, self.targets, self.own, TIE)

    def _embeddings(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Unit embeddings of the queries' images, texts and both [Q, D], and of the gallery [G, D]."""
        joint = self.task.joint
        role = "query" if joint else ""
        gallery = self._outputs([_image(name, "document" if joint else "") for name in self.names])
        texts = self._outputs([BatchInput(item.text, None, role) for item in self.queries])
        if joint:
            images = self._outputs([_image(item.image, role) for item in self.queries])
            fused = self._outputs([BatchInput(item.text, item.image, role) for item in self.queries])
        else:
            images = gallery[self.own]
            fused = images + texts
        return _unit(images), _unit(texts), _unit(fused), _unit(gallery)

    def _own_chunks(self, inputs: Sequence[BatchInput]) -> list[Sequence[BatchInput]]:
        """This process's share of the chunks, which do not depend on the number of processes."""
        chunks = [inputs[i : i + self.batch_size] for i in range(0, len(inputs), self.batch_size)]
        return chunks[distributed.rank() :: distributed.world_size()]

    def _ahead(self, chunks: Sequence[Sequence[BatchInput]]) -> Iterator[ImageBatch]:
        """The images of chunks, a few of which are in memory at a time."""
        keys = [[(self.pool, str(item.image)) for item in chunk if item.image is not None] for chunk in chunks]
        return self.task.images.ahead(keys)

    def _outputs(self, inputs: Sequence[BatchInput]) -> np.ndarray:
        """What the model gives for inputs of one kind before normalizing, [N, D] float64; each process has a share.

        Raises:
            TrainingError: an embedding is not finite.
        """
        import torch

        module = self.task.module.eval()
        device = next(module.parameters()).device
        chunks, own = self._own_chunks(inputs), []
        # what frozen towers give of an image is kept, so it need not be decoded
        unseen = inputs[0].image is None or inputs[0].kind in self.task.frozen.towers
        read = repeat(ImageBatch()) if unseen else self._ahead(chunks)
        for chunk, images in zip(chunks, read, strict=False):
            features, _ = self.task.features(self.pool, chunk, device, images)
            with torch.no_grad():
                own.append(module([features]).double().cpu().numpy())
        wide = np.concatenate(interleaved(gather_objects(own)))
        broken = int((~np.isfinite(wide)).any(1).sum())
        if broken:
            raise TrainingError(
                f"the model gives embeddings that are not finite for {broken:,} of the {len(wide):,} {inputs[0].kind}"
                " inputs of the evaluation; lower `lr`, or train with mixed_precision: no; the last good checkpoint"
                " is kept"
            )
        return wide


def interleaved(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """The items of shares r, r + W, … of W processes, in their order again."""
    return [item for row in zip_longest(*parts, fillvalue=None) for item in row if item is not None]


def open_validation(task: ContrastTask, divided: HeldOut, config: TrainConfig) -> Validation | None:
    """The validation of a run; None where nothing is held out.

    Args:
        task: of the training; the held-out triplets become one more pool of it, from which no batch is sampled.
        divided: the triplets.
        config: the settings.
    """
    if divided.validation is None:
        return None
    task.pools.append(TripletPool(divided.validation, config))
    number, size = len(task.pools) - 1, config.micro_batch or BATCH
    validation = Validation(task, number, divided.validation, config.seed, size)
    return validation if validation.queries else None


def compared(validation: Validation | None, before: Ranks | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The result records of a run that is over, and facts for its manifest; the model holds the weights to save."""
    if validation is None:
        return [], {"verdict": UNMEASURED}
    assert before is not None
    after = validation.measure()
    outcome = verdict(before, after)
    facts = {"verdict": outcome.sentence, "helped": outcome.helped, "image_weight": after.weight}
    return result_records(before, after, len(validation.names)), facts


def _image(name: Any, role: str = "") -> BatchInput:
    return BatchInput(None, name, role)


def _unit(array: np.ndarray) -> np.ndarray:
    unit: np.ndarray = array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)
    return unit
