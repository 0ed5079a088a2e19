"""Describe what two images share and how they differ: a vision-language model sees both (MegaPairs §3.1, figure 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.annotation.client.messages import Request
from megapairs_hf.annotation.config import DescribeConfig
from megapairs_hf.annotation.corpus_reader import CorpusImages, MemoryRows
from megapairs_hf.annotation.function import KEYS, AnnotationFunction
from megapairs_hf.annotation.prompts.few_shot import sample_word_num
from megapairs_hf.annotation.prompts.parsing import parse_describe
from megapairs_hf.annotation.prompts.templates import describe_prompt, format_describe
from megapairs_hf.annotation.row_columns import without
from megapairs_hf.annotation.rule_based.engine import describe_by_rules
from megapairs_hf.annotation.tasks import OneRetry, Outcome, captions_of, ids_of, response_row, sampling, seed_for
from megapairs_hf.core.errors import ConfigError, ResponseRejectedError
from megapairs_hf.core.schema import DESCRIPTIONS, IMAGE, IMAGE_ID, QUERY_ID, TARGET_ID
from megapairs_hf.images.locate import SHA256

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from megapairs_hf.annotation.client.messages import Response
    from megapairs_hf.annotation.prompts.templates import Prompt
    from megapairs_hf.annotation.tasks import Row


class DescribeTask(OneRetry):
    """Step one: a vision-language model sees both images."""

    def __init__(
        self,
        config: DescribeConfig,
        prompt: Prompt,
        images: CorpusImages,
        texts: Mapping[str, Row],
        weights: str = "",
    ) -> None:
        self.config, self.prompt, self.images, self.texts, self.weights = config, prompt, images, texts, weights

    def prepare(self, rows: Iterable[Row]) -> None:
        """Load and shrink the images."""
        self.images.load(ids_of(rows))

    def address(self, image_id: str) -> str:
        """An image as a data URL."""
        return self.images.data_url(image_id)

    def close(self) -> None:
        """Remove the shrunken images."""
        self.images.close()

    def request(self, row: Row, attempt: int) -> Request:
        """The two images and the prompt."""
        seed = seed_for(self.config.seed, row, attempt)
        marks = {self.images.mark(row[name]): row[name] for name in (QUERY_ID, TARGET_ID)}
        messages = format_describe(
            self.prompt,
            self.images.mark(row[QUERY_ID]),
            self.images.mark(row[TARGET_ID]),
            sample_word_num(self.config.word_num, seed),
            captions_of(row, self.texts),
        )
        return Request(messages, self.config.model, sampling(self.config, seed), marks, self.weights)

    def evaluate(self, row: Row, attempt: int, response: Response) -> Outcome:
        """A description, unless the response is empty or was cut off before its first full stop."""
        if response.refused:
            return Outcome(None, response.refused, response.text)
        try:
            description = parse_describe(response.text, response.finish_reason)
        except ResponseRejectedError as error:
            return Outcome(None, error.reason, response.text)
        word_num = sample_word_num(self.config.word_num, seed_for(self.config.seed, row, attempt))
        columns = {"description": description, "word_num": word_num}
        return Outcome(columns | response_row(self.config.model, response))


class Describe(AnnotationFunction):
    """Adds to pairs what their two images share and how they differ.

    Reads `query_id` and `target_id`, and `query_row` and `target_row` as hints where they stand. Adds `description`,
    `word_num` (as requested; 0 by rules), `raw` (the response), `model`, `finish_reason`, `prompt_tokens`,
    `completion_tokens` (0 where the server does not count) and `error`. Settings: those of `DescribeConfig`, and those
    of `Endpoint` among them.

        pairs = pairs.map(Describe(images, urls=["http://gpu-1:8080/v1"], model="…"), batched=True)
    """

    CONFIG = DescribeConfig
    VERSION = 2  # of several captions those are taken that fit best
    NEEDS = KEYS
    USES = ("query_row", "target_row")
    WRITES = "descriptions"
    SCHEMA = without(DESCRIPTIONS, KEYS)
    TAKES = "two images, two rows with `image`, two ids of `images`, or "

    def load_prompt(self) -> Prompt | None:
        """The prompt of the settings."""
        return describe_prompt(self.config.prompt) if self.asks else None

    def make_task(self, table: pa.Table) -> DescribeTask:
        """The requests about some pairs."""
        reader, ids = self.reader(table), ids_of(table.select(self.NEEDS).to_pylist())
        images = CorpusImages(reader, self.config.max_image_side)
        images.load_digests(ids)
        texts = reader.texts(ids) if self.prompt.needs_captions else {}
        return DescribeTask(self.config, self.prompt, images, texts, self.weights)

    def by_function(self, rows: list[Row], advance: Callable[[], None]) -> list[Outcome]:
        """The outcomes of the rule-based engine."""
        return describe_by_rules(rows, advance, reader=self.reader(pa.Table.from_pylist(rows)), config=self.config)

    def one(self, image_a: Any = None, image_b: Any = None, **values: Any) -> dict[str, Any]:
        """The added columns for one pair of images.

        Args:
            image_a: the query image: a path, bytes, or a PIL image; a row with `image` (and `image_id`, `caption`,
                `captions`, `meta` and columns that `attributes` names, where it has them); or an id of `images`.
            image_b: the target image.
            **values: instead of images, a row with `query_id` and `target_id`.

        Raises:
            ConfigError: it is neither.
        """
        if image_a is None and image_b is None:
            return self.one_row(values)
        if values or image_a is None or image_b is None:
            return self.one_row({}, ", ".join(values) or "one image")
        if self._are_ids(image_a, image_b):
            return self.one_row({QUERY_ID: image_a, TARGET_ID: image_b})
        rows = rows_of_images(image_a, image_b)
        query, target = rows
        with self.using(MemoryRows(rows)):
            return self.one_row({QUERY_ID: query, TARGET_ID: target})

    def _are_ids(self, *names: Any) -> bool:
        if self.images is None or not all(isinstance(name, str) for name in names):
            return False
        return self.reader().known(names) == set(names)


def rows_of_images(image_a: Any, image_b: Any) -> dict[str, Row]:
    """Two images as rows of a corpus, by id: the ids of the rows that they stand in, or letters.

    Args:
        image_a: a path, bytes, a PIL image, or a row with `image`.
        image_b: the other.

    Raises:
        ConfigError: a row has no image.
    """
    # what an image column stores is a cell, and no row
    is_row = [isinstance(each, dict) and set(each) != {"bytes", "path"} for each in (image_a, image_b)]
    cells = [each if row else {IMAGE: each} for each, row in zip((image_a, image_b), is_row, strict=True)]
    for row in cells:
        if IMAGE not in row:
            raise ConfigError(f"a row for Describe.one needs `image`; its columns: {', '.join(map(str, row))}")
    ids: list[Any] = [row.get(IMAGE_ID) for row in cells]
    if None in ids or ids[0] == ids[1]:
        ids = ["a", "b"]
    # captions, `meta` and columns of its own; the image may be another than the file that was hashed
    shared = [name for name in cells[0] if name in cells[1] and name not in {IMAGE_ID, IMAGE, SHA256}]
    return {
        name: {IMAGE_ID: name, IMAGE: row[IMAGE], **{each: row[each] for each in shared}}
        for name, row in zip(ids, cells, strict=True)
    }
