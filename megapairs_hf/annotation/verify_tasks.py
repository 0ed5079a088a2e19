"""What `verify` requests: comparisons of two candidates, or a score for each candidate by itself.

What surprises: which of the two candidates comes first alternates between the requests about an instruction, so a
model that always says yes scores a half. A score is the probability of yes (MLLM-as-a-judge, UniME-V2, Gu et al. 2025,
arXiv 2510.13515), and where the server does not tell it, a second request asks for a rating of 1 to 5.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from megapairs_hf.annotation.client.logprobs import REQUESTED
from megapairs_hf.annotation.client.messages import Request
from megapairs_hf.annotation.config import VerifyConfig, pair_seed
from megapairs_hf.annotation.prompts.parsing import without_thinking
from megapairs_hf.annotation.prompts.templates import Prompt, format_images
from megapairs_hf.annotation.tasks import Outcome, Row, share
from megapairs_hf.core.schema import CANDIDATE_IDS, CANDIDATE_SCORES, QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from megapairs_hf.annotation.client.messages import Response
    from megapairs_hf.annotation.corpus_reader import CorpusImages

COMPARED_SLOTS = ("query_image", "first_image", "second_image")
SCORED_SLOTS = ("query_image", "candidate_image")
YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
RATING = re.compile(r"(?<![\d.,])[1-5](?:[.,]\d+)?(?![\d])")
LOWEST, HIGHEST = 1.0, 5.0


class Comparison(NamedTuple):
    """One request: an instruction, a hard negative, and whether the target is the first candidate."""

    instruction: str
    negative: str
    target_first: bool


class VerifyTask:
    """One request for every instruction of a pair and every hard negative."""

    def __init__(
        self,
        config: VerifyConfig,
        prompt: Prompt,
        images: CorpusImages,
        negatives: Mapping[tuple[str, str], list[str]],
        weights: str = "",
    ) -> None:
        self.config, self.prompt, self.images, self.negatives, self.weights = (
            config,
            prompt,
            images,
            negatives,
            weights,
        )

    def comparisons(self, row: Row) -> list[Comparison]:
        """The comparisons of a pair; the number of an attempt is an index of them."""
        negatives = self.negatives[row[QUERY_ID], row[TARGET_ID]]
        comparisons = []
        for index, text in enumerate(row["instructions"]):
            first = pair_seed(self.config.seed, row[QUERY_ID], row[TARGET_ID], index)
            comparisons += [Comparison(text, name, bool((first + n) & 1)) for n, name in enumerate(negatives)]
        return comparisons

    def prepare(self, rows: Iterable[Row]) -> None:
        """Load and shrink the images."""
        self.images.load(image_ids(rows, self.negatives))

    def address(self, image_id: str) -> str:
        """An image as a data URL."""
        return self.images.data_url(image_id)

    def close(self) -> None:
        """Remove the shrunken images."""
        self.images.close()

    def request(self, row: Row, attempt: int) -> Request:
        """Three images and one instruction."""
        comparison = self.comparisons(row)[attempt]
        candidates = (row[TARGET_ID], comparison.negative)
        if not comparison.target_first:
            candidates = candidates[::-1]
        names = dict(zip(COMPARED_SLOTS, (row[QUERY_ID], *candidates), strict=True))
        return self.about(row, attempt, names, {"instruction": comparison.instruction})

    def about(
        self, row: Row, attempt: int, names: Mapping[str, str], slots: Mapping[str, Any], **more: Any
    ) -> Request:
        """A request about some images.

        Args:
            row: the pair.
            attempt: its number.
            names: the image of each slot of the prompt.
            slots: the other slots.
            **more: parameters besides those that every request has.
        """
        marks = {slot: self.images.mark(image_id) for slot, image_id in names.items()}
        messages = format_images(self.prompt, marks, **slots)
        parameters = {"temperature": 0.0, "top_p": None, "max_tokens": 5}
        seed = pair_seed(self.config.seed, row[QUERY_ID], row[TARGET_ID], attempt)
        images = {marks[slot]: image_id for slot, image_id in names.items()}
        return Request(messages, self.config.model, parameters | {"seed": seed} | more, images, self.weights)

    def open_attempts(self, row: Row, responses: Mapping[int, Response]) -> list[int]:
        """All comparisons without a response."""
        return [n for n in range(len(self.comparisons(row))) if n not in responses]

    def decide(self, row: Row, responses: Mapping[int, Response]) -> Outcome | int:
        """The share of hard negatives that the target beats, for every instruction; NaN where no response says."""
        comparisons = self.comparisons(row)
        missing = next((n for n in range(len(comparisons)) if n not in responses), None)
        if missing is not None:
            return missing
        beats = [_beats(comparison, responses[n].text) for n, comparison in enumerate(comparisons)]
        count, size = len(row["instructions"]), len(self.negatives[row[QUERY_ID], row[TARGET_ID]])
        return verdict([share(beats[i * size : (i + 1) * size]) for i in range(count)])


class ScoreTask(VerifyTask):
    """A request for every instruction of a pair and every candidate, the target first, and a second where need be.

    Attempt 2n is the n-th candidate's, with the probability of yes; 2n + 1 is its rating, where 2n has none.
    """

    def candidates(self, row: Row) -> list[str]:
        """The target and the hard negatives; none where there is nothing to compare."""
        negatives = self.negatives[row[QUERY_ID], row[TARGET_ID]]
        return [row[TARGET_ID], *negatives] if negatives else []

    def request(self, row: Row, attempt: int) -> Request:
        """Two images and one instruction."""
        candidates, (number, rating) = self.candidates(row), divmod(attempt, 2)
        text, name = row["instructions"][number // len(candidates)], candidates[number % len(candidates)]
        names = dict(zip(SCORED_SLOTS, (row[QUERY_ID], name), strict=True))
        return self.about(
            row, attempt, names, {"instruction": text, "rating": bool(rating)}, **({} if rating else REQUESTED)
        )

    def open_attempts(self, row: Row, responses: Mapping[int, Response]) -> list[int]:
        """All requests that can be sent: a rating once it is known that there is no probability."""
        count = len(row["instructions"]) * len(self.candidates(row))
        first = [2 * n for n in range(count)]
        second = [n + 1 for n in first if n in responses and responses[n].yes is None]
        return [n for n in (*first, *second) if n not in responses]

    def decide(self, row: Row, responses: Mapping[int, Response]) -> Outcome | int:
        """The score of every candidate, and the share of hard negatives that score less than the target."""
        missing = self.open_attempts(row, responses)
        if missing:
            return missing[0]
        candidates = self.candidates(row)
        scores = [score(responses, 2 * n) for n in range(len(row["instructions"]) * len(candidates))]
        rows = [scores[i : i + len(candidates)] for i in range(0, len(scores), len(candidates) or 1)]
        return scored(candidates, rows, len(row["instructions"]))


def score(responses: Mapping[int, Response], attempt: int) -> float:
    """The probability of yes, else the rating as a share of the range; NaN where neither says anything."""
    yes = responses[attempt].yes
    return rating_of(responses[attempt + 1].text) if yes is None else yes


def rating_of(text: str) -> float:
    """A rating of 1 to 5 as a number from 0 to 1; NaN where there is none."""
    match = RATING.search(without_thinking(text))
    rating = float(match[0].replace(",", ".")) if match else math.nan
    return (rating - LOWEST) / (HIGHEST - LOWEST) if rating <= HIGHEST else math.nan


def scored(candidates: Sequence[str], rows: Sequence[Sequence[float]], instructions: int) -> Outcome:
    """Pass rates from scores, and the scores.

    Args:
        candidates: the target and the hard negatives; none where there is nothing to compare.
        rows: of each instruction the score of each candidate, NaN where it is not known.
        instructions: how many there are.
    """
    if len(candidates) < 2:
        return verdict([math.nan] * instructions)
    rates = [share(_higher(row[0], other) for other in row[1:]) for row in rows]
    return verdict(rates, candidates, rows)


def verdict(rates: Sequence[float], candidates: Sequence[str] = (), scores: Sequence[Sequence[float]] = ()) -> Outcome:
    """What `verify` adds to a pair."""
    rows = [[float(value) for value in row] for row in scores]
    return Outcome({"verified": list(rates), CANDIDATE_IDS: list(candidates), CANDIDATE_SCORES: rows})


def image_ids(rows: Iterable[Row], negatives: Mapping[tuple[str, str], list[str]]) -> set[str]:
    """The images that the comparisons of some pairs need."""
    keys = [(row[QUERY_ID], row[TARGET_ID]) for row in rows]
    return {name for key in keys for name in (*key, *negatives[key])}


def _beats(comparison: Comparison, text: str) -> bool | None:
    match = YES_NO.search(without_thinking(text))
    return None if match is None else (match[1].lower() == "yes") == comparison.target_first


def _higher(one: float, other: float) -> bool | None:
    return None if math.isnan(one) or math.isnan(other) else one > other
