"""The rule-based engine: descriptions and instructions from the two captions, without a model.

What surprises: it reads the captions in both steps and the description in neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megapairs_hf.annotation.config import RULE_BASED, DescribeConfig, InstructConfig, pair_seed
from megapairs_hf.annotation.corpus_reader import read_texts
from megapairs_hf.annotation.filters import filter_instructions
from megapairs_hf.annotation.prompts.templates import format_response
from megapairs_hf.annotation.rule_based import templates
from megapairs_hf.annotation.tasks import Outcome, Row, captions_of, ids_of
from megapairs_hf.core.errors import ResponseRejectedError
from megapairs_hf.core.schema import META, QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from megapairs_hf.annotation.rule_based.caption_diff import Edit
    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.core.progress import Progress


def describe_by_rules(
    rows: list[Row], bar: Progress, _: int, *, corpus: Artifact, config: DescribeConfig
) -> list[Outcome]:
    """One shard by the rule-based engine."""
    texts = read_texts(corpus, ids_of(rows), config.attributes)

    def write(row: Row, edits: list[Edit]) -> Outcome:
        description = templates.write_description(*captions_of(row, texts), edits)
        return Outcome(_row(row, description) | {"description": description})

    return _by_rules(rows, bar, texts, config.attributes, write)


def instruct_by_rules(
    rows: list[Row], bar: Progress, _: int, *, corpus: Artifact, config: InstructConfig
) -> list[Outcome]:
    """One shard by the rule-based engine."""
    texts = read_texts(corpus, ids_of(rows), config.attributes)

    def write(row: Row, edits: list[Edit]) -> Outcome:
        seed = pair_seed(config.seed, row[QUERY_ID], row[TARGET_ID])
        query, target = captions_of(row, texts)
        written = templates.write_instructions(query, target, edits, count=config.num_instructions, seed=seed)
        instructions, left_out = filter_instructions(written, min_words=config.min_words, max_words=config.max_words)
        raw = format_response(written, "list")
        if len(instructions) < config.min_instructions:
            return Outcome(None, "too_few_instructions", raw, left_out)
        return Outcome(_row(row, raw) | {"instructions": instructions, "demonstration_ids": []}, left_out=left_out)

    return _by_rules(rows, bar, texts, config.attributes, write)


def _by_rules(
    rows: list[Row],
    bar: Progress,
    texts: Mapping[str, Row],
    attributes: Sequence[str],
    write: Callable[[Row, list[Edit]], Outcome],
) -> list[Outcome]:
    """An outcome for every pair, in order."""
    outcomes = []
    for row in rows:
        absent = next((row[name] for name in (QUERY_ID, TARGET_ID) if row[name] not in texts), None)
        if absent is not None:
            outcomes.append(Outcome(None, "missing_image", f"{absent} is not in the corpus"))
        else:
            edits = templates.attribute_edits(texts[row[QUERY_ID]][META], texts[row[TARGET_ID]][META], attributes)
            try:
                outcomes.append(write(row, edits))
            except ResponseRejectedError as error:
                outcomes.append(Outcome(None, error.reason, error.detail))
        bar.advance()
    return outcomes


def _row(row: Row, raw: str) -> Row:
    return {
        QUERY_ID: row[QUERY_ID],
        TARGET_ID: row[TARGET_ID],
        "raw": raw,
        "model": RULE_BASED,
        "finish_reason": "stop",
    }
