"""Queries and galleries to embeddings, with anything that has `encode`; images are decoded as they are needed.

What surprises: images, texts and both together are encoded apart, because Sentence Transformers refuses a batch that
mixes them; the embeddings come back in the order of the inputs. While the model works, the next batch of images is
decoded in threads, and no more than that: CIRCO's 123,403 would need some hundred gigabytes.
"""

from __future__ import annotations

import functools
import re
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core import distributed
from megapairs_hf.core.errors import EvaluationError, ImageRejectedError
from megapairs_hf.core.inputs import Input
from megapairs_hf.core.progress import Progress
from megapairs_hf.images.read_ahead import read_ahead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from megapairs_hf.evaluation.benchmarks.base import Benchmark

STRATEGIES = ("image only", "text only", "fused")
# threads that decode, on any machine: most of a file's time may be that of a disk far away
THREADS = 32


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
        image: gives the RGB image of an image id; called in threads.
        batch_size: inputs at a time.
        label: of the progress bar; none where empty.
        query: whether inputs of image and text are composed queries.

    Returns:
        [N, D] float32.

    Raises:
        EvaluationError: an image cannot be read (it is named), or an embedding is not finite.
    """
    batches = _batches(inputs, batch_size)
    names = ((rows, list(dict.fromkeys(filter(None, (inputs[i].image for i in rows))))) for rows in batches)
    result: np.ndarray | None = None
    read = functools.partial(_read, image)
    with (
        Progress(label or "encode", len(inputs), "inputs") as bar,
        closing(read_ahead(names, read, THREADS, 1)) as ready,
    ):
        for rows, read_images in ready:
            loaded = _loaded([inputs[i] for i in rows], read_images)
            composed = query and isinstance(loaded[0], dict)
            embeddings = encode(model, loaded, batch_size, query=composed)
            if result is None:
                result = np.empty((len(inputs), embeddings.shape[1]), np.float32)
            result[rows] = embeddings
            bar.advance(len(rows))
    if result is None:
        raise EvaluationError("there is nothing to encode; check the queries and the image folder")
    return result


def _batches(inputs: Sequence[Input], size: int) -> Iterator[list[int]]:
    """Rows of inputs of one kind (image, text, both), a batch at a time."""
    kinds = [(one.image is not None, bool(one.text)) for one in inputs]
    for kind in dict.fromkeys(kinds):
        rows = [i for i, other in enumerate(kinds) if other == kind]
        yield from (rows[start : start + size] for start in range(0, len(rows), size))


def _read(image: Callable[[str], Any], name: str) -> tuple[str, Any, str]:
    """An image's name, the image, and why there is none."""
    try:
        return name, image(name), ""
    except (ImageRejectedError, OSError) as error:
        return name, None, str(error)


def _loaded(inputs: Sequence[Input], read: Sequence[tuple[str, Any, str]]) -> list[Any]:
    """A batch as `encode` takes it."""
    unreadable = [f"{name} ({fault})" for name, _, fault in read if fault]
    if unreadable:
        shown = ", ".join(unreadable[:3]) + (", …" if len(unreadable) > 3 else "")
        raise EvaluationError(
            f"{len(unreadable):,} of the next {len(inputs):,} images cannot be read: {shown}; get them again,"
            " `megapairs eval check-data` lists all such files"
        )
    images = {name: image for name, image, _ in read}
    return [
        one.text
        if one.image is None
        else images[one.image]
        if not one.text
        else {"image": images[one.image], "text": one.text}
        for one in inputs
    ]


def encode_shared(
    encode_some: Callable[[Sequence[Input]], np.ndarray], inputs: Sequence[Input], share: str, label: str
) -> np.ndarray:
    """Embeddings of inputs, each process of a launcher encoding every W-th.

    Args:
        encode_some: gives the embeddings of some of the inputs.
        inputs: all of them, the same on every process.
        share: folder that all processes see; needed with several.
        label: of these inputs, the same on every process and another for others.

    Returns:
        [N, D] float32, on every process.
    """
    world = distributed.world_size()
    if world == 1:
        return encode_some(inputs)
    folder = Path(share or tempfile.gettempdir())
    name = re.sub(r"[^\w-]+", "-", label)
    names = [folder / f".{name}-{r}-of-{world}.npy" for r in range(world)]
    mine = names[distributed.rank()]
    mine.parent.mkdir(parents=True, exist_ok=True)
    own = inputs[distributed.rank() :: world]
    np.save(mine, encode_some(own) if own else np.empty((0, 0), "f4"))
    distributed.barrier()
    loaded = [np.load(name, allow_pickle=False) for name in names]
    embeddings = np.empty((len(inputs), loaded[0].shape[1]), np.float32)
    for r, some in enumerate(loaded):
        if len(some):
            embeddings[r::world] = some
    distributed.barrier()
    mine.unlink()
    return embeddings


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
    label = f"{benchmark.name} {benchmark.part or benchmark.split} gallery"

    def encode_some(inputs: Sequence[Input]) -> np.ndarray:
        return encode_inputs(model, inputs, benchmark.image, batch_size, label)

    return encode_shared(encode_some, list(benchmark.gallery.values()), share, label)


def self_instructed(benchmark: Benchmark) -> bool:
    """Whether the queries bring their own instruction, as MMEB's do."""
    return benchmark.name.startswith("mmeb")


def query_frame(model: Any, benchmark: Benchmark) -> dict[str, str]:
    """What the records say of the prompt of queries that bring their own instruction; empty where there is no choice.

    A language model's records without it are of a version that gave these queries the candidates' prompt.
    """
    framed = (getattr(model, "prompts", None) or {}).get("query")
    return {"query_prompt": "frame of a query, its own instruction"} if framed and self_instructed(benchmark) else {}


class SelfInstructed:
    """A model whose queries bring their instruction with them, as MMEB's do.

    They get the frame that a multimodal language model's prompt has for queries (`<instruct>  <query>`), with nothing
    in the place of the instruction, as the released code has it; a model without prompts embeds them as ever.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def encode(self, inputs: Sequence[Any], **settings: Any) -> Any:
        """As the model's own `encode_query`, without its instruction."""
        if hasattr(self.model, "encode_query"):
            return self.model.encode_query(inputs, prompt="", **settings)
        return self.model.encode(inputs, **settings)


def encode_queries(
    model: Any, benchmark: Benchmark, strategy: str = "fused", batch_size: int = 128, share: str = ""
) -> np.ndarray:
    """Embeddings of the queries, each process of a launcher encoding its share.

    Args:
        model: anything with `encode`.
        benchmark: whose queries.
        strategy: `image only`, `text only`, or `fused` for both by the model.
        batch_size: queries at a time.
        share: folder that all processes see; needed with several.

    Returns:
        [Q, D] float32, on every process. The embeddings of a query's further phrasings are averaged with its own, as
        SEARLE does.

    Raises:
        EvaluationError: the strategy is unknown.
    """
    if strategy not in STRATEGIES:
        raise EvaluationError(f"unknown strategy {strategy!r}; known: {', '.join(STRATEGIES)}")
    # MMEB's queries bring their own instruction
    composed = not self_instructed(benchmark)
    if not composed:
        model = SelfInstructed(model)
    inputs = []
    owners = []
    for row, query in enumerate(benchmark.queries):
        texts = (None,) if strategy == "image only" else (query.input.text, *query.other_texts)
        for text in texts:
            inputs.append(Input(text, None if strategy == "text only" else query.input.image))
            owners.append(row)
    label = f"{benchmark.name} {benchmark.part or benchmark.split} queries, {strategy}"

    def encode_some(some: Sequence[Input]) -> np.ndarray:
        return encode_inputs(model, some, benchmark.image, batch_size, label, query=composed)

    embeddings = encode_shared(encode_some, inputs, share, label)
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
