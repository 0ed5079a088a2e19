"""What is asked about a pair and what is made of the reply, for both steps; pure but for the images.

A job turns a pair and the number of the attempt into a question, and a reply into a verdict. What surprises: both
depend on nothing but the pair, the settings and the reply, so a run that is continued comes to the same verdicts from
the journal alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from megapairs_hf.annotation.config import DescribeConfig, InstructConfig, pair_seed
from megapairs_hf.core.schema import CAPTION, QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from megapairs_hf.annotation.client.messages import Request, Response

Row = dict[str, Any]
ATTEMPTS = 2


@dataclass(frozen=True)
class Outcome:
    """What became of a pair.

    Attributes:
        row: the artifact's row; None where the pair is left out.
        reason: why it is left out, a short word.
        detail: the raw reply, or what exactly was found.
        left_out: instructions that were rejected, by reason.
    """

    row: Row | None
    reason: str = ""
    detail: str = ""
    left_out: Counter[str] = field(default_factory=Counter)


class Task(Protocol):
    """One step of the annotation."""

    def question(self, row: Row, attempt: int) -> Request:
        """What to ask; raises `ImageRejectedError` where an image is missing."""

    def settle(self, row: Row, replies: Mapping[int, Response]) -> Outcome | int:
        """The verdict that these replies (by attempt) allow, or the number of the next question."""

    def prepare(self, rows: Iterable[Row]) -> None:
        """Get ready what the questions about these pairs need."""

    def close(self) -> None:
        """Let go of it."""


class TwoTries:
    """A job that asks once more, with another seed, where the first reply is no use."""

    def judge(self, row: Row, attempt: int, reply: Response) -> Outcome:
        """What one reply is worth."""
        raise AssertionError(f"{type(self).__name__} judges nothing")

    def prepare(self, rows: Iterable[Row]) -> None:
        """Nothing to get ready."""

    def close(self) -> None:
        """Nothing to let go of."""

    def settle(self, row: Row, replies: Mapping[int, Response]) -> Outcome | int:
        """The verdict that these replies allow, or the number of the next question."""
        verdict = None
        for attempt in range(ATTEMPTS):
            reply = replies.get(attempt)
            if reply is None:
                return attempt
            said = self.judge(row, attempt, reply)
            # what an earlier attempt left out is counted as well
            left_out = said.left_out + verdict.left_out if verdict else said.left_out
            verdict = Outcome(said.row, said.reason, said.detail, left_out)
            if verdict.row is not None or reply.refused:
                break
        assert verdict is not None
        return verdict


def ids_of(rows: Iterable[Row]) -> set[str]:
    """The images of some pairs."""
    return {row[name] for row in rows for name in (QUERY_ID, TARGET_ID)}


def captions_of(row: Row, texts: Mapping[str, Row]) -> tuple[str, str]:
    """The captions of the query and the target, empty where there is none."""
    return texts.get(row[QUERY_ID], {}).get(CAPTION, ""), texts.get(row[TARGET_ID], {}).get(CAPTION, "")


def seed_for(seed: int, row: Row, attempt: int) -> int:
    """The seed of one question."""
    return pair_seed(seed, row[QUERY_ID], row[TARGET_ID], attempt)


def common_row(row: Row, config: DescribeConfig | InstructConfig, reply: Response) -> Row:
    """The columns that both artifacts have."""
    return {
        QUERY_ID: row[QUERY_ID],
        TARGET_ID: row[TARGET_ID],
        "raw": reply.text,
        "model": config.model,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
    }


def sampling(config: DescribeConfig | InstructConfig, seed: int) -> dict[str, Any]:
    """How the model is to sample."""
    return {
        "temperature": config.temperature,
        # TGI refuses 1, which means the same as nothing
        "top_p": config.top_p if config.top_p < 1 else None,
        "max_tokens": config.max_tokens,
        "seed": seed,
    }
