"""The stand-in engine: descriptions and instructions from the two captions, without a model.

What surprises: it reads the captions in both steps and the description in neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megapairs_hf.annotate import phrases, prompts
from megapairs_hf.annotate.clean import clean
from megapairs_hf.annotate.config import STAND_IN, DescribeConfig, InstructConfig, pair_seed
from megapairs_hf.annotate.jobs import Row, Verdict, captions_of, ids_of
from megapairs_hf.annotate.pictures import read_texts
from megapairs_hf.errors import ReplyRejectedError
from megapairs_hf.schema import META, QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from megapairs_hf.annotate.captions import Edit
    from megapairs_hf.artifact import Artifact
    from megapairs_hf.launch import Progress


def describe_by_captions(
    rows: list[Row], bar: Progress, _: int, *, corpus: Artifact, config: DescribeConfig
) -> list[Verdict]:
    """One shard by the stand-in engine."""
    texts = read_texts(corpus, ids_of(rows), config.attributes)

    def write(row: Row, edits: list[Edit]) -> Verdict:
        description = phrases.write_description(*captions_of(row, texts), edits)
        return Verdict(_stand_in(row, description) | {"description": description})

    return _by_captions(rows, bar, texts, config.attributes, write)


def instruct_by_captions(
    rows: list[Row], bar: Progress, _: int, *, corpus: Artifact, config: InstructConfig
) -> list[Verdict]:
    """One shard by the stand-in engine."""
    texts = read_texts(corpus, ids_of(rows), config.attributes)

    def write(row: Row, edits: list[Edit]) -> Verdict:
        seed = pair_seed(config.seed, row[QUERY_ID], row[TARGET_ID])
        query, target = captions_of(row, texts)
        written = phrases.write_instructions(query, target, edits, wanted=config.wanted, seed=seed)
        kept, left_out = clean(written, min_words=config.min_words, max_words=config.max_words)
        raw = prompts.format_reply(written, "list")
        if len(kept) < config.min_instructions:
            return Verdict(None, "too_few_instructions", raw, left_out)
        return Verdict(_stand_in(row, raw) | {"instructions": kept, "demonstration_ids": []}, left_out=left_out)

    return _by_captions(rows, bar, texts, config.attributes, write)


def _by_captions(
    rows: list[Row],
    bar: Progress,
    texts: Mapping[str, Row],
    attributes: Sequence[str],
    write: Callable[[Row, list[Edit]], Verdict],
) -> list[Verdict]:
    """A verdict on every pair, in order."""
    verdicts = []
    for row in rows:
        absent = next((row[name] for name in (QUERY_ID, TARGET_ID) if row[name] not in texts), None)
        if absent is not None:
            verdicts.append(Verdict(None, "missing_image", f"{absent} is not in the corpus"))
        else:
            edits = phrases.attribute_edits(texts[row[QUERY_ID]][META], texts[row[TARGET_ID]][META], attributes)
            try:
                verdicts.append(write(row, edits))
            except ReplyRejectedError as error:
                verdicts.append(Verdict(None, error.reason, error.detail))
        bar.advance()
    return verdicts


def _stand_in(row: Row, raw: str) -> Row:
    return {
        QUERY_ID: row[QUERY_ID],
        TARGET_ID: row[TARGET_ID],
        "raw": raw,
        "model": STAND_IN,
        "finish_reason": "stop",
    }
