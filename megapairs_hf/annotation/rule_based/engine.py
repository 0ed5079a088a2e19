"""The rule-based engine: descriptions and instructions from the two captions, without a model.

What surprises: it reads the captions in both steps and the description in neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megapairs_hf.annotation.client.messages import Response
from megapairs_hf.annotation.config import RULE_BASED, DescribeConfig, InstructConfig, pair_seed
from megapairs_hf.annotation.corpus_reader import check_attributes
from megapairs_hf.annotation.filters import filter_instructions
from megapairs_hf.annotation.prompts.templates import format_response
from megapairs_hf.annotation.rule_based import templates
from megapairs_hf.annotation.tasks import Outcome, Row, captions_of, ids_of, response_row
from megapairs_hf.core.errors import ResponseRejectedError
from megapairs_hf.core.schema import META, QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from megapairs_hf.annotation.corpus_reader import CorpusReader
    from megapairs_hf.annotation.rule_based.caption_diff import Edit


def describe_by_rules(
    rows: list[Row], advance: Callable[[], None], *, reader: CorpusReader, config: DescribeConfig
) -> list[Outcome]:
    """Some pairs by the rule-based engine.

    Raises:
        ConfigError: the images have no captions.
    """
    texts = _texts(rows, reader, config)

    def write(row: Row, edits: list[Edit]) -> Outcome:
        description = templates.write_description(*captions_of(row, texts), edits)
        return Outcome({"description": description, "word_num": 0} | _columns(description))

    return _by_rules(rows, advance, texts, config.attributes, write)


def instruct_by_rules(
    rows: list[Row], advance: Callable[[], None], *, reader: CorpusReader, config: InstructConfig
) -> list[Outcome]:
    """Some pairs by the rule-based engine.

    Raises:
        ConfigError: the images have no captions.
    """
    texts = _texts(rows, reader, config)

    def write(row: Row, edits: list[Edit]) -> Outcome:
        seed = pair_seed(config.seed, row[QUERY_ID], row[TARGET_ID])
        query, target = captions_of(row, texts)
        written = templates.write_instructions(query, target, edits, count=config.num_instructions, seed=seed)
        instructions, left_out = filter_instructions(written, min_words=config.min_words, max_words=config.max_words)
        raw = format_response(written, "list")
        if len(instructions) < config.min_instructions:
            return Outcome(None, "too_few_instructions", raw, left_out)
        columns = {"instructions": instructions, "demonstration_ids": []}
        return Outcome(columns | _columns(raw), left_out=left_out)

    return _by_rules(rows, advance, texts, config.attributes, write)


def _texts(rows: list[Row], reader: CorpusReader, config: DescribeConfig | InstructConfig) -> dict[str, Row]:
    reader.require_captions()
    check_attributes(reader.source, config.attributes)
    return reader.texts(ids_of(rows), config.attributes)


def _by_rules(
    rows: list[Row],
    advance: Callable[[], None],
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
        advance()
    return outcomes


def _columns(raw: str) -> Row:
    return response_row(RULE_BASED, Response(raw))
