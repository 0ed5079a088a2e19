"""Turn a description into instructions: the requests and what their responses are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megapairs_hf.annotation.client.messages import Request
from megapairs_hf.annotation.filters import filter_instructions, normalize
from megapairs_hf.annotation.language import LANGUAGES
from megapairs_hf.annotation.prompts.few_shot import sample_examples
from megapairs_hf.annotation.prompts.parsing import parse_instruct, response_schema
from megapairs_hf.annotation.prompts.templates import format_instruct
from megapairs_hf.annotation.tasks import OneRetry, Outcome, captions_of, common_row, sampling, seed_for
from megapairs_hf.core.errors import ResponseRejectedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from megapairs_hf.annotation.client.messages import Response
    from megapairs_hf.annotation.config import InstructConfig
    from megapairs_hf.annotation.prompts.few_shot import FewShotExample
    from megapairs_hf.annotation.prompts.templates import Prompt
    from megapairs_hf.annotation.tasks import Row


class Instruct(OneRetry):
    """Step two: a language model reads the description."""

    def __init__(
        self, config: InstructConfig, prompt: Prompt, examples: list[FewShotExample], texts: Mapping[str, Row]
    ) -> None:
        self.config, self.prompt, self.examples, self.texts = config, prompt, examples, texts
        # the examples of other pairs count too: a model that repeats any of them did not read the description
        self.example_texts = frozenset(normalize(text) for each in examples for text in each.instructions)

    def request(self, row: Row, attempt: int) -> Request:
        """The few-shot examples, the description and the prompt."""
        seed = seed_for(self.config.seed, row, attempt)
        messages = format_instruct(
            self.prompt,
            row["description"],
            sample_examples(self.examples, self.config.num_few_shot, seed),
            count=self.config.num_instructions,
            response_format=self.config.response_format,
            words=(self.config.min_words, self.config.max_words),
            captions=captions_of(row, self.texts),
            language=LANGUAGES[self.config.language].name,
        )
        parameters = sampling(self.config, seed)
        if self.config.response_format == "json":
            schema = {"name": "instructions", "schema": response_schema(self.config.min_instructions)}
            parameters["response_format"] = {"type": "json_schema", "json_schema": schema}
        return Request(messages, self.config.model, parameters)

    def evaluate(self, row: Row, attempt: int, response: Response) -> Outcome:
        """The good instructions, if there are enough."""
        if response.refused:
            return Outcome(None, response.refused, response.text)
        try:
            candidates = parse_instruct(response.text, response.finish_reason)
        except ResponseRejectedError:
            candidates = []
        instructions, left_out = filter_instructions(
            candidates,
            min_words=self.config.min_words,
            max_words=self.config.max_words,
            examples=self.example_texts,
            prompt=self.prompt.fixed,
            language=self.config.language,
        )
        if len(instructions) < self.config.min_instructions:
            return Outcome(None, "too_few_instructions", response.text, left_out)
        seed = seed_for(self.config.seed, row, attempt)
        examples = sample_examples(self.examples, self.config.num_few_shot, seed)
        columns = {"instructions": instructions, "demonstration_ids": [each.id for each in examples]}
        return Outcome(common_row(row, self.config, response) | columns, left_out=left_out)
