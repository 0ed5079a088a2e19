"""What is asked about a pair and what is made of the reply, for both steps; pure but for the pictures.

A job turns a pair and the number of the attempt into a question, and a reply into a verdict. What surprises: both
depend on nothing but the pair, the settings and the reply, so a run that is continued comes to the same verdicts from
the journal alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from megapairs_hf.annotate import prompts
from megapairs_hf.annotate.clean import clean, normal
from megapairs_hf.annotate.config import DescribeConfig, InstructConfig, pair_seed
from megapairs_hf.annotate.language import LANGUAGES
from megapairs_hf.annotate.transport import Question
from megapairs_hf.errors import ReplyRejectedError
from megapairs_hf.schema import CAPTION, QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from megapairs_hf.annotate.journal import Reply
    from megapairs_hf.annotate.pictures import Pictures

Row = dict[str, Any]
ATTEMPTS = 2


@dataclass(frozen=True)
class Verdict:
    """What became of a pair.

    Attributes:
        row: the artifact's row; None where the pair is left out.
        reason: why it is left out, a short word.
        detail: the raw reply, or what exactly was found.
        left_out: instructions that were rejected, by reason.
    """

    row: Row | None
    reason: str = ""
    detail: str = ""
    left_out: Counter[str] = field(default_factory=Counter)


class Job(Protocol):
    """One step of the annotation."""

    def question(self, row: Row, attempt: int) -> Question:
        """What to ask; raises `ImageRejectedError` where a picture is missing."""

    def settle(self, row: Row, replies: Mapping[int, Reply]) -> Verdict | int:
        """The verdict that these replies (by attempt) allow, or the number of the next question."""

    def prepare(self, rows: Iterable[Row]) -> None:
        """Get ready what the questions about these pairs need."""

    def close(self) -> None:
        """Let go of it."""


class TwoTries:
    """A job that asks once more, with another seed, where the first reply is no use."""

    def judge(self, row: Row, attempt: int, reply: Reply) -> Verdict:
        """What one reply is worth."""
        raise AssertionError(f"{type(self).__name__} judges nothing")

    def prepare(self, rows: Iterable[Row]) -> None:
        """Nothing to get ready."""

    def close(self) -> None:
        """Nothing to let go of."""

    def settle(self, row: Row, replies: Mapping[int, Reply]) -> Verdict | int:
        """The verdict that these replies allow, or the number of the next question."""
        verdict = None
        for attempt in range(ATTEMPTS):
            reply = replies.get(attempt)
            if reply is None:
                return attempt
            said = self.judge(row, attempt, reply)
            # what an earlier attempt left out is counted as well
            left_out = said.left_out + verdict.left_out if verdict else said.left_out
            verdict = Verdict(said.row, said.reason, said.detail, left_out)
            if verdict.row is not None or reply.refused:
                break
        assert verdict is not None
        return verdict


def ids_of(rows: Iterable[Row]) -> set[str]:
    """The images of some pairs."""
    return {row[name] for row in rows for name in (QUERY_ID, TARGET_ID)}


def captions_of(row: Row, texts: Mapping[str, Row]) -> tuple[str, str]:
    """The captions of the query and the target, empty where there is none."""
    return texts.get(row[QUERY_ID], {}).get(CAPTION, ""), texts.get(row[TARGET_ID], {}).get(CAPTION, "")


def seed_for(seed: int, row: Row, attempt: int) -> int:
    """The seed of one question."""
    return pair_seed(seed, row[QUERY_ID], row[TARGET_ID], attempt)


def common_row(row: Row, config: DescribeConfig | InstructConfig, reply: Reply) -> Row:
    """The columns that both artifacts have."""
    return {
        QUERY_ID: row[QUERY_ID],
        TARGET_ID: row[TARGET_ID],
        "raw": reply.text,
        "model": config.model,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
    }


def sampling(config: DescribeConfig | InstructConfig, seed: int) -> dict[str, Any]:
    """How the model is to sample."""
    return {
        "temperature": config.temperature,
        # TGI refuses 1, which means the same as nothing
        "top_p": config.top_p if config.top_p < 1 else None,
        "max_tokens": config.max_tokens,
        "seed": seed,
    }


class DescribeJob(TwoTries):
    """Step one: a vision-language model sees both images."""

    def __init__(
        self, config: DescribeConfig, prompt: prompts.Prompt, pictures: Pictures, texts: Mapping[str, Row]
    ) -> None:
        self.config, self.prompt, self.pictures, self.texts = config, prompt, pictures, texts

    def prepare(self, rows: Iterable[Row]) -> None:
        """Read and shrink the pictures."""
        self.pictures.gather(ids_of(rows))

    def close(self) -> None:
        """Remove the shrunken pictures."""
        self.pictures.close()

    def question(self, row: Row, attempt: int) -> Question:
        """The two pictures and the prompt."""
        seed = seed_for(self.config.seed, row, attempt)
        messages = prompts.format_describe(
            self.prompt,
            self.pictures.data_url(row[QUERY_ID]),
            self.pictures.data_url(row[TARGET_ID]),
            prompts.draw_word_num(self.config.word_num, seed),
            captions_of(row, self.texts),
        )
        return Question(messages, self.config.model, sampling(self.config, seed))

    def judge(self, row: Row, attempt: int, reply: Reply) -> Verdict:
        """A description, unless the reply is empty or was cut off before its first full stop."""
        if reply.refused:
            return Verdict(None, reply.refused, reply.text)
        try:
            description = prompts.parse_describe(reply.text, reply.finish_reason)
        except ReplyRejectedError as error:
            return Verdict(None, error.reason, reply.text)
        word_num = prompts.draw_word_num(self.config.word_num, seed_for(self.config.seed, row, attempt))
        return Verdict(common_row(row, self.config, reply) | {"description": description, "word_num": word_num})


class InstructJob(TwoTries):
    """Step two: a language model reads the description."""

    def __init__(
        self,
        config: InstructConfig,
        prompt: prompts.Prompt,
        pool: list[prompts.Demonstration],
        texts: Mapping[str, Row],
        reply_format: str = "list",
    ) -> None:
        self.config, self.prompt, self.pool, self.texts = config, prompt, pool, texts
        self.reply_format = reply_format
        self.fixed = prompt.fixed
        # what was shown to other pairs counts too: a model that repeats any of the pool was not looking
        self.shown = frozenset(normal(text) for d in pool for text in d.instructions)

    def question(self, row: Row, attempt: int) -> Question:
        """The demonstrations, the description and the prompt."""
        seed = seed_for(self.config.seed, row, attempt)
        messages = prompts.format_instruct(
            self.prompt,
            row["description"],
            prompts.draw_demonstrations(self.pool, self.config.demonstrations, seed),
            count=self.config.wanted,
            reply_format=self.reply_format,
            words=(self.config.min_words, self.config.max_words),
            captions=captions_of(row, self.texts),
            language=LANGUAGES[self.config.language].name,
        )
        parameters = sampling(self.config, seed)
        if self.reply_format == "json":
            schema = {"name": "instructions", "schema": prompts.reply_schema(self.config.min_instructions)}
            parameters["response_format"] = {"type": "json_schema", "json_schema": schema}
        return Question(messages, self.config.model, parameters)

    def judge(self, row: Row, attempt: int, reply: Reply) -> Verdict:
        """The good instructions, if there are enough."""
        if reply.refused:
            return Verdict(None, reply.refused, reply.text)
        try:
            found = prompts.parse_instruct(reply.text, reply.finish_reason)
        except ReplyRejectedError:
            found = []
        kept, left_out = clean(
            found,
            min_words=self.config.min_words,
            max_words=self.config.max_words,
            demonstrations=self.shown,
            prompt=self.fixed,
            language=self.config.language,
        )
        if len(kept) < self.config.min_instructions:
            return Verdict(None, "too_few_instructions", reply.text, left_out)
        drawn = prompts.draw_demonstrations(
            self.pool, self.config.demonstrations, seed_for(self.config.seed, row, attempt)
        )
        made = {"instructions": kept, "demonstration_ids": [d.id for d in drawn]}
        return Verdict(common_row(row, self.config, reply) | made, left_out=left_out)
