"""Does an instruction lead to its target? Optional, and ours: the target is compared with the pair's hard negatives.

`engine: openai` or `transformers` has a vision-language model say yes or no, whether (query, instruction) fits the
target better than a hard negative; `engine: clip` compares the scores of a CLIP model. The share of hard negatives
that the target beats is the pass rate, in the column `verified`; the threshold on it is `min_pass_rate` of the build.
A pair is rejected here only where its own images are missing or the server refuses it. What surprises: which of the
two candidates comes first alternates between the requests about an instruction, so a model that always says yes
scores a half.
"""

from __future__ import annotations

import math
import random
import re
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import pyarrow as pa

from megapairs_hf.annotation.client.messages import Request
from megapairs_hf.annotation.config import VerifyConfig, pair_seed
from megapairs_hf.annotation.corpus_reader import CorpusImages
from megapairs_hf.annotation.engines.clip_score import load, pass_rates
from megapairs_hf.annotation.function import AnnotationFunction
from megapairs_hf.annotation.prompts.parsing import without_thinking
from megapairs_hf.annotation.prompts.templates import Prompt, format_images, load_prompt
from megapairs_hf.annotation.tasks import Outcome, Row, share
from megapairs_hf.core.distributed import device_of_rank
from megapairs_hf.core.progress import note
from megapairs_hf.core.schema import NEGATIVE_IDS, QUERY_ID, TARGET_ID, VERIFIED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from megapairs_hf.annotation.client.messages import Response
    from megapairs_hf.annotation.corpus_reader import CorpusReader

SLOTS = ("query_image", "first_image", "second_image")
YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


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
        names = (row[QUERY_ID], *candidates)
        marks = [self.images.mark(image_id) for image_id in names]
        slots = dict(zip(SLOTS, marks, strict=True))
        messages = format_images(self.prompt, slots, instruction=comparison.instruction)
        parameters = {"temperature": 0.0, "top_p": None, "max_tokens": 5}
        seed = pair_seed(self.config.seed, row[QUERY_ID], row[TARGET_ID], attempt)
        images = dict(zip(marks, names, strict=True))
        return Request(messages, self.config.model, parameters | {"seed": seed}, images, self.weights)

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
        return Outcome({"verified": [share(beats[i * size : (i + 1) * size]) for i in range(count)]})


class Verify(AnnotationFunction):
    """Adds to pairs with instructions the share of hard negatives that the target beats.

    Reads `query_id`, `target_id`, `instructions` and `negative_ids`. Adds `verified`, a pass rate for each instruction
    (NaN where nothing was compared, or no response says), and `error`. Settings: those of `VerifyConfig`, and those of
    `Endpoint` among them.

        pairs = pairs.map(Verify(images, engine="clip", model="…"), batched=True)
    """

    CONFIG = VerifyConfig
    NEEDS = (QUERY_ID, TARGET_ID, "instructions", NEGATIVE_IDS)
    USES = ("query_row", "target_row")
    BLANKS: ClassVar[dict[str, Any]] = {"instructions": [], NEGATIVE_IDS: []}
    SCHEMA = pa.schema([VERIFIED.field("verified")])

    def reset(self) -> None:
        """Forget the connections, the images, and what was said."""
        super().reset()
        self._told = False

    def outcomes(self, table: pa.Table, rank: int | None = None) -> list[Outcome]:
        """What becomes of some rows; says once where none of them gets a verdict."""
        outcomes = super().outcomes(table, rank)
        rates = [outcome.row["verified"] for outcome in outcomes if outcome.row is not None]
        if rates and not self._told and all(math.isnan(rate) for row in rates for rate in row):
            self._told = True
            note_no_verdict(asked=any(outcome.cost[0] for outcome in outcomes))
        return outcomes

    def one(self, *wrong: Any, **values: Any) -> dict[str, Any]:
        """The added columns for one pair with instructions.

        Args:
            *wrong: nothing.
            **values: a row with `query_id`, `target_id`, `instructions` and `negative_ids`.

        Raises:
            ConfigError: one of them is missing, or something is not named.
        """
        return self.one_row(values, "" if not wrong else "something without a name")

    def load_prompt(self) -> Prompt | None:
        """The prompt of the settings."""
        if not self.asks:
            return None
        return load_prompt(self.config.prompt, "verify.jinja", frozenset({*SLOTS, "instruction"}), SLOTS)

    def make_task(self, table: pa.Table) -> VerifyTask:
        """The requests about some pairs."""
        reader, rows = self.reader(table), table.select([QUERY_ID, TARGET_ID, NEGATIVE_IDS]).to_pylist()
        negatives = self.negatives(rows, reader)
        images = CorpusImages(reader, self.config.max_image_side)
        images.load_digests(image_ids(rows, negatives))
        return VerifyTask(self.config, self.prompt, images, negatives, self.weights)

    def negatives(self, rows: list[Row], reader: CorpusReader) -> dict[tuple[str, str], list[str]]:
        """As many hard negatives of each pair as are needed, of those that the corpus has, in an order of its own."""
        known = reader.known({name for row in rows for name in row[NEGATIVE_IDS]})
        negatives = {}
        for row in rows:
            key = row[QUERY_ID], row[TARGET_ID]
            names = [name for name in row[NEGATIVE_IDS] if name in known]
            random.Random("\0".join(key)).shuffle(names)
            negatives[key] = names[: self.config.negatives]
        return negatives

    def by_function(self, rows: list[Row], advance: Callable[[], None]) -> list[Outcome]:
        """The outcomes of a CLIP model's scores, batch by batch."""
        reader = self.reader(pa.Table.from_pylist(rows))
        negatives = self.negatives(rows, reader)
        clip = load(self.config.model, self.model_path, self.weights, self.local, device_of_rank(self._rank))
        outcomes = []
        for start in range(0, len(rows), self.config.local.batch_size):
            batch = rows[start : start + self.config.local.batch_size]
            images = CorpusImages(reader, self.config.max_image_side)
            images.load(image_ids(batch, negatives))
            outcomes += pass_rates(clip, batch, negatives, images)
            images.close()
            for _ in batch:
                advance()
        return outcomes


def note_no_verdict(*, asked: bool) -> None:
    """Say that nothing was verified, and why.

    Args:
        asked: whether a model was asked anything.
    """
    why = "no response says yes or no" if asked else "no pair has a hard negative (`negative_ids`) that is there"
    note(f"nothing was verified: {why}")


def image_ids(rows: Iterable[Row], negatives: Mapping[tuple[str, str], list[str]]) -> set[str]:
    """The images that the comparisons of some pairs need."""
    keys = [(row[QUERY_ID], row[TARGET_ID]) for row in rows]
    return {name for key in keys for name in (*key, *negatives[key])}


def _beats(comparison: Comparison, text: str) -> bool | None:
    match = YES_NO.search(without_thinking(text))
    return None if match is None else (match[1].lower() == "yes") == comparison.target_first
