"""What `verify` requests: comparisons of two candidates, or a score for each candidate by itself.

What surprises: which of the two candidates comes first alternates between the requests about an instruction, so a
model that always says yes scores a half. A score is the probability of yes (MLLM-as-a-judge, UniME-V2, Gu et al. 2025,
arXiv 2510.13515), and where the server does not tell it, a second request asks for a rating of 1 to 5. The candidates
of an instruction are scored by one of the two, since the scales differ.
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
# the scale, which many models repeat, also where their response is cut off after it
SCALE = re.compile(
    r"(?:/|\bout\s+of|\bof)\s*(?:5|five)\b"
    r"|\b(?:(?:from|of)\s+)?1\s*(?:-|–|to)\s*5\b"
    r"|\b(?:from|of)\s+1\b",
    re.IGNORECASE,
)
NUMBER = re.compile(r"[-−]?\d+(?:[.,]\d+)?")
RATING_WORDS = ("one", "two", "three", "four", "five")
# as the whole response or its beginning, since "one" is a pronoun too
WORD = re.compile(
    rf"\W*(?:(?:rating|score|answer)\b\W*(?:is\b)?\W*)?({'|'.join(RATING_WORDS)})\b(?=\W*$|\s*[.,;:!)*]|\s+stars?\b)",
    re.IGNORECASE,
)
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

    Attempt 2n is the n-th candidate's, with the probability of yes; 2n + 1 is its rating, where no candidate of the
    instruction has a probability.
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
        """All requests that can be sent: ratings once it is known that there is no probability."""
        groups = self._attempts(row)
        second = [n + 1 for group in groups if _unscored(group, responses) for n in group]
        return [n for n in (*(n for group in groups for n in group), *second) if n not in responses]

    def _attempts(self, row: Row) -> list[range]:
        """The first attempts of the candidates of each instruction."""
        width = 2 * len(self.candidates(row))
        return [range(i * width, (i + 1) * width, 2) for i in range(len(row["instructions"]))]

    def decide(self, row: Row, responses: Mapping[int, Response]) -> Outcome | int:
        """The score of every candidate, and the share of hard negatives that score less than the target."""
        missing = self.open_attempts(row, responses)
        if missing:
            return missing[0]
        rows = [scores_of(group, responses) for group in self._attempts(row)]
        return scored(self.candidates(row), rows, len(row["instructions"]))


def _unscored(attempts: Sequence[int], responses: Mapping[int, Response]) -> bool:
    """Whether all of them have a response, and none a probability."""
    return all(n in responses and responses[n].yes is None for n in attempts)


def scores_of(attempts: Sequence[int], responses: Mapping[int, Response]) -> list[float]:
    """The probabilities of yes, or where there are none the ratings as shares of their range; NaN for nothing."""
    if _unscored(attempts, responses):
        return [rating_of(responses[n + 1].text) for n in attempts]
    probabilities = (responses[n].yes for n in attempts)
    return [math.nan if yes is None else yes for yes in probabilities]


def rating_of(text: str) -> float:
    """A rating of 1 to 5 as a number from 0 to 1; NaN where there is none, or one on another scale."""
    text = SCALE.sub(" ", without_thinking(text))
    ratings = [float(number.replace(",", ".").replace("−", "-")) for number in NUMBER.findall(text)]
    word = WORD.match(text)
    if not ratings and word is not None:
        ratings = [RATING_WORDS.index(word[1].lower()) + LOWEST]
    inside = bool(ratings) and all(LOWEST <= rating <= HIGHEST for rating in ratings)
    return (ratings[0] - LOWEST) / (HIGHEST - LOWEST) if inside else math.nan


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
