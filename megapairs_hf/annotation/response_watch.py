"""A look at the first responses of a run, so that a useless model is noticed after a hundred and not after a million.

What surprises: the run stops as soon as more than half of the first hundred can no longer be of use, whichever of them
come first; a response that repeats is only noticed, since alike pairs may well be described alike.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from megapairs_hf.annotation.filters import normalize
from megapairs_hf.core.errors import UselessResponsesError
from megapairs_hf.core.progress import note

if TYPE_CHECKING:
    from collections.abc import Mapping

FIRST, MOST = 100, 0.5
# fewer than these say nothing about the rest
FEWEST, FEWEST_ALIKE, SHARE_ALIKE, MAX_TEXTS = 10, 20, 0.1, 10_000
EXCERPT = 100
ELSE = "look at them, then change `model`, `prompt` or the server"
ADVICE = {
    "no_image_seen": "the model sees no images: name a vision-language model in `model`, served with images",
    "empty_message": "the prompt does not reach the model: look at the server's chat template",
    "refusal": "the model refuses: change `model` or `prompt`",
    "content_filter": "the server withholds them: change `model` or its filter",
    "only_thoughts": "all tokens went into thoughts: raise `max_new_tokens` or switch thinking off",
    "cut_off": "they end before their first full stop: raise `max_new_tokens`",
    "empty_reply": "look at the server's chat template and stop words",
    "error_text": "the server reports errors in the place of responses: look at its log",
    "server_failed": "look at the server's log",
    "nothing_shared": "the captions of a pair have nothing in common: narrow `similarity_range`, or take a model",
    "same_caption": "the captions of a pair are the same: write from metadata by `edits: attributes`, or take a model",
    "nothing_new": "a target's caption says nothing new: write from metadata by `edits: attributes`, or take a model",
    "other_language": "the rules read and write English: name a model that writes the language of the captions",
    "same_attributes": "none of the fields in `attributes` differs within a pair: name more of them",
    "unexpected_error": "this version fails on them: report the exception, with the response",
    "refused": "see that the model takes such input (images, `max_new_tokens`, the length of the prompt)",
    "deadline": "the server is too slow: raise `endpoint.deadline_s` or lower `endpoint.concurrency`",
    "unfinished": "the model writes no whole sentences: name one that is instruction-tuned in `model`",
    "too_short": "the model writes no whole sentences: name one that is instruction-tuned in `model`",
    "too_few_instructions": "set `response_format` to `json`, or name another `model`",
}


class ResponseWatch:
    """Counts what becomes of the first responses.

    Args:
        unit: what is made of the responses, in the plural.
        settings: of the run; what they have already is not advised.
    """

    def __init__(self, unit: str, settings: Mapping[str, Any] | None = None) -> None:
        self.unit, self.settings = unit, settings or {}
        self.seen, self.noticed, self.stopped = 0, False, False
        self.reasons: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.texts: Counter[str] = Counter()

    def add(self, text: str, reason: str = "") -> None:
        """Count a response.

        Args:
            text: the response.
            reason: why it is of no use; empty where it is.

        Raises:
            UselessResponsesError: most of the first hundred are of no use.
        """
        self.seen += 1
        if not reason:
            self._notice(text)
        elif self.seen <= FIRST:
            self.reasons[reason] += 1
            self.examples.setdefault(reason, text)
            if self.reasons.total() > MOST * FIRST:
                self.stopped = True
                raise UselessResponsesError(self._sentence(f"{min(self.seen, FIRST):,}"))

    def warning(self) -> str:
        """At the end of a run that was too short to be stopped: what is wrong with most responses, or nothing."""
        if not self.stopped and FEWEST <= self.seen < FIRST and self.reasons.total() > MOST * self.seen:
            return self._sentence(f"{self.seen:,}")
        return ""

    def _sentence(self, seen: str) -> str:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in self.reasons.most_common())
        reason = self.reasons.most_common(1)[0][0]
        return (
            f"{self.reasons.total():,} of the first {seen} responses are no {self.unit} ({counts}), such as"
            f" {excerpt(self.examples[reason])}; {advice(reason, self.settings)}, then run the same command again,"
            " with `overwrite` to send the requests so far once more"
        )

    def _notice(self, text: str) -> None:
        """Say once that many responses are the same."""
        key = normalize(text)
        if self.noticed or (key not in self.texts and len(self.texts) >= MAX_TEXTS):
            return
        self.texts[key] += 1
        count = self.texts[key]
        if count >= FEWEST_ALIKE and count >= SHARE_ALIKE * self.seen:
            self.noticed = True
            self.texts.clear()
            note(
                f"{count:,} of the first {self.seen:,} responses are the same, {excerpt(text)}; see that the model"
                " gets the images and the descriptions"
            )


def advice(reason: str, settings: Mapping[str, Any]) -> str:
    """What to do about responses that were rejected for a reason, where the run has these settings."""
    if reason == "too_few_instructions" and settings.get("response_format") == "json":
        fewer = "lower `min_instructions`, or " if settings.get("min_instructions", 1) > 1 else ""
        return f"{fewer}name another `model`"
    return ADVICE.get(reason, ELSE)


def excerpt(text: str) -> str:
    """The beginning of a response, on one line, in quotes."""
    line = " ".join(text[: 4 * EXCERPT].split())
    return repr(line if len(line) <= EXCERPT else line[:EXCERPT].rstrip() + "…")
