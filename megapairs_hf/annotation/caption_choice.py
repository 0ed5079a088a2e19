"""Which two captions of a pair are compared, where its images have several (COCO, Flickr30k: five by five people).

Other people name other things, so the first captions of two images differ for reasons that are not in the images. What
surprises: sharing most is not enough, since "a dog" and "a brown dog" share much though both dogs may be brown; a word
that another caption of the other image has too is no difference, and counts against a choice.
"""

from __future__ import annotations

import re
from itertools import product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

WORD = re.compile(r"\w+(?:[-'’]\w+)*")
# what every caption has and what says nothing about the image
COMMON = frozenset(
    "a an the this that these those some its his her their it there is are was were be being been has have had of"
    " and or as in on at to for by with from into onto over under up down out off near next".split()
)
MAX_CAPTIONS = 16  # of an image; web data has hundreds of alternative texts for one


def all_captions(caption: Any, captions: Any) -> list[str]:
    """Every caption of an image, the first one first.

    Args:
        caption: the column `caption`.
        captions: the column `captions`; where it does not have `caption`, that is the newer one and stands alone.
    """
    several = [text for text in captions if isinstance(text, str) and text.strip()] if _is_list(captions) else []
    if caption and caption not in several:
        return [caption]
    return list(dict.fromkeys([caption, *several] if caption else several))[:MAX_CAPTIONS]


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def best_captions(query: Sequence[str], target: Sequence[str]) -> tuple[str, str]:
    """The caption of the query and the caption of the target that fit best.

    For content words A and B of two captions, the score is (2 |A ∩ B| - f) / (|A| + |B|): f counts words of A - B that
    some caption of the target has, and words of B - A that some caption of the query has. Two captions that say the
    same are taken only where all do; among equals the earlier ones are.

    Args:
        query: its captions.
        target: its captions.

    Returns:
        One of each, empty where there is none.
    """
    if len(query) <= 1 and len(target) <= 1:
        return (query[0] if query else "", target[0] if target else "")
    a, b = [content_words(text) for text in query or [""]], [content_words(text) for text in target or [""]]
    in_query, in_target = set().union(*a), set().union(*b)

    def fit(pair: tuple[int, int]) -> tuple[bool, float]:
        one, other = a[pair[0]], b[pair[1]]
        left, right = set(one), set(other)
        no_difference = len((left - right) & in_target) + len((right - left) & in_query)
        return one != other, (2 * len(left & right) - no_difference) / max(1, len(left) + len(right))

    i, j = max(product(range(len(a)), range(len(b))), key=fit)
    return (query[i] if query else "", target[j] if target else "")


def content_words(caption: str) -> list[str]:
    """The words of a caption that say something about its image, in lower case."""
    words = [word.lower() for word in WORD.findall(caption)]
    # of a caption of nothing else, all: "on" and "under" differ
    return [word for word in words if word not in COMMON] or words
