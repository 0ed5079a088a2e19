"""What goes to a server and what comes back.

What surprises: a request names its images by marks until it is sent. A mark is a hash of the image's file, so the key
of a request is known before any image is read, and no image waits in memory.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class Request:
    """One request: chat messages and the sampling parameters.

    Attributes:
        messages: with the mark of each image in the place of its address.
        model: as the servers name it.
        parameters: of the sampling.
        images: the id of each image by its mark; empty where the messages hold the images themselves.
        weights: what else decides the response, for a local model.
    """

    messages: list[dict[str, Any]]
    model: str
    parameters: dict[str, Any]
    images: Mapping[str, str] = field(default_factory=dict)
    weights: str = ""

    @property
    def key(self) -> str:
        """32 hex digits of a hash of what decides the response."""
        facts = [self.messages, self.model, self.parameters, self.weights]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def num_chars(self) -> int:
        """Characters of its text; images are not counted."""
        parts = [message["content"] for message in self.messages]
        texts = [[part] if isinstance(part, str) else [p.get("text", "") for p in part] for part in parts]
        return sum(len(text) for group in texts for text in group)

    def filled(self, address: Callable[[str], str]) -> Request:
        """The request with its images.

        Args:
            address: the data URL of an image by its id.
        """
        if not self.images:
            return self

        def fill(part: dict[str, Any]) -> dict[str, Any]:
            if part["type"] != "image_url":
                return part
            return {**part, "image_url": {"url": address(self.images[part["image_url"]["url"]])}}

        messages = [{**each, "content": [fill(part) for part in each["content"]]} for each in self.messages]
        return replace(self, messages=messages, images={})


# a column holds no larger number
MOST_TOKENS = 2**31


@dataclass(frozen=True)
class Response:
    """The response of a server or of a local model.

    Token counts that are no counts, and a reason that is no text, are taken for unsaid, wherever they come from.

    Attributes:
        text: word for word.
        finish_reason: `stop`, `length`, …
        prompt_tokens: as the server counted them; None where it does not say.
        completion_tokens: likewise.
        refused: why there is no response, a short word for counting; `text` then holds the server's words. It is kept
            in no journal, so a resumed run sends the request again.
        latency_s: of the request.
        model: that the server took in the place of the one that was named; empty where it is that one.
        yes: the probability of yes against no where it was asked for and the server says it.
    """

    text: str
    finish_reason: str = "stop"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    refused: str = ""
    latency_s: float = 0.0
    model: str = ""
    yes: float | None = None

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "completion_tokens"):
            count = getattr(self, name)
            if not isinstance(count, int) or not 0 <= count < MOST_TOKENS:
                object.__setattr__(self, name, None)
        if not isinstance(self.finish_reason, str):
            object.__setattr__(self, "finish_reason", "")
