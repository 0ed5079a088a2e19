"""The rule-based engine: descriptions and instructions from captions or metadata, without a model.

What surprises: it reads captions and metadata in both steps and the description in neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megapairs_hf.annotation.attributes import check_attributes
from megapairs_hf.annotation.client.messages import Response
from megapairs_hf.annotation.config import RULE_BASED, DescribeConfig, InstructConfig, pair_seed
from megapairs_hf.annotation.filters import filter_instructions
from megapairs_hf.annotation.prompts.templates import format_response
from megapairs_hf.annotation.rule_based.attributes import (
    attribute_edits,
    describe_attributes,
    labels_of,
    noun_of,
    write_from_attributes,
)
from megapairs_hf.annotation.rule_based.captions import CaptionWriter, with_attributes
from megapairs_hf.annotation.rule_based.readers import caption_reader
from megapairs_hf.annotation.tasks import Outcome, Row, captions_of, ids_of, response_row
from megapairs_hf.core.errors import ResponseRejectedError
from megapairs_hf.core.schema import META, QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Callable

    from megapairs_hf.annotation.corpus_reader import CorpusReader


def describe_by_rules(
    rows: list[Row], advance: Callable[[], None], *, reader: CorpusReader, config: DescribeConfig
) -> list[Outcome]:
    """Some pairs by the rule-based engine.

    Raises:
        ConfigError: the images have no captions, or lack an attribute.
    """

    def write(pair: _Pair) -> Outcome:
        description = pair.description()
        return Outcome({"description": description, "word_num": 0} | _columns(description))

    return _by_rules(rows, advance, reader, config, write)


def instruct_by_rules(
    rows: list[Row], advance: Callable[[], None], *, reader: CorpusReader, config: InstructConfig
) -> list[Outcome]:
    """Some pairs by the rule-based engine.

    Raises:
        ConfigError: the images have no captions, or lack an attribute.
    """

    def write(pair: _Pair) -> Outcome:
        seed = pair_seed(config.seed, pair.row[QUERY_ID], pair.row[TARGET_ID])
        written = pair.instructions(config.num_instructions, seed)
        instructions, left_out = filter_instructions(written, min_words=config.min_words, max_words=config.max_words)
        raw = format_response(written, "list")
        if len(instructions) < config.min_instructions:
            return Outcome(None, "too_few_instructions", raw, left_out)
        columns = {"instructions": instructions, "demonstration_ids": []}
        return Outcome(columns | _columns(raw), left_out=left_out)

    return _by_rules(rows, advance, reader, config, write)


class _Pair:
    """A pair with what its two images are said to show, and what differs."""

    def __init__(self, row: Row, texts: dict[str, Row], labels: dict[str, str], writer: CaptionWriter | None) -> None:
        self.row, self.writer = row, writer
        # the query's and the target's caption: the one place where they are chosen
        self.captions = captions_of(row, texts)
        query, target = texts[row[QUERY_ID]][META], texts[row[TARGET_ID]][META]
        self.edits, self.noun = attribute_edits(query, target, labels), noun_of(query, target, labels)

    def description(self) -> str:
        """What both share and how they differ."""
        if self.writer is None:
            return describe_attributes(self.edits, self.noun)
        try:
            text = self.writer.description(*self.captions)
        except ResponseRejectedError:
            if not self.edits:
                raise
            return describe_attributes(self.edits, self.noun)
        return f"{text} {describe_attributes(self.edits, '')}" if self.edits else text

    def instructions(self, count: int, seed: int) -> list[str]:
        """At most `count` instructions."""
        if self.writer is None:
            return write_from_attributes(self.edits, self.noun, count=count, seed=seed)
        try:
            texts = self.writer.instructions(*self.captions, count=count, seed=seed)
        except ResponseRejectedError:
            if not self.edits:
                raise
            return write_from_attributes(self.edits, self.noun, count=count, seed=seed)
        return with_attributes(texts, self.edits)


def _by_rules(
    rows: list[Row],
    advance: Callable[[], None],
    reader: CorpusReader,
    config: DescribeConfig | InstructConfig,
    write: Callable[[_Pair], Outcome],
) -> list[Outcome]:
    """An outcome for every pair, in order."""
    labels, by_captions = labels_of(config.attributes), config.edits == "captions"
    if by_captions:
        reader.require_captions()
    check_attributes(reader.source, list(labels))
    texts = reader.texts(ids_of(rows), list(labels), captions=by_captions)
    writer = None
    if by_captions:
        known = [row for row in rows if row[QUERY_ID] in texts and row[TARGET_ID] in texts]
        chosen = dict.fromkeys(text for row in known for text in captions_of(row, texts))
        writer = CaptionWriter(caption_reader(config.parser).read(chosen))
    outcomes = []
    for row in rows:
        outcomes.append(_outcome(row, texts, labels, writer, write))
        advance()
    return outcomes


def _outcome(
    row: Row,
    texts: dict[str, Row],
    labels: dict[str, str],
    writer: CaptionWriter | None,
    write: Callable[[_Pair], Outcome],
) -> Outcome:
    absent = next((row[name] for name in (QUERY_ID, TARGET_ID) if row[name] not in texts), None)
    if absent is not None:
        return Outcome(None, "missing_image", f"{absent} is not in the corpus")
    try:
        return write(_Pair(row, texts, labels, writer))
    except ResponseRejectedError as error:
        return Outcome(None, error.reason, error.detail)


def _columns(raw: str) -> Row:
    return response_row(RULE_BASED, Response(raw))
