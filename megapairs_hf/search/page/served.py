"""An index as the page uses it: many visitors at once, one model.

What surprises: a model is called by one thread at a time, because fast tokenizers refuse to be shared; images are
encoded anew before they are sent, so that a file that is an image and a web page too is only the first.
"""

from __future__ import annotations

import base64
import io
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import ConfigError, ImageRejectedError
from megapairs_hf.images.decode import shrink
from megapairs_hf.images.inputs import open_image

if TYPE_CHECKING:
    from PIL import Image

    from megapairs_hf.search.index import SearchIndex
    from megapairs_hf.search.results import SearchResults

THUMBNAIL = 320
FULL = 1600
QUALITY = 82
CACHE_BYTES = 200_000_000
# images of visitors that are decoded at once: each may take hundreds of megabytes
DECODING = threading.BoundedSemaphore(2)


class ServedIndex:
    """An index, its model, and its images as small files.

    Args:
        index: opened.
        label: what the page calls it, such as `trained`.
    """

    def __init__(self, index: SearchIndex, label: str) -> None:
        self.index, self.label = index, label
        _OneAtATime(index)
        self._images = _ImageCache(index)

    def __len__(self) -> int:
        return len(self.index)

    def warm_up(self) -> None:
        """Load the model and what is searched before the first visitor waits for it."""
        self.index.query(text="a photograph", k=1)

    def query(self, **arguments: Any) -> SearchResults:
        """As `SearchIndex.query`; an image may have as many pixels as one of the index.

        Raises:
            ConfigError: the image cannot be used.
        """
        if arguments.get("image") is not None:
            try:
                arguments["image"] = self._opened(arguments["image"])
            except ImageRejectedError as error:
                raise ConfigError(f"the image of the query cannot be used ({error}); give another") from error
        return self.index.query(**arguments)

    def _opened(self, image: Any) -> Image.Image:
        with DECODING:
            return open_image(image, max_pixels=int(self.index.record.config["max_pixels"]))

    def small(self, path: str, side: int) -> str:
        """A small copy of a visitor's image as a data URI.

        Raises:
            ImageRejectedError: it cannot be used.
        """
        return "data:image/webp;base64," + base64.b64encode(_webp(self._opened(path), side)).decode("ascii")

    def image(self, row: int, side: int) -> bytes:
        """An image of the index as a WebP file.

        Args:
            row: its number in the index.
            side: longest side in pixels.
        """
        return self._images.get(row, side)


def _webp(image: Image.Image, side: int) -> bytes:
    sink = io.BytesIO()
    shrink(image, side).save(sink, "WEBP", quality=QUALITY, method=2)
    return sink.getvalue()


class _OneAtATime:
    """A model behind a lock. It takes the model's place in the index."""

    def __init__(self, index: SearchIndex) -> None:
        self.lock, self.model = threading.Lock(), index._model
        self.index = index
        index._model = self

    def encode(self, *arguments: Any, **settings: Any) -> Any:
        """As the model does."""
        return self._call("encode", arguments, settings)

    @property
    def modalities(self) -> Any:
        """What the model takes, alone and together; None where it does not say."""
        return getattr(self._loaded(), "modalities", None)

    def encode_query(self, *arguments: Any, **settings: Any) -> Any:
        """As the model does; a model without queries of its own encodes them as everything else."""
        return self._call("encode_query", arguments, settings)

    def _call(self, name: str, arguments: tuple[Any, ...], settings: dict[str, Any]) -> Any:
        model = self._loaded()
        with self.lock:
            return getattr(model, name, model.encode)(*arguments, **settings)

    def _loaded(self) -> Any:
        with self.lock:
            if self.model is None:
                from megapairs_hf.search.index_model import load_checked

                self.model = load_checked(self.index.record.model, self.index.folder)
            return self.model


class _ImageCache:
    """Encoded images, the latest that were asked for, up to a number of bytes."""

    def __init__(self, index: SearchIndex) -> None:
        self.index, self.lock = index, threading.Lock()
        self.files: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self.bytes = 0

    def get(self, row: int, side: int) -> bytes:
        with self.lock:
            if (row, side) in self.files:
                self.files.move_to_end((row, side))
                return self.files[row, side]
        content = _webp(open_image(self.index.image_bytes(row)), side)
        with self.lock:
            if (row, side) not in self.files:
                self.bytes += len(content)
            self.files[row, side] = content
            while self.bytes > CACHE_BYTES:
                self.bytes -= len(self.files.popitem(last=False)[1])
        return content
