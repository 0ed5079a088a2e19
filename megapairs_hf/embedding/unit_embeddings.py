"""What an encoder gives for a batch, as unit embeddings with an error for each row that has none.

This is the part that the row functions and the stage share. What surprises: the rows of a batch say nothing about its
size; every forward pass has the same number of rows, so a row has the same bits alone, among others and in any order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from megapairs_hf.core.errors import ConfigError, ModelError
from megapairs_hf.core.row_function import format_error
from megapairs_hf.embedding.loader import stacked
from megapairs_hf.embedding.pooling import check_rows
from megapairs_hf.images.decode import Decoded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

    from megapairs_hf.embedding.encoder import Encoder
    from megapairs_hf.embedding.loader import PreparedImages

BLANK_TEXT = "blank"

NARROW = "; where its dtype is another than float32, take that"


class Embedded(NamedTuple):
    """Rows with their embeddings.

    Attributes:
        embeddings: [N, D] float16, of length one, zeros for a row with an error.
        errors: of each row, empty for a good one.
    """

    embeddings: np.ndarray
    errors: list[str]


def embed_images(
    batches: Iterator[PreparedImages],
    count: int,
    encoders: Mapping[str, Encoder],
    advance: Callable[[int], object] = lambda rows: None,
) -> dict[str, Embedded]:
    """Embeddings of images under each encoder.

    Args:
        batches: at most `batch_size` images each.
        count: how many images to take from them.
        encoders: by name.
        advance: told how many images are done.

    Raises:
        ModelError: an encoder gives nothing that is finite.
    """
    parts: dict[str, list[Embedded]] = {name: [] for name in encoders}
    taken = 0
    while taken < count and encoders:
        batch = next(batches)
        for name, encoder in encoders.items():
            result = None if name not in batch.arrays else unit_embeddings(encoder, batch.arrays[name], name)
            parts[name].append(_among(result, batch.good, batch.errors))
        taken += len(batch.errors)
        advance(len(batch.errors))
    return {name: _joined(parts[name], encoder) for name, encoder in encoders.items()}


def embed_texts(texts: Sequence[Any], encoder: Encoder, name: str) -> Embedded:
    """Embeddings of texts; a row without one gets the error `no_caption`.

    Args:
        texts: of each row one, or a list, of which the embeddings are averaged.
        encoder: of texts.
        name: of the encoder.

    Raises:
        ConfigError: a value is no text.
        ModelError: the encoder gives nothing that is finite.
    """
    lists = [texts_of(value, name) for value in texts]
    errors = ["" if several else format_error("no_caption", "there is no text") for several in lists]
    good = [row for row, error in enumerate(errors) if not error]
    # a text that many rows have, such as the name of a class, is embedded once
    numbers: dict[str, int] = {}
    every = [numbers.setdefault(text, len(numbers)) for several in lists for text in several]
    result = None
    if good:
        distinct = unit_embeddings(encoder, list(numbers), name)
        repeated = Embedded(distinct.embeddings[every], [distinct.errors[number] for number in every])
        result = mean_embeddings(repeated, [len(lists[row]) for row in good])
    return _joined([_among(result, good, errors)], encoder)


def texts_of(value: Any, name: str) -> list[str]:
    """The texts of a row that are not blank.

    Raises:
        ConfigError: it is neither a text nor a list of texts.
    """
    texts = value if isinstance(value, list | tuple) else [value]
    other = next((text for text in texts if not isinstance(text, str | None)), None)
    if other is not None:
        raise ConfigError(f"{name} embeds texts, but a row holds {type(other).__name__}; name a column of texts")
    return [text for text in texts if text and text.strip()]


def mean_embeddings(result: Embedded, counts: Sequence[int]) -> Embedded:
    """The mean of every so many unit embeddings, of length one; those with an error are left out of it.

    Args:
        result: of the texts of all rows, one row's after another's.
        counts: how many texts each row has, at least one.
    """
    units = np.zeros((len(counts), result.embeddings.shape[1]), np.float16)
    errors, start = [], 0
    for row, count in enumerate(counts):
        of_row = range(start, start + count)
        usable = [i for i in of_row if not result.errors[i]]
        if count == 1:
            units[row] = result.embeddings[start]
        elif usable:
            mean = result.embeddings[usable].astype(np.float64).mean(axis=0)
            length = np.sqrt(mean @ mean)
            units[row] = mean / length if length else 0
        error = "" if usable else result.errors[start]
        errors.append(error if error or units[row].any() else format_error("zero_embedding", "the texts cancel out"))
        start += count
    return Embedded(units, errors)


def unit_embeddings(encoder: Encoder, inputs: Any, name: str) -> Embedded:
    """Embeddings of length one of texts, or of one batch of prepared images; at least one.

    Raises:
        ModelError: the encoder gives nothing that is finite.
    """
    import torch

    values = _encoded(encoder, inputs, name)
    failed = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(failed):
        # one input of many may be too much for a narrow number format; an encoder that gives no numbers is refused
        try_out(encoder, name)
        if encoder.in_float32 is not None:
            some = inputs[failed] if isinstance(inputs, torch.Tensor) else [inputs[row] for row in failed]
            values[failed] = _encoded(encoder.in_float32(), some, name)
    return as_units(values, name)


def _encoded(encoder: Encoder, inputs: Any, name: str) -> np.ndarray:
    """What an encoder gives for texts, or for one batch of prepared images, [N, D] float32."""
    import torch

    with torch.inference_mode():
        if encoder.transform is None:
            encoded = check_rows(encoder.encode_captions(inputs), len(inputs), name)
        else:
            filled = filled_up(inputs, encoder.batch_size)
            encoded = check_rows(encoder.encode_images(filled), len(filled), name)[: len(inputs)]
    array: np.ndarray = encoded.float().cpu().numpy()
    return array


def as_units(values: np.ndarray, name: str) -> Embedded:
    """Rows [N, D] as unit embeddings, zeros where a row has no direction."""
    # in double precision, where the order of summation changes nothing that float16 could show
    values = values.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.sqrt(np.einsum("nd,nd->n", values, values))
    finite = np.isfinite(lengths)
    failed = format_error("not_finite", f"{name} gives no numbers")
    errors = ["" if ok else failed for ok in finite]
    errors = [
        format_error("zero_embedding", f"{name} gives zeros") if not length else error
        for length, error in zip(lengths, errors, strict=True)
    ]
    usable = finite & (lengths > 0)
    units = np.zeros(values.shape, np.float16)
    units[usable] = values[usable] / lengths[usable, None]
    return Embedded(units, errors)


def filled_up(batch: torch.Tensor | list[Any], size: int) -> torch.Tensor | list[Any]:
    """A batch of prepared images with its last image repeated until there are `size`."""
    import torch

    lacking = size - len(batch)
    if isinstance(batch, list):
        return batch + batch[-1:] * lacking
    return torch.cat([batch, batch[-1:].expand(lacking, *batch.shape[1:])]) if lacking > 0 else batch


def dimension_of(encoder: Encoder) -> int:
    """The length of an encoder's embeddings."""
    return int(blank_embedding(encoder).shape[1])


def try_out(encoder: Encoder, name: str) -> None:
    """Refuse an encoder that gives no embedding, or none of finite numbers, for a gray image or a word.

    Raises:
        ModelError: it does.
    """
    import torch

    encoded = check_rows(blank_embedding(encoder), 1, name)
    if not torch.isfinite(encoded).all():
        raise ModelError(f"the encoder {name} gives embeddings that are not finite{NARROW}")


def blank_embedding(encoder: Encoder) -> torch.Tensor:
    """What an encoder gives for a gray image or a word."""
    import torch
    from PIL import Image

    with torch.inference_mode():
        if encoder.transform is None:
            return encoder.encode_captions([BLANK_TEXT])
        gray = encoder.transform(Decoded.whole(Image.new("RGB", (32, 32), (127, 127, 127))))
        return encoder.encode_images(stacked([[gray]], ("blank",)).arrays["blank"])


def _among(result: Embedded | None, good: list[int], errors: Sequence[str]) -> Embedded:
    """The embeddings of the good rows among all rows; [N, 0] where there is no good row."""
    rows = np.zeros((len(errors), 0 if result is None else result.embeddings.shape[1]), np.float16)
    every = list(errors)
    if result is not None:
        rows[good] = result.embeddings
        for row, error in zip(good, result.errors, strict=True):
            every[row] = error
    return Embedded(rows, every)


def _joined(parts: Sequence[Embedded], encoder: Encoder) -> Embedded:
    """Batches one after the other, those without a good row as zeros."""
    widths = [part.embeddings.shape[1] for part in parts if part.embeddings.shape[1]]
    width = widths[0] if widths else dimension_of(encoder)
    arrays = [p.embeddings if p.embeddings.shape[1] else np.zeros((len(p.errors), width), np.float16) for p in parts]
    return Embedded(
        np.concatenate([np.zeros((0, width), np.float16), *arrays]), [error for part in parts for error in part.errors]
    )
