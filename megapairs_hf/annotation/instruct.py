"""Turn a description into instructions: the requests and what their responses are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megapairs_hf.annotation.client.messages import Request
from megapairs_hf.annotation.filters import clean, normal
from megapairs_hf.annotation.language import LANGUAGES
from megapairs_hf.annotation.prompts.few_shot import draw_demonstrations
from megapairs_hf.annotation.prompts.parsing import parse_instruct, reply_schema
from megapairs_hf.annotation.prompts.templates import format_instruct
from megapairs_hf.annotation.tasks import Outcome, TwoTries, captions_of, common_row, sampling, seed_for
from megapairs_hf.core.errors import ReplyRejectedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from megapairs_hf.annotation.client.messages import Response
    from megapairs_hf.annotation.config import InstructConfig
    from megapairs_hf.annotation.prompts.few_shot import Demonstration
    from megapairs_hf.annotation.prompts.templates import Prompt
    from megapairs_hf.annotation.tasks import Row


class Instruct(TwoTries):
    """Step two: a language model reads the description."""

    def __init__(
        self,
        config: InstructConfig,
        prompt: Prompt,
        pool: list[Demonstration],
        texts: Mapping[str, Row],
    ) -> None:
        self.config, self.prompt, self.pool, self.texts = config, prompt, pool, texts
        self.fixed = prompt.fixed
        # what was shown to other pairs counts too: a model that repeats any of the pool was not looking
        self.shown = frozenset(normal(text) for d in pool for text in d.instructions)

    def question(self, row: Row, attempt: int) -> Request:
        """The demonstrations, the description and the prompt."""
        seed = seed_for(self.config.seed, row, attempt)
        messages = format_instruct(
            self.prompt,
            row["description"],
            draw_demonstrations(self.pool, self.config.demonstrations, seed),
            count=self.config.wanted,
            response_format=self.config.response_format,
            words=(self.config.min_words, self.config.max_words),
            captions=captions_of(row, self.texts),
            language=LANGUAGES[self.config.language].name,
        )
        parameters = sampling(self.config, seed)
        if self.config.response_format == "json":
            schema = {"name": "instructions", "schema": reply_schema(self.config.min_instructions)}
            parameters["response_format"] = {"type": "json_schema", "json_schema": schema}
        return Request(messages, self.config.model, parameters)

    def judge(self, row: Row, attempt: int, reply: Response) -> Outcome:
        """The good instructions, if there are enough."""
        if reply.refused:
            return Outcome(None, reply.refused, reply.text)
        try:
            found = parse_instruct(reply.text, reply.finish_reason)
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
            return Outcome(None, "too_few_instructions", reply.text, left_out)
        drawn = draw_demonstrations(self.pool, self.config.demonstrations, seed_for(self.config.seed, row, attempt))
        made = {"instructions": kept, "demonstration_ids": [d.id for d in drawn]}
        return Outcome(common_row(row, self.config, reply) | made, left_out=left_out)
