"""Inputs to features, for dual encoders and for multimodal language models.

A preparer does per input what can be done in a thread (decode, resize), and per batch what the processor does. What
surprises: a text goes to Sentence Transformers as `{"text": …}`, because a bare string that looks like a path or a URL
would be taken for an image and fetched.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from megapairs_hf.core.errors import ModelError
from megapairs_hf.models import dual_encoder
from megapairs_hf.models.image_processing import Pixels
from megapairs_hf.models.inputs import load_image

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from megapairs_hf.core.inputs import Input

LOG = logging.getLogger(__name__)


class Prepared(dict):  # type: ignore[type-arg]
    """A prepared input: `text`, `image`, or both."""


class Processor(Protocol):
    """Turns inputs into features."""

    def one(self, value: Input, index: int) -> Prepared:
        """Decode and resize, in a thread."""

    def features(
        self, ready: Sequence[Prepared], prompt: str | None, stock: Callable[..., Any], settings: dict[str, Any]
    ) -> dict[str, Any]:
        """The model's features of a batch; `stock` is Sentence Transformers' own `preprocess`."""

    def finish(self, folder: str) -> None:
        """What a saved folder needs besides what Sentence Transformers saves."""


class DualProcessor:
    """For dual encoders.

    Args:
        transformer: the Sentence Transformers `Transformer` module.
    """

    def __init__(self, transformer: Any) -> None:
        self.pixels = Pixels(transformer.processor)
        self.tokenizer = transformer.tokenizer
        longest = transformer.processing_kwargs.get("text", {}).get("max_length")
        self.limit = int(longest or self.tokenizer.model_max_length)
        self.warned = False

    def one(self, value: Input, index: int) -> Prepared:
        """Text, and pixels or the processor's arrays."""
        ready = Prepared()
        if value.text is not None:
            ready["text"] = value.text
        if value.image is not None:
            ready["image"] = self.pixels.one(load_image(value.image, index))
        return ready

    def features(
        self, ready: Sequence[Prepared], prompt: str | None, stock: Callable[..., Any], settings: dict[str, Any]
    ) -> dict[str, Any]:
        """Tokens, pixels or both; a prompt is put before the text, also of a joint input."""
        kinds = {tuple(sorted(one)) for one in ready}
        if len(kinds) > 1:
            raise ModelError("a batch mixes texts, images and joint inputs; call `encode`, which sorts them")
        kind = kinds.pop()
        features: dict[str, Any] = {}
        if "text" in kind:
            self._warn([(prompt or "") + one["text"] for one in ready])
            features |= stock([{"text": one["text"]} for one in ready], prompt=prompt, **settings)
        if "image" in kind:
            features |= self.pixels.batch([one["image"] for one in ready])
        return features | {"modality": dual_encoder.FUSED if len(kind) > 1 else kind[0]}

    def _warn(self, texts: list[str]) -> None:
        """Warn once that a text is truncated."""
        # a token has a byte at least, so short texts need not be counted
        long = [] if self.warned else [text for text in texts if len(text.encode()) + 2 > self.limit]
        for text in long:
            count = len(self.tokenizer(text, verbose=False)["input_ids"])
            if count > self.limit:
                LOG.warning(
                    "text truncated from %d to %d tokens, all that the model takes; others are, without a note",
                    count,
                    self.limit,
                )
                self.warned = True
                return

    def finish(self, folder: str) -> None:
        """The modeling file."""
        dual_encoder.finish_folder(Path(folder))
