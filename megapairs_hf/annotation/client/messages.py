"""What goes to a server and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Request:
    """One request: chat messages and the sampling parameters."""

    messages: list[dict[str, Any]]
    model: str
    parameters: dict[str, Any]

    @property
    def num_chars(self) -> int:
        """Characters of its text; images are not counted."""
        parts = [message["content"] for message in self.messages]
        texts = [[part] if isinstance(part, str) else [p.get("text", "") for p in part] for part in parts]
        return sum(len(text) for group in texts for text in group)


@dataclass(frozen=True)
class Response:
    """The response of a server or of a local model.

    Attributes:
        text: word for word.
        finish_reason: `stop`, `length`, …
        prompt_tokens: as the server counted them; None where it does not say.
        completion_tokens: likewise.
        refused: why there is no response, a short word for counting; `text` then holds the server's words. It is kept
            in no journal, so a resumed run sends the request again.
        latency_s: of the request.
        model: that the server took in the place of the one that was named; empty where it is that one.
    """

    text: str
    finish_reason: str = "stop"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    refused: str = ""
    latency_s: float = 0.0
    model: str = ""
