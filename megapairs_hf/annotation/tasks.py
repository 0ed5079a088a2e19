"""The requests about a row and what their responses are worth, for every step; pure but for the images.

A task turns a row (a pair, or an image) and the number of the attempt into a request, and responses into an outcome.
What surprises: both depend on nothing but the row, the settings and the responses, so a resumed run comes to the same
outcomes from the journal alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from megapairs_hf.annotation.caption_choice import all_captions, best_captions
from megapairs_hf.annotation.config import pair_seed
from megapairs_hf.core.errors import ImageRejectedError, MegaPairsError
from megapairs_hf.core.formatting import one_line
from megapairs_hf.core.schema import CAPTION, CAPTIONS, QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from megapairs_hf.annotation.client.messages import Request, Response

Row = dict[str, Any]
ATTEMPTS = 2
# of a response that no parser was written for
UNEXPECTED = "unexpected_error"


@dataclass(frozen=True)
class Outcome:
    """What becomes of a row.

    Attributes:
        row: the artifact's row; None where it is rejected.
        reason: why it is rejected, a short word.
        detail: the raw response, or what exactly is wrong.
        left_out: instructions that were rejected, by reason.
        cost: responses that were needed, and their prompt and completion tokens.
    """

    row: Row | None
    reason: str = ""
    detail: str = ""
    left_out: Counter[str] = field(default_factory=Counter)
    cost: tuple[int, int, int] = (0, 0, 0)


class AnnotationTask(Protocol):
    """The requests about some rows, and what their responses are worth."""

    def request(self, row: Row, attempt: int) -> Request:
        """The request, with marks in the place of its images."""

    def decide(self, row: Row, responses: Mapping[int, Response]) -> Outcome | int:
        """The outcome that these responses (by attempt) allow, or the number of the next attempt."""

    def open_attempts(self, row: Row, responses: Mapping[int, Response]) -> list[int]:
        """The attempts whose requests can be sent at once."""

    def prepare(self, rows: Iterable[Row]) -> None:
        """Load the images of these rows."""

    def address(self, image_id: str) -> str:
        """An image as a data URL; raises `ImageRejectedError` where it is missing or cannot be read."""

    def close(self) -> None:
        """Release the images."""


def decided(task: AnnotationTask, row: Row, responses: Mapping[int, Response]) -> Outcome | int:
    """What a task decides about a row; a response that its parser fails on costs that row and names the exception."""
    try:
        return task.decide(row, responses)
    except (MegaPairsError, MemoryError):
        raise
    except Exception as error:
        return Outcome(None, UNEXPECTED, f"{type(error).__name__}: {one_line(error)}")


class OneRetry(ABC):
    """A task with a second request, with another seed, where the first response is no use."""

    @abstractmethod
    def evaluate(self, row: Row, attempt: int, response: Response) -> Outcome:
        """The outcome of one response."""

    def prepare(self, rows: Iterable[Row]) -> None:  # noqa: B027
        """Nothing to load."""

    def address(self, image_id: str) -> str:
        """No request has an image.

        Raises:
            ImageRejectedError: always; a task whose requests have images says where they are.
        """
        raise ImageRejectedError("missing_image", f"{image_id}: no request of this step has an image")

    def close(self) -> None:  # noqa: B027
        """Nothing to release."""

    def open_attempts(self, row: Row, responses: Mapping[int, Response]) -> list[int]:
        """The next attempt, which is made only where the one before was no use."""
        decided = self.decide(row, responses)
        return [decided] if isinstance(decided, int) else []

    def decide(self, row: Row, responses: Mapping[int, Response]) -> Outcome | int:
        """The outcome that these responses allow, or the number of the next attempt."""
        outcome = None
        for attempt in range(ATTEMPTS):
            response = responses.get(attempt)
            if response is None:
                return attempt
            latest = self.evaluate(row, attempt, response)
            # what an earlier attempt left out is counted as well
            left_out = latest.left_out + outcome.left_out if outcome else latest.left_out
            outcome = Outcome(latest.row, latest.reason, latest.detail, left_out)
            if outcome.row is not None or response.refused:
                break
        assert outcome is not None
        return outcome


def ids_of(rows: Iterable[Row]) -> set[str]:
    """The images of some pairs."""
    return {row[name] for row in rows for name in (QUERY_ID, TARGET_ID)}


def captions_of(row: Row, texts: Mapping[str, Row]) -> tuple[str, str]:
    """The captions of the query and the target that fit best, empty where there is none."""
    query, target = (texts.get(row[name], {}) for name in (QUERY_ID, TARGET_ID))
    return best_captions(*(all_captions(each.get(CAPTION, ""), each.get(CAPTIONS)) for each in (query, target)))


def seed_for(seed: int, row: Row, attempt: int) -> int:
    """The random seed of one request."""
    return pair_seed(seed, row[QUERY_ID], row[TARGET_ID], attempt)


def response_row(model: str, response: Response) -> Row:
    """The columns that every step adds beside its texts; 0 where a server does not count tokens."""
    return {
        "raw": response.text,
        "model": response.model or model,
        "finish_reason": response.finish_reason,
        "prompt_tokens": response.prompt_tokens or 0,
        "completion_tokens": response.completion_tokens or 0,
    }


def cost_of(responses: Iterable[Response]) -> tuple[int, int, int]:
    """How many responses there are, refusals left out, and their prompt and completion tokens."""
    good = [response for response in responses if not response.refused]
    prompt, completion = (sum(getattr(r, name) or 0 for r in good) for name in ("prompt_tokens", "completion_tokens"))
    return len(good), prompt, completion


def sampling(config: Any, seed: int) -> dict[str, Any]:
    """The sampling parameters of a request, as the API names them."""
    return {
        "temperature": config.temperature,
        # TGI refuses 1, which means the same as nothing
        "top_p": config.top_p if config.top_p < 1 else None,
        "max_tokens": config.max_new_tokens,
        "seed": seed,
    }


def share(verdicts: Iterable[bool | None]) -> float:
    """Share of the verdicts that are yes; NaN where there is none."""
    known = [verdict for verdict in verdicts if verdict is not None]
    return sum(known) / len(known) if known else math.nan
