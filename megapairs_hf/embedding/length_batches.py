"""Texts in batches of one length and one number of rows, so that an embedding has the same bits in any company.

What surprises: the last bits of an embedding depend on how many rows and tokens its batch has. So a text is padded to
the next multiple of eight tokens, together with others of that length alone, and every batch is filled up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megapairs_hf.embedding.pooling import check_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

TOKEN_STEP = 8


def length_batches(lengths: Sequence[int], size: int, limit: int | None) -> Iterator[tuple[int, np.ndarray, int]]:
    """Batches of texts of one length class, all of the same number of rows.

    A class is decided by the text's own length: padded to the next greater multiple of eight tokens, so that there is
    padding in every row, or to the limit. What surprises: texts that fill the limit are a class of their own, because
    attention takes another way where no row of a batch has padding.

    Args:
        lengths: [N] tokens of each text.
        size: rows per batch.
        limit: the most tokens that the model takes; None where there is no limit.

    Yields:
        The padded length, the rows of a batch [size], and how many of them are not there twice: the last batch of a
        class is filled up with its last row.
    """
    tokens = np.asarray(lengths, np.int64)
    padded = (tokens // TOKEN_STEP + 1) * TOKEN_STEP
    if limit is not None:
        padded = np.minimum(padded, limit)
    classes = np.stack([padded, tokens == padded], axis=1)
    for width, full in np.unique(classes, axis=0)[::-1].tolist():
        rows = np.flatnonzero((classes == [width, full]).all(axis=1))
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            yield width, np.pad(batch, (0, size - len(batch)), mode="edge"), len(batch)


def encode_by_length(
    lengths: Sequence[int],
    size: int,
    limit: int | None,
    encode: Callable[[int, list[int]], torch.Tensor],
    name: str,
) -> torch.Tensor:
    """Embeddings (Tensor[N, D]) of N texts of these lengths, batched as in `length_batches`.

    Args:
        lengths: [N] tokens of each text, N at least 1.
        size: rows per batch.
        limit: the most tokens that the model takes; None where there is no limit.
        encode: gives the embeddings (Tensor[size, D]) of these rows, padded to this length.
        name: of the encoder.

    Raises:
        ModelError: what it gives is something else.
    """
    import torch

    order, parts = [], []
    for width, rows, count in length_batches(lengths, size, limit):
        parts.append(check_rows(encode(width, rows.tolist()), size, name)[:count])
        order.append(rows[:count])
    return torch.cat(parts)[torch.from_numpy(np.argsort(np.concatenate(order)))]
