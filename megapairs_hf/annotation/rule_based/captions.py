"""From two captions to instructions: by their slots where both have an action or little else in common, else by words.

Captions that are nearly the same text ("two red stars …", "two blue stars …") are compared word by word, since that
keeps every detail; sentences are composed from their slots. What surprises: nothing is ever pasted; a pair for which
neither way finds something in common is rejected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megapairs_hf.annotation.language import seems_english
from megapairs_hf.annotation.rule_based.caption_diff import shared_part
from megapairs_hf.annotation.rule_based.compose import compose
from megapairs_hf.annotation.rule_based.templates import check_differ, usable_edits, write_by_words, write_description
from megapairs_hf.core.errors import ResponseRejectedError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from megapairs_hf.annotation.rule_based.attributes import AttributeEdit
    from megapairs_hf.annotation.rule_based.slots import ParsedCaption

PARALLEL = 0.6


class CaptionWriter:
    """Writes from captions whose slots are known.

    Args:
        scenes: captions in slots, None where they could not be told.
    """

    def __init__(self, scenes: Mapping[str, ParsedCaption | None]) -> None:
        self.scenes = scenes

    def instructions(self, query: str, target: str, *, count: int, seed: int) -> list[str]:
        """Up to `count` instructions that lead from one caption to the other.

        Raises:
            ResponseRejectedError: `no_caption`, `other_language`, `same_caption`, `nothing_new` or `nothing_shared`.
        """
        _check(query, target)
        scenes = self.scenes.get(query), self.scenes.get(target)
        first, second = scenes
        edits = usable_edits(query, target)
        sentences = all(scene is not None and scene.action for scene in scenes)
        parallel = min(shared_part(query, target), shared_part(target, query)) >= PARALLEL
        if first is None or second is None or (edits and parallel and not sentences):
            return write_by_words(edits, count=count, seed=seed)
        try:
            return compose(first, second, count=count, seed=seed)
        except ResponseRejectedError as error:
            if error.reason != "nothing_shared" or not (edits and parallel):
                raise
            return write_by_words(edits, count=count, seed=seed)

    def description(self, query: str, target: str) -> str:
        """What both captions say, and what is new in the target.

        Raises:
            ResponseRejectedError: as for instructions.
        """
        return write_description(query, target, self.instructions(query, target, count=1, seed=0)[0])


def with_attributes(texts: Sequence[str], edits: Sequence[AttributeEdit]) -> list[str]:
    """Instructions that also name the fields that differ."""
    clauses = [f"with {edit.label} {edit.new} instead of {edit.old}" for edit in edits]
    return [", ".join([text, *clauses]) for text in texts]


def _check(query: str, target: str) -> None:
    """Refuse captions that say nothing, the same, or something in another language than English."""
    check_differ(query, target)
    foreign = next((text for text in (query, target) if not seems_english(text)), None)
    if foreign is not None:
        raise ResponseRejectedError("other_language", foreign)
