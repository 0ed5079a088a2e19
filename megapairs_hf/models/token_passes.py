"""Forward passes of a language model within a number of tokens, in training and in `encode`.

What surprises: padding counts, since it takes memory too: a pass of n inputs has n times the tokens of its longest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# of `encode`; ours: five images of LLaVA-NeXT at their finest, a few gigabytes beside the weights of a 7 B model
MAX_TOKENS_PER_PASS = 16_384


def token_passes(lengths: Sequence[int], budget: int) -> list[slice]:
    """Neighboring inputs whose tokens, padded to the longest, are within the budget; a longer input is alone.

    Args:
        lengths: tokens of each input.
        budget: tokens per pass.
    """
    passes: list[slice] = []
    longest = 0
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        if not passes or longest * (i + 1 - passes[-1].start) > budget:
            passes.append(slice(i, i + 1))
            longest = length
        else:
            passes[-1] = slice(passes[-1].start, i + 1)
    return passes
