"""Write a caption for every image, for corpora without captions: ours, the paper's images have theirs.

What surprises: a request's random seed comes from the image's content, not from its id, so two files of one image are
one request.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

from megapairs_hf.annotation.client.messages import Request
from megapairs_hf.annotation.config import CaptionConfig, pair_seed
from megapairs_hf.annotation.corpus_reader import CorpusImages, MemoryRows
from megapairs_hf.annotation.function import IMAGE_ROW, AnnotationFunction
from megapairs_hf.annotation.prompts.parsing import parse_describe
from megapairs_hf.annotation.prompts.templates import format_images, load_prompt
from megapairs_hf.annotation.row_columns import ids_as_text, without
from megapairs_hf.annotation.tasks import OneRetry, Outcome, response_row, sampling
from megapairs_hf.core.errors import ConfigError, ResponseRejectedError
from megapairs_hf.core.schema import CAPTION, CAPTIONS, CAPTIONS_TABLE, IMAGE, IMAGE_ID
from megapairs_hf.images.locate import SHA256

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pyarrow as pa

    from megapairs_hf.annotation.client.messages import Response
    from megapairs_hf.annotation.prompts.templates import Prompt
    from megapairs_hf.annotation.tasks import Row
    from megapairs_hf.core.row_function import Rows

SLOTS = frozenset({"image", "max_words"})


class CaptioningTask(OneRetry):
    """A vision-language model sees one image."""

    def __init__(self, config: CaptionConfig, prompt: Prompt, images: CorpusImages, weights: str = "") -> None:
        self.config, self.prompt, self.images, self.weights = config, prompt, images, weights

    def prepare(self, rows: Iterable[Row]) -> None:
        """Load and shrink the images."""
        self.images.load({row[IMAGE_ID] for row in rows})

    def address(self, image_id: str) -> str:
        """An image as a data URL."""
        return self.images.data_url(image_id)

    def close(self) -> None:
        """Remove the shrunken images."""
        self.images.close()

    def request(self, row: Row, attempt: int) -> Request:
        """The image and the prompt."""
        mark = self.images.mark(row[IMAGE_ID])
        messages = format_images(self.prompt, {"image": mark}, max_words=self.config.max_words)
        parameters = sampling(self.config, pair_seed(self.config.seed, mark, "", attempt))
        return Request(messages, self.config.model, parameters, {mark: row[IMAGE_ID]}, self.weights)

    def evaluate(self, row: Row, attempt: int, response: Response) -> Outcome:
        """A caption, unless the response is empty, or was cut off before its first full stop."""
        if response.refused:
            return Outcome(None, response.refused, response.text)
        try:
            caption = parse_describe(response.text, response.finish_reason)
        except ResponseRejectedError as error:
            return Outcome(None, error.reason, response.text)
        return Outcome({CAPTION: caption, CAPTIONS: [caption]} | response_row(self.config.model, response))


class Caption(AnnotationFunction):
    """Adds a caption to images.

    Reads `image` (bytes, a path, or what an image column stores), and `image_id` and `sha256` where they stand. Adds
    `caption` (in the place of an old one), `captions` (a list of this one), `raw`, `model`, `finish_reason`,
    `prompt_tokens`, `completion_tokens` and `error`. Settings: those of `CaptionConfig`, and those of `Endpoint` among
    them.

        ds = add_columns(ds, Caption(urls=["http://gpu-1:8080/v1"], model="…"))
    """

    CONFIG = CaptionConfig
    image_column: ClassVar[str] = IMAGE
    NEEDS = (IMAGE_ID,)
    SCHEMA = without(CAPTIONS_TABLE, (IMAGE_ID,))
    HINTS: ClassVar[dict[str, str]] = {IMAGE_ID: IMAGE_ROW}
    UNIT = "images"
    WRITES = "captions"

    def load_prompt(self) -> Prompt:
        """The prompt of the settings."""
        return load_prompt(self.config.prompt, "caption.jinja", SLOTS, ("image",))

    def key_of(self, row: Row) -> str:
        """The key of a row in the list of rejected ones."""
        return str(row[IMAGE_ID])

    def compute(self, rows: Rows, rank: int | None) -> dict[str, Any]:
        """The added columns of some images."""
        cells = rows.values(IMAGE)
        names = ids_as_text(rows.values(IMAGE_ID)) if IMAGE_ID in rows else []
        if len(Counter(names)) < len(cells) or None in names:
            names = [str(i) for i in range(len(cells))]
        digests = rows.values(SHA256) if SHA256 in rows else [""] * len(cells)
        by_id = {
            name: {IMAGE_ID: name, IMAGE: cell, SHA256: digest or ""}
            for name, cell, digest in zip(names, cells, digests, strict=True)
        }
        with self.using(MemoryRows(by_id)):
            return super().compute(type(rows)({IMAGE_ID: names}), rank)

    def make_task(self, table: pa.Table) -> CaptioningTask:
        """The requests about some images."""
        images = CorpusImages(self.reader(table), self.config.max_image_side)
        images.load_digests(table[IMAGE_ID].to_pylist())
        return CaptioningTask(self.config, self.prompt, images, self.weights)

    def one(self, image: Any = None, **values: Any) -> dict[str, Any]:
        """The added columns for one image.

        Args:
            image: a path, bytes, a PIL image, or a row with `image`.
            **values: more columns of its row.

        Raises:
            ConfigError: there is no image.
        """
        if isinstance(image, dict) and IMAGE in image:
            image, values = image[IMAGE], {**image, **values}
        if image is None:
            raise ConfigError(
                f"Caption.one takes an image, or a row with `image`, not {', '.join(values) or 'nothing'}"
            )
        return super().one(**{**values, IMAGE: image})
