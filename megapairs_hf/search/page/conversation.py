"""A search conversation: a query, a result that becomes the next query, and so on, with all changes so far.

As in ChatIR (Levy et al., 2023), the changes of a conversation are combined in one of two ways: the last result's
image with the new text, or all texts so far with the first image.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

Combine = Literal["last image", "all texts"]


@dataclass(frozen=True)
class QueryStep:
    """One query of a conversation.

    Attributes:
        text: the change, or what to find; empty for the image alone.
        row: of an image of the index; None where it is none of its.
        file: of an image that the visitor gave.
        label: what the image is called: the id of an image of the index.
        small: of an image that the visitor gave, a small copy as a data URI.
    """

    text: str = ""
    row: int | None = None
    file: str | None = None
    label: str = ""
    small: str = ""

    @property
    def has_image(self) -> bool:
        """Whether there is an image."""
        return self.row is not None or self.file is not None


@dataclass(frozen=True)
class Conversation:
    """The queries so far; the last is the one that is shown.

    Attributes:
        steps: oldest first.
    """

    steps: tuple[QueryStep, ...] = field(default=())

    def ask(self, step: QueryStep) -> Conversation:
        """With a new query: it replaces one with the same image that has no text yet."""
        last = self.steps[-1] if self.steps else None
        same = last is not None and not last.text and (last.row, last.file) == (step.row, step.file)
        return Conversation((*(self.steps[:-1] if same else self.steps), step))

    def back_to(self, number: int) -> Conversation:
        """Up to a step, counted from 0."""
        return Conversation(self.steps[: max(0, number) + 1])

    def back(self) -> Conversation:
        """Without the last step."""
        return Conversation(self.steps[:-1]) if len(self.steps) > 1 else self

    def query(self, combine: Combine) -> QueryStep:
        """What is searched for.

        Args:
            combine: `last image` takes the last step as it is, `all texts` all texts with the first image.
        """
        if not self.steps:
            return QueryStep()
        last = self.steps[-1]
        if combine == "last image":
            return last
        first = next((step for step in self.steps if step.has_image), last)
        texts = [step.text for step in self.steps if step.text]
        return replace(first, text=", ".join(texts))
