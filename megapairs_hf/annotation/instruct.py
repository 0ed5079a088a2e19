"""Turn a description into instructions: a language model reads it, with few-shot examples (§3.1, figure 4)."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from megapairs_hf.annotation.client.messages import Request
from megapairs_hf.annotation.config import InstructConfig
from megapairs_hf.annotation.filters import filter_instructions, normalize
from megapairs_hf.annotation.function import KEYS, AnnotationFunction
from megapairs_hf.annotation.language import LANGUAGES
from megapairs_hf.annotation.prompts.few_shot import load_examples, sample_examples
from megapairs_hf.annotation.prompts.parsing import parse_instruct, response_schema
from megapairs_hf.annotation.prompts.templates import format_instruct, instruct_prompt
from megapairs_hf.annotation.row_columns import without
from megapairs_hf.annotation.rule_based.engine import instruct_by_rules
from megapairs_hf.annotation.tasks import OneRetry, Outcome, captions_of, ids_of, response_row, sampling, seed_for
from megapairs_hf.core.errors import ResponseRejectedError
from megapairs_hf.core.schema import INSTRUCTIONS, QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from megapairs_hf.annotation.client.messages import Response
    from megapairs_hf.annotation.prompts.few_shot import FewShotExample
    from megapairs_hf.annotation.prompts.templates import Prompt
    from megapairs_hf.annotation.tasks import Row


class InstructTask(OneRetry):
    """Step two: a language model reads the description."""

    def __init__(
        self,
        config: InstructConfig,
        prompt: Prompt,
        examples: list[FewShotExample],
        texts: Mapping[str, Row],
        weights: str = "",
    ) -> None:
        self.config, self.prompt, self.examples, self.texts, self.weights = config, prompt, examples, texts, weights

    @cached_property
    def example_texts(self) -> frozenset[str]:
        """The instructions of all few-shot examples: a model that repeats any of them did not read the description."""
        return frozenset(normalize(text) for each in self.examples for text in each.instructions)

    def decide(self, row: Row, responses: Mapping[int, Response]) -> Outcome | int:
        """The outcome that these responses allow, or the number of the next attempt; none about nothing."""
        if not row["description"].strip():
            return Outcome(None, "no_description", "the pair has no description")
        return super().decide(row, responses)

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
        return Request(messages, self.config.model, parameters, weights=self.weights)

    def evaluate(self, row: Row, attempt: int, response: Response) -> Outcome:
        """The good instructions, if there are enough."""
        if response.refused:
            return Outcome(None, response.refused, response.text)
        try:
            candidates = parse_instruct(response.text, response.finish_reason)
        except ResponseRejectedError as error:
            if error.reason != "no_list":
                return Outcome(None, error.reason, response.text)
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
        return Outcome(columns | response_row(self.config.model, response), left_out=left_out)


class Instruct(AnnotationFunction):
    """Adds search instructions to pairs with a description.

    Reads `query_id`, `target_id` and `description`. Adds `instructions` (at least `min_instructions`, distinct),
    `demonstration_ids` (the few-shot examples of the prompt), `raw`, `model`, `finish_reason`, `prompt_tokens`,
    `completion_tokens` (those of `Describe` give way to them) and `error`. Settings: those of `InstructConfig`, and
    those of `Endpoint` among them. `images` are needed by the rule-based engine, and by a prompt that names captions.

        pairs = pairs.map(Instruct(urls=["http://gpu-2:8080/v1"], model="…"), batched=True)
    """

    CONFIG = InstructConfig
    VERSION = 2  # of several captions those are taken that fit best
    NEEDS = (*KEYS, "description")
    USES = ("query_row", "target_row")
    BLANKS: ClassVar[dict[str, Any]] = {"description": ""}
    WRITES = "instructions"
    SCHEMA = without(INSTRUCTIONS, KEYS)
    VISION = False
    TAKES = "one description, or "

    def load_prompt(self) -> Prompt | None:
        """The prompt of the settings, and its few-shot examples."""
        self.examples = load_examples(self.config.few_shot_file, self.config.num_few_shot) if self.asks else []
        return instruct_prompt(self.config.prompt) if self.asks else None

    def make_task(self, table: pa.Table) -> InstructTask:
        """The requests about some pairs."""
        texts: dict[str, Row] = {}
        if self.prompt.needs_captions:
            texts = self.reader(table).texts(ids_of(table.select(KEYS).to_pylist()))
        return InstructTask(self.config, self.prompt, self.examples, texts, self.weights)

    def by_function(self, rows: list[Row], advance: Callable[[], None]) -> list[Outcome]:
        """The outcomes of the rule-based engine."""
        return instruct_by_rules(rows, advance, reader=self.reader(pa.Table.from_pylist(rows)), config=self.config)

    def one(self, text: str | None = None, **values: Any) -> dict[str, Any]:
        """The added columns for one description.

        Args:
            text: the description.
            **values: instead of a text, a row with `query_id`, `target_id` and `description`.

        Raises:
            ConfigError: it is neither.
        """
        if text is None:
            return self.one_row(values)
        if values or not isinstance(text, str):
            return self.one_row({}, ", ".join(values) or f"a {type(text).__name__}")
        return self.one_row({QUERY_ID: "", TARGET_ID: "", "description": text})
