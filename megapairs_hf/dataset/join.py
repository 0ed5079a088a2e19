"""A pair and its instructions become a triplet: the row function `JoinTriplets`, which the build stage applies too.

What surprises: a data set of pairs without a column `negative_ids` was never mined for negatives, so the query image
is the only one and `min_negatives` asks for nothing; where the column is there, a pair that has too few is an error.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.config import require
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.row_function import ERROR, RowFunction, Rows, format_error
from megapairs_hf.core.schema import (
    CANDIDATE_IDS,
    CANDIDATE_SCORES,
    NEGATIVE_IDS,
    QUERY_ID,
    RELATION,
    SCORES,
    TARGET_ID,
    TRIPLETS,
)
from megapairs_hf.dataset.layout import COMPOSED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datasets import Features

INSTRUCTIONS, VERIFIED = "instructions", "verified"
REQUIRED = (QUERY_ID, TARGET_ID, INSTRUCTIONS)
OPTIONAL = (NEGATIVE_IDS, RELATION, SCORES, VERIFIED, CANDIDATE_IDS, CANDIDATE_SCORES)


class JoinTriplets(RowFunction):
    """Adds the columns of a triplet to a pair that has instructions.

    It reads `query_id`, `target_id` and `instructions` (a list of texts, or one text), and where they are there
    `negative_ids`, `relation`, `scores`, `verified`, `candidate_ids` and `candidate_scores`. It adds `q_img`,
    `q_text`, `t_img`, `hns` (the query image first), `relation`, `scores`, `task`, `language`, `verified`,
    `candidate_scores` (of each text those of the target and of `hns`, NaN where there is none) and `error`.

    Args:
        min_negatives: fewest hard negatives, the query image counted; pairs without a column `negative_ids` have the
            query image alone and are taken as they are.
        min_pass_rate: instructions whose pass rate in `verified` is lower are left out, those without a verdict stay;
            0 keeps all and needs no verdict.
        language: of the instructions, a BCP 47 tag.

    Raises:
        ConfigError: a setting is out of its range.
    """

    def __init__(self, *, min_negatives: int = 2, min_pass_rate: float = 0.0, language: str = "en") -> None:
        require(isinstance(language, str) and bool(language), "language", language, 'a tag such as "en"')
        counts, rates = isinstance(min_negatives, int), isinstance(min_pass_rate, (int, float))
        require(counts and min_negatives >= 1, "min_negatives", min_negatives, "at least 1 (the query image)")
        require(rates and 0 <= min_pass_rate <= 1, "min_pass_rate", min_pass_rate, "a share from 0 to 1")
        self.min_negatives, self.min_pass_rate, self.language = min_negatives, min_pass_rate, language

    @property
    def features(self) -> Features:
        """The columns of a triplet, and `error`."""
        from datasets import Features, Value

        return Features({**Features.from_arrow_schema(TRIPLETS), ERROR: Value("string")})

    def compute(self, rows: Rows, rank: int | None) -> dict[str, Any]:
        """The triplets of some pairs.

        Raises:
            ConfigError: a needed column is absent: ids, instructions, or `verified` where there is a threshold.
        """
        if self.min_pass_rate > 0 and VERIFIED not in rows:
            raise ConfigError(NO_VERDICTS.format(self.min_pass_rate))
        names = [*REQUIRED, *(name for name in OPTIONAL if name in rows)]
        joined = [self.join(row) for row in rows.rows(names)]
        return {name: [row[name] for row in joined] for name in self.features}

    def join(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The triplet of one pair.

        Args:
            row: the columns that are read; `negative_ids` absent or None where no negatives were mined.

        Returns:
            The added columns; of a pair that makes no triplet blanks and the `error`.
        """
        query, target = _text(row[QUERY_ID]), _text(row[TARGET_ID])
        accepted, rates, error = self._accepted(row)
        texts = [row[INSTRUCTIONS]] if isinstance(row[INSTRUCTIONS], str) else [row[INSTRUCTIONS][i] for i in accepted]
        mined = row.get(NEGATIVE_IDS)
        negatives = [name for name in dict.fromkeys(map(_text, mined or ())) if name not in {query, target}]
        if not query or not target:
            error = format_error("no_image_id", "`query_id` or `target_id` is empty")
        elif not error and query == target:
            error = format_error("same_image", "the pair's two images are one")
        elif not error and mined is not None and len(negatives) + 1 < self.min_negatives:
            error = format_error("too_few_negatives", f"{len(negatives) + 1}, the query image counted")
        if error:
            return {**BLANK, ERROR: error}
        return {
            "q_img": query,
            "q_text": texts,
            "t_img": target,
            "hns": [query, *negatives],
            RELATION: list(row.get(RELATION) or ()),
            SCORES: list(row.get(SCORES) or ()),
            "task": COMPOSED,
            "language": self.language,
            VERIFIED: rates,
            CANDIDATE_SCORES: scores_of(row, accepted, [target, query, *negatives]),
            ERROR: "",
        }

    def _accepted(self, row: Mapping[str, Any]) -> tuple[list[int], list[float], str]:
        """Which instructions are good enough, their pass rates (none without verdicts), or what is wrong."""
        value = row[INSTRUCTIONS] or []
        texts: list[str] = [value] if isinstance(value, str) else list(value)
        verdicts: Sequence[float | None] = row.get(VERIFIED) or [None] * len(texts)
        if len(verdicts) != len(texts):
            return [], [], format_error("other_verdicts", f"{len(verdicts)} pass rates of {len(texts)} instructions")
        rates = [math.nan if rate is None else float(rate) for rate in verdicts]
        some = [i for i, text in enumerate(texts) if text and text.strip()]
        good = [i for i in some if math.isnan(rates[i]) or rates[i] >= self.min_pass_rate]
        if not good:
            detail = f"none passes at {self.min_pass_rate:g}" if some else "the pair has none"
            return [], [], format_error("no_instruction", detail)
        return good, [rates[i] for i in good] if row.get(VERIFIED) else [], ""


def scores_of(row: Mapping[str, Any], texts: Sequence[int], names: Sequence[str]) -> list[list[float]]:
    """What `verify` says of some candidates for some instructions; nothing where it has no scores.

    Args:
        row: with `candidate_ids` and `candidate_scores`, or without.
        texts: numbers of the instructions.
        names: the candidates.
    """
    scores = row.get(CANDIDATE_SCORES)
    if scores is None or not len(scores):
        return []
    ids = [_text(name) for name in row[CANDIDATE_IDS]]
    by_text = [dict(zip(ids, map(float, scores[i]), strict=False)) for i in texts]
    return [[known.get(name, math.nan) for name in names] for known in by_text]


def _text(value: Any) -> str:
    """An id as text, as it is in an artifact."""
    return "" if value is None else str(value)


NO_VERDICTS = "`min_pass_rate` is {:g}, but the instructions have no verdicts; run `megapairs verify`, or map `Verify`"
BLANK: dict[str, Any] = {
    "q_img": "",
    "q_text": [],
    "t_img": "",
    "hns": [],
    RELATION: [],
    SCORES: [],
    "task": "",
    "language": "",
    VERIFIED: [],
    CANDIDATE_SCORES: [],
}
