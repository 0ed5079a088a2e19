"""Describe what two images share and how they differ: the requests and what their responses are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megapairs_hf.annotation.client.messages import Request
from megapairs_hf.annotation.prompts.few_shot import sample_word_num
from megapairs_hf.annotation.prompts.parsing import parse_describe
from megapairs_hf.annotation.prompts.templates import format_describe
from megapairs_hf.annotation.tasks import OneRetry, Outcome, captions_of, common_row, ids_of, sampling, seed_for
from megapairs_hf.core.errors import ResponseRejectedError
from megapairs_hf.core.schema import QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from megapairs_hf.annotation.client.messages import Response
    from megapairs_hf.annotation.config import DescribeConfig
    from megapairs_hf.annotation.corpus_reader import CorpusImages
    from megapairs_hf.annotation.prompts.templates import Prompt
    from megapairs_hf.annotation.tasks import Row


class Describe(OneRetry):
    """Step one: a vision-language model sees both images."""

    def __init__(self, config: DescribeConfig, prompt: Prompt, images: CorpusImages, texts: Mapping[str, Row]) -> None:
        self.config, self.prompt, self.images, self.texts = config, prompt, images, texts

    def prepare(self, rows: Iterable[Row]) -> None:
        """Load and shrink the images."""
        self.images.load(ids_of(rows))

    def close(self) -> None:
        """Remove the shrunken images."""
        self.images.close()

    def request(self, row: Row, attempt: int) -> Request:
        """The two images and the prompt."""
        seed = seed_for(self.config.seed, row, attempt)
        messages = format_describe(
            self.prompt,
            self.images.data_url(row[QUERY_ID]),
            self.images.data_url(row[TARGET_ID]),
            sample_word_num(self.config.word_num, seed),
            captions_of(row, self.texts),
        )
        return Request(messages, self.config.model, sampling(self.config, seed))

    def evaluate(self, row: Row, attempt: int, response: Response) -> Outcome:
        """A description, unless the response is empty or was cut off before its first full stop."""
        if response.refused:
            return Outcome(None, response.refused, response.text)
        try:
            description = parse_describe(response.text, response.finish_reason)
        except ResponseRejectedError as error:
            return Outcome(None, error.reason, response.text)
        word_num = sample_word_num(self.config.word_num, seed_for(self.config.seed, row, attempt))
        return Outcome(common_row(row, self.config, response) | {"description": description, "word_num": word_num})
