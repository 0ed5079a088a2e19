"""Does an instruction lead to its target? Optional, and ours: the target is compared with the pair's hard negatives.

`engine: openai` or `transformers` has a vision-language model say yes or no, whether (query, instruction) fits the
target better than a hard negative; `engine: clip` compares the scores of a CLIP model. The share of hard negatives
that the target beats is the column `fits`; the threshold on it is `min_fit` of the build. A pair is rejected here only
where its own images are missing or the server refuses it. What surprises: which of the two candidates comes first
alternates between the requests about an instruction, so a model that always says yes scores a half.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from megapairs_hf.annotation.client.messages import Request
from megapairs_hf.annotation.config import pair_seed
from megapairs_hf.annotation.prompts.parsing import without_thinking
from megapairs_hf.annotation.prompts.templates import Prompt, format_images
from megapairs_hf.annotation.tasks import Outcome, Row
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.schema import QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from megapairs_hf.annotation.client.messages import Response
    from megapairs_hf.annotation.config import VerifyConfig
    from megapairs_hf.annotation.corpus_reader import CorpusImages

SLOTS = ("query_image", "first_image", "second_image")
YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


class Comparison(NamedTuple):
    """One request: an instruction, a hard negative, and whether the target is the first candidate."""

    instruction: str
    negative: str
    target_first: bool


class Verify:
    """One request for every instruction of a pair and every hard negative."""

    def __init__(
        self, config: VerifyConfig, prompt: Prompt, images: CorpusImages, negatives: Mapping[Any, list[str]]
    ) -> None:
        self.config, self.prompt, self.images, self.negatives = config, prompt, images, negatives

    def negatives_for(self, row: Row) -> list[str]:
        """The hard negatives that the target is compared with."""
        return negatives_of(self.negatives, row)[: self.config.negatives]

    def comparisons(self, row: Row) -> list[Comparison]:
        """The comparisons of a pair; the number of an attempt is an index of them."""
        negatives = self.negatives_for(row)
        comparisons = []
        for index, text in enumerate(row["instructions"]):
            first = pair_seed(self.config.seed, row[QUERY_ID], row[TARGET_ID], index)
            comparisons += [Comparison(text, name, bool((first + n) & 1)) for n, name in enumerate(negatives)]
        return comparisons

    def prepare(self, rows: Iterable[Row]) -> None:
        """Load and shrink the images."""
        self.images.load({i for row in rows for i in (row[QUERY_ID], row[TARGET_ID], *self.negatives_for(row))})

    def close(self) -> None:
        """Remove the shrunken images."""
        self.images.close()

    def request(self, row: Row, attempt: int) -> Request:
        """Three images and one instruction."""
        comparison = self.comparisons(row)[attempt]
        candidates = (row[TARGET_ID], comparison.negative)
        if not comparison.target_first:
            candidates = candidates[::-1]
        urls = [self.images.data_url(image_id) for image_id in (row[QUERY_ID], *candidates)]
        slots = dict(zip(SLOTS, urls, strict=True))
        messages = format_images(self.prompt, slots, instruction=comparison.instruction)
        parameters = {"temperature": 0.0, "top_p": None, "max_tokens": 5}
        seed = pair_seed(self.config.seed, row[QUERY_ID], row[TARGET_ID], attempt)
        return Request(messages, self.config.model, parameters | {"seed": seed})

    def decide(self, row: Row, responses: Mapping[int, Response]) -> Outcome | int:
        """The share of hard negatives that the target beats, for every instruction; null where no response says."""
        comparisons = self.comparisons(row)
        missing = next((n for n in range(len(comparisons)) if n not in responses), None)
        if missing is not None:
            return missing
        beats = [_beats(comparison, responses[n].text) for n, comparison in enumerate(comparisons)]
        count, size = len(row["instructions"]), len(self.negatives_for(row))
        return Outcome({**row, "fits": [share(beats[i * size : (i + 1) * size]) for i in range(count)]})


def _beats(comparison: Comparison, text: str) -> bool | None:
    match = YES_NO.search(without_thinking(text))
    return None if match is None else (match[1].lower() == "yes") == comparison.target_first


def negatives_of(negatives: Mapping[Any, list[str]], row: Row) -> list[str]:
    """The hard negatives of a pair.

    Raises:
        ArtifactError: the pair is not among them.
    """
    key = row[QUERY_ID], row[TARGET_ID]
    if key not in negatives:
        raise ArtifactError(
            f"{key[0]} -> {key[1]} is not among the pairs; name the `pairs` that the instructions were made of"
        )
    return negatives[key]


def share(verdicts: list[bool | None]) -> float | None:
    """Share of the verdicts that are yes; None where there is none."""
    known = [verdict for verdict in verdicts if verdict is not None]
    return sum(known) / len(known) if known else None
