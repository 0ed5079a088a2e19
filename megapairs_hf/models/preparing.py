"""Inputs to features, for dual encoders and for multimodal language models.

A preparer does per input what can be done in a thread (decode, resize), and per batch what the processor does. What
surprises: a text goes to Sentence Transformers as `{"text": …}`, because a bare string that looks like a path or a URL
would be taken for a picture and fetched.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from megapairs_hf.errors import ModelError
from megapairs_hf.models import dual
from megapairs_hf.models.inputs import Input, load_picture
from megapairs_hf.models.pixels import Pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Ready(dict):  # type: ignore[type-arg]
    """A prepared input: `text`, `image`, or both."""


class Preparer(Protocol):
    """Turns inputs into features."""

    def one(self, given: Input, place: int) -> Ready:
        """What a thread does: decode and resize."""

    def features(
        self, ready: Sequence[Ready], prompt: str | None, stock: Callable[..., Any], settings: dict[str, Any]
    ) -> dict[str, Any]:
        """The model's features of a batch; `stock` is Sentence Transformers' own `preprocess`."""

    def finish(self, folder: str) -> None:
        """What a saved folder needs besides what Sentence Transformers saves."""


class DualPreparer:
    """For dual encoders.

    Args:
        transformer: the Sentence Transformers `Transformer` module.
        allow_urls: whether pictures may be fetched.
    """

    def __init__(self, transformer: Any, allow_urls: bool) -> None:
        self.pixels = Pixels(transformer.processor)
        self.allow_urls = allow_urls

    def one(self, given: Input, place: int) -> Ready:
        """Text, and pixels or the processor's arrays."""
        ready = Ready()
        if given.text is not None:
            ready["text"] = given.text
        if given.picture is not None:
            ready["image"] = self.pixels.one(load_picture(given.picture, place, self.allow_urls))
        return ready

    def features(
        self, ready: Sequence[Ready], prompt: str | None, stock: Callable[..., Any], settings: dict[str, Any]
    ) -> dict[str, Any]:
        """Tokens, pixels or both; a prompt is put before the text, also of a joint input."""
        kinds = {tuple(sorted(one)) for one in ready}
        if len(kinds) > 1:
            raise ModelError("a batch mixes texts, pictures and joint inputs; call `encode`, which sorts them")
        kind = kinds.pop()
        made: dict[str, Any] = {}
        if "text" in kind:
            made |= stock([{"text": one["text"]} for one in ready], prompt=prompt, **settings)
        if "image" in kind:
            made |= self.pixels.batch([one["image"] for one in ready])
        return made | {"modality": dual.FUSED if len(kind) > 1 else kind[0]}

    def finish(self, folder: str) -> None:
        """The modeling file."""
        dual.finish_folder(Path(folder))
