"""Does an instruction lead to its target? Optional, and ours: each is held against the pair's hard negatives.

`engine: openai` or `transformers` asks a vision-language model yes or no whether (query, instruction) fits the target
better than a hard negative; `engine: clip` compares the scores of a CLIP model. The share of hard negatives that the
target beats is the column `fits`; the threshold on it is `min_fit` of the build. A pair is left out here only where
its own images are missing or the server refuses it. What surprises: which of the two candidates comes first
alternates between the questions of an instruction: a model that always says yes scores a half.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from megapairs_hf.annotation.client.messages import Request
from megapairs_hf.annotation.config import pair_seed
from megapairs_hf.annotation.prompts.parsing import spoken
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


class Verify:
    """One question for every instruction of a pair and every hard negative."""

    def __init__(
        self, config: VerifyConfig, prompt: Prompt, images: CorpusImages, negatives: Mapping[Any, list[str]]
    ) -> None:
        self.config, self.prompt, self.images, self.negatives = config, prompt, images, negatives

    def against(self, row: Row) -> list[str]:
        """The hard negatives that are held against the target."""
        return negatives_of(self.negatives, row)[: self.config.negatives]

    def prepare(self, rows: Iterable[Row]) -> None:
        """Read and shrink the images."""
        self.images.gather({i for row in rows for i in (row[QUERY_ID], row[TARGET_ID], *self.against(row))})

    def close(self) -> None:
        """Remove the shrunken images."""
        self.images.close()

    def _target_first(self, row: Row, attempt: int) -> bool:
        others = len(self.against(row))
        first = pair_seed(self.config.seed, row[QUERY_ID], row[TARGET_ID], attempt // others) & 1
        return bool((first + attempt % others) & 1)

    def question(self, row: Row, attempt: int) -> Request:
        """Three images and one instruction."""
        others = self.against(row)
        text, other = row["instructions"][attempt // len(others)], others[attempt % len(others)]
        candidates = (row[TARGET_ID], other) if self._target_first(row, attempt) else (other, row[TARGET_ID])
        urls = [self.images.data_url(image_id) for image_id in (row[QUERY_ID], *candidates)]
        messages = format_images(self.prompt, dict(zip(SLOTS, urls, strict=True)), instruction=text)
        parameters = {"temperature": 0.0, "top_p": None, "max_tokens": 5}
        seed = pair_seed(self.config.seed, row[QUERY_ID], row[TARGET_ID], attempt)
        return Request(messages, self.config.model, parameters | {"seed": seed})

    def settle(self, row: Row, replies: Mapping[int, Response]) -> Outcome | int:
        """The share of hard negatives that the target beats, for every instruction; null where no reply says."""
        others, count = self.against(row), len(row["instructions"])
        asked = range(count * len(others))
        missing = next((n for n in asked if n not in replies), None)
        if missing is not None:
            return missing
        said = [self._beats(row, n, replies[n].text) for n in asked]
        groups = [said[i * len(others) : (i + 1) * len(others)] for i in range(count)]
        return Outcome({**row, "fits": [share(group) for group in groups]})

    def _beats(self, row: Row, attempt: int, text: str) -> bool | None:
        found = YES_NO.search(spoken(text))
        return None if found is None else (found[1].lower() == "yes") == self._target_first(row, attempt)


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
