"""What is called when something on the page is clicked: from what is on the page to what is on it next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import ImageRejectedError, MegaPairsError
from megapairs_hf.search.page.conversation import Conversation, QueryStep
from megapairs_hf.search.page.session import START, Controls, SearchSession
from megapairs_hf.search.page.votes import NAME, Votes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.search.page.config import PageConfig
    from megapairs_hf.search.page.served import ServedIndex
    from megapairs_hf.search.page.session import Shown

SMALL = 256
LONGEST_TEXT = 1000


class PageEvents:
    """What events call. Each returns conversation, image of the next query, and all that is shown.

    Args:
        indexes: that are searched.
        config: the settings.
    """

    def __init__(self, indexes: Sequence[ServedIndex], config: PageConfig) -> None:
        self.session, self.indexes = SearchSession(indexes), indexes
        self.votes = Votes(Path(config.votes) if config.votes else indexes[0].index.folder / NAME)
        self.examples = self.session.examples()

    def search(self, conversation: Conversation, image: QueryStep, text: str, *controls: Any) -> list[Any]:
        """A query with what is on the page."""
        step = replace(image, text=(text or "").strip())
        if not step.has_image and not step.text:
            return self._all(conversation, image, self.session.empty(START))
        conversation = conversation.ask(step)
        return self._all(conversation, image, self.session.show(conversation, make_controls(*controls)))

    def again(self, conversation: Conversation, image: QueryStep, *controls: Any) -> list[Any]:
        """The same query with other controls."""
        if not conversation.steps:
            return self._all(conversation, image, self.session.empty(START))
        return self._all(conversation, image, self.session.show(conversation, make_controls(*controls)))

    def upload(self, path: str, text: str, *controls: Any) -> list[Any]:
        """An image that a visitor gave begins a new search, with the text that is there."""
        try:
            step = QueryStep(file=path, label=Path(path).name, small=self.indexes[0].small(path, SMALL))
        except ImageRejectedError as error:
            sentence = f"{Path(path).name} cannot be used ({error}); give another image"
            return self._all(Conversation(), QueryStep(), self.session.failed(Conversation(), sentence))
        return self.search(Conversation(), step, text, *controls)

    def pick(self, number: int, row: int, conversation: Conversation, *controls: Any) -> list[Any]:
        """A result that was clicked is the next query."""
        try:
            step = self.session.step_of(number, row)
        except MegaPairsError as error:
            return self._all(conversation, QueryStep(), self.session.failed(conversation, str(error)))
        conversation = conversation.ask(step)
        return self._all(conversation, step, self.session.show(conversation, make_controls(*controls)))

    def go_to(self, number: int, conversation: Conversation, *controls: Any) -> list[Any]:
        """A step of the conversation that was clicked."""
        conversation = conversation.back_to(number)
        step = conversation.steps[-1] if conversation.steps else QueryStep()
        shown = self.session.show(conversation, make_controls(*controls))
        return [*self._all(conversation, step, shown), step.text]

    def open_link(self, values: dict[str, str], *controls: Any) -> list[Any]:
        """The query of a link, for an image of the index or a text alone; with the weight of the link."""
        name, text, weight = values.get("image", ""), values.get("text", "")[:LONGEST_TEXT], _number(values)
        numbers = list(controls)
        if weight is not None:
            numbers[2:4] = [weight, False]
        image = QueryStep()
        try:
            if name:
                image = self.session.step_of(0, self.indexes[0].index.rows.row_of(name))
        except MegaPairsError as error:
            shown = self._all(Conversation(), QueryStep(), self.session.failed(Conversation(), str(error)))
        else:
            shown = self.search(Conversation(), image, text, *numbers)
        return [*shown, text, *numbers[2:4]]

    def vote(
        self, number: int, row: int, vote: int, conversation: Conversation, combine: str, weight: float, fuse: bool
    ) -> str:
        """A thumb up or down; what was done, as a sentence."""
        query = conversation.query("all texts" if combine == "all texts" else "last image")
        index = self.indexes[number].index
        try:
            self.votes.add(index, query, row, vote, None if fuse else weight)
            name = index.rows.image_id(row)
        except MegaPairsError as error:
            return str(error)
        return f"{name}: {'right' if vote > 0 else 'wrong'}, noted in {self.votes.path.name}"

    def _all(self, conversation: Conversation, image: QueryStep, shown: Shown) -> list[Any]:
        panel = {"src": self.session.source_of(image, SMALL), "label": image.label}
        return [conversation, image, panel, shown.crumbs, shown.status, *shown.grids]


def _number(values: dict[str, str]) -> float | None:
    """The weight of a link; None where it is none."""
    try:
        weight = float(values.get("weight", ""))
    except ValueError:
        return None
    return weight if 0 <= weight <= 1 else None


def make_controls(by: str, combine: str, weight: float, fuse: bool, k: float, near_duplicates: bool) -> Controls:
    """The controls' values; whatever a client sends that the page does not offer is the default."""
    return Controls(
        "image only" if by == "image only" else "text only" if by == "text only" else "image and text",
        "all texts" if combine == "all texts" else "last image",
        None if fuse else min(1.0, max(0.0, float(weight))),
        min(200, max(1, int(k))),
        bool(near_duplicates),
    )
