"""Queries and galleries to embeddings, with anything that has `encode`; images are decoded as they are needed.

What surprises: images, texts and both together are encoded apart, because Sentence Transformers refuses a batch that
mixes them; the embeddings come back in the order of the inputs. Never more than one batch of images is decoded, since
CIRCO's 123,403 would need some hundred gigabytes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core import distributed
from megapairs_hf.core.errors import EvaluationError, ImageRejectedError
from megapairs_hf.core.inputs import Input
from megapairs_hf.core.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from megapairs_hf.evaluation.benchmarks.base import Benchmark

STRATEGIES = ("image only", "text only", "fused")


def encode_inputs(
    model: Any,
    inputs: Sequence[Input],
    image: Callable[[str], Any],
    batch_size: int = 128,
    label: str = "",
    *,
    query: bool = False,
) -> np.ndarray:
    """Unit embeddings of inputs.

    Args:
        model: anything with `encode`, for images, texts, and `{"image", "text"}` together.
        inputs: what to encode.
        image: gives the RGB image of an image id.
        batch_size: inputs at a time.
        label: of the progress bar; none where empty.
        query: whether inputs of image and text are composed queries.

    Returns:
        [N, D] float32.

    Raises:
        EvaluationError: an image cannot be read (it is named), or an embedding is not finite.
    """
    kinds = [(one.image is not None, bool(one.text)) for one in inputs]
    result: np.ndarray | None = None
    with Progress(label or "encode", len(inputs), "inputs") as bar:
        for kind in dict.fromkeys(kinds):
            rows = [i for i, other in enumerate(kinds) if other == kind]
            for start in range(0, len(rows), batch_size):
                rows_of_batch = rows[start : start + batch_size]
                embeddings = encode(
                    model, _load([inputs[i] for i in rows_of_batch], image), batch_size, query=query and all(kind)
                )
                if result is None:
                    result = np.empty((len(inputs), embeddings.shape[1]), np.float32)
                result[rows_of_batch] = embeddings
                bar.advance(len(rows_of_batch))
    if result is None:
        raise EvaluationError("there is nothing to encode; check the queries and the image folder")
    return result


def _load(inputs: Sequence[Input], image: Callable[[str], Any]) -> list[Any]:
    images: dict[str, Any] = {}
    unreadable = []
    for name in dict.fromkeys(one.image for one in inputs if one.image is not None):
        try:
            images[name] = image(name)
        except (ImageRejectedError, OSError) as error:
            unreadable.append(f"{name} ({error})")
    if unreadable:
        shown = ", ".join(unreadable[:3]) + (", …" if len(unreadable) > 3 else "")
        raise EvaluationError(
            f"{len(unreadable):,} of the next {len(inputs):,} images cannot be read: {shown}; get them again,"
            " `megapairs eval check-data` lists all such files"
        )
    return [
        one.text
        if one.image is None
        else images[one.image]
        if not one.text
        else {"image": images[one.image], "text": one.text}
        for one in inputs
    ]


def encode_gallery(model: Any, benchmark: Benchmark, batch_size: int = 128, share: str = "") -> np.ndarray:
    """Embeddings of the whole gallery, each process of a launcher encoding its share.

    Args:
        model: anything with `encode`.
        benchmark: whose gallery.
        batch_size: images at a time.
        share: folder that all processes see; needed with several.

    Returns:
        [G, D] float32, on every process.
    """
    inputs = list(benchmark.gallery.values())
    label = f"{benchmark.name} {benchmark.part or benchmark.split} gallery"
    world = distributed.world_size()
    if world == 1:
        return encode_inputs(model, inputs, benchmark.image, batch_size, label)
    folder = Path(share or tempfile.gettempdir())
    names = [folder / f".gallery-{benchmark.name}-{benchmark.part}-{r}-of-{world}.npy" for r in range(world)]
    mine = names[distributed.rank()]
    mine.parent.mkdir(parents=True, exist_ok=True)
    shares = [inputs[r::world] for r in range(world)]
    own = shares[distributed.rank()]
    np.save(mine, encode_inputs(model, own, benchmark.image, batch_size, label) if own else np.empty((0, 0), "f4"))
    distributed.barrier()
    loaded = [np.load(name, allow_pickle=False) for name in names]
    embeddings = np.empty((len(inputs), loaded[0].shape[1]), np.float32)
    for r, some in enumerate(loaded):
        if len(some):
            embeddings[r::world] = some
    distributed.barrier()
    mine.unlink()
    return embeddings


def encode_queries(model: Any, benchmark: Benchmark, strategy: str = "fused", batch_size: int = 128) -> np.ndarray:
    """Embeddings of the queries.

    Args:
        model: anything with `encode`.
        benchmark: whose queries.
        strategy: `image only`, `text only`, or `fused` for both by the model.
        batch_size: queries at a time.

    Returns:
        [Q, D] float32. The embeddings of a query's further phrasings are averaged with its own, as SEARLE does.

    Raises:
        EvaluationError: the strategy is unknown.
    """
    if strategy not in STRATEGIES:
        raise EvaluationError(f"unknown strategy {strategy!r}; known: {', '.join(STRATEGIES)}")
    inputs = []
    owners = []
    for row, query in enumerate(benchmark.queries):
        texts = (None,) if strategy == "image only" else (query.input.text, *query.other_texts)
        for text in texts:
            inputs.append(Input(text, None if strategy == "text only" else query.input.image))
            owners.append(row)
    # MMEB's queries bring their own instruction
    composed = not benchmark.name.startswith("mmeb")
    label = f"{benchmark.name} queries, {strategy}"
    embeddings = encode_inputs(model, inputs, benchmark.image, batch_size, label, query=composed)
    if len(inputs) == len(benchmark.queries):
        return embeddings
    total = np.zeros((len(benchmark.queries), embeddings.shape[1]), np.float32)
    np.add.at(total, owners, embeddings)
    result: np.ndarray = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)
    return result


def encode(model: Any, inputs: Sequence[Any], batch_size: int, *, query: bool = False) -> np.ndarray:
    """Unit embeddings [B, D] float32 of anything with `encode`.

    Args:
        model: anything with `encode`; where it has `encode_query`, composed queries go through that, since a
            multimodal language model reads the task from its query prompt. A dual encoder has none.
        inputs: images, texts, or `{"image", "text"}`.
        batch_size: inputs per forward pass.
        query: whether they are composed queries.

    Raises:
        EvaluationError: an embedding is not finite.
    """
    call = getattr(model, "encode_query", model.encode) if query else model.encode
    embeddings = np.asarray(call(list(inputs), batch_size=batch_size, show_progress_bar=False), np.float32)
    if not np.isfinite(embeddings).all():
        raise EvaluationError("the model gives embeddings that are not finite; a ranking by them would mean nothing")
    result: np.ndarray = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    return result
