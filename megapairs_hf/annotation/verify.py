"""Does an instruction lead to its target? Optional, and ours: the target is compared with the pair's hard negatives.

`engine: openai` or `transformers` has a vision-language model say yes or no, whether (query, instruction) fits the
target better than a hard negative (`judgment: pairwise`), or score each candidate by itself (`pointwise`);
`engine: clip` compares the scores of a CLIP model. The share of hard negatives that the target beats is the pass rate,
in the column `verified`; the threshold on it is `min_pass_rate` of the build. What surprises: a pair is rejected here
only where its own images are missing or the server refuses it.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from megapairs_hf.annotation.config import VerifyConfig
from megapairs_hf.annotation.corpus_reader import CorpusImages
from megapairs_hf.annotation.engines.clip_score import load, pass_rates
from megapairs_hf.annotation.function import AnnotationFunction
from megapairs_hf.annotation.prompts.templates import Prompt, load_prompt
from megapairs_hf.annotation.verify_tasks import COMPARED_SLOTS, SCORED_SLOTS, ScoreTask, VerifyTask, image_ids
from megapairs_hf.core.distributed import device_of_rank
from megapairs_hf.core.progress import note
from megapairs_hf.core.schema import (
    CANDIDATE_IDS,
    CANDIDATE_SCORES,
    NEGATIVE_IDS,
    QUERY_ID,
    TARGET_ID,
    VERIFIED,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from megapairs_hf.annotation.corpus_reader import CorpusReader
    from megapairs_hf.annotation.tasks import Outcome, Row


class Verify(AnnotationFunction):
    """Adds to pairs with instructions the share of hard negatives that the target beats.

    Reads `query_id`, `target_id`, `instructions` and `negative_ids`. Adds `verified`, a pass rate for each instruction
    (NaN where nothing was compared, or no response says), `candidate_ids`, the target and the hard negatives that have
    scores, `candidate_scores`, a score of each for each instruction (both empty for `pairwise`), and `error`.
    Settings: those of `VerifyConfig`, and those of `Endpoint` among them.

        pairs = pairs.map(Verify(images, engine="clip", model="…"), batched=True)
    """

    CONFIG = VerifyConfig
    NEEDS = (QUERY_ID, TARGET_ID, "instructions", NEGATIVE_IDS)
    USES = ("query_row", "target_row")
    BLANKS: ClassVar[dict[str, Any]] = {"instructions": [], NEGATIVE_IDS: []}
    SCHEMA = pa.schema([VERIFIED.field(name) for name in ("verified", CANDIDATE_IDS, CANDIDATE_SCORES)])

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
        if self.config.judgment == "pointwise":
            slots = frozenset({*SCORED_SLOTS, "instruction", "rating"})
            return load_prompt(self.config.prompt, "verify_candidate.jinja", slots, (*SCORED_SLOTS, "rating"))
        slots = frozenset({*COMPARED_SLOTS, "instruction"})
        return load_prompt(self.config.prompt, "verify.jinja", slots, COMPARED_SLOTS)

    def make_task(self, table: pa.Table) -> VerifyTask:
        """The requests about some pairs."""
        reader, rows = self.reader(table), table.select([QUERY_ID, TARGET_ID, NEGATIVE_IDS]).to_pylist()
        negatives = self.negatives(rows, reader)
        images = CorpusImages(reader, self.config.max_image_side)
        images.load_digests(image_ids(rows, negatives))
        task = ScoreTask if self.config.judgment == "pointwise" else VerifyTask
        return task(self.config, self.prompt, images, negatives, self.weights)

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
