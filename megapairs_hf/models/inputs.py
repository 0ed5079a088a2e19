"""What a user hands to `encode`, sorted: a text, an image, or both together.

What surprises: a string is an image only where it is a data URI, a URL with an image's ending, or the path of a file
that exists and has one, as Sentence Transformers sees it; every other string is a text. `{"text": …}` is always one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from megapairs_hf.core.errors import ImageRejectedError, ModelError
from megapairs_hf.core.inputs import Input
from megapairs_hf.images.inputs import open_image

ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".avif")
KEYS = {"text", "image"}
CELL = {"bytes", "path"}
KINDS = ("text", "image", "joint")


def read_input(value: Any, index: int) -> Input:
    """Tell text and image of one input.

    Args:
        value: a text, an image in any form that `open_image` takes, or a dict with `text`, `image` or both.
        index: of the input in its list, for errors.

    Raises:
        ModelError: it is none of these, holds two images, or holds nothing.
    """
    if isinstance(value, dict) and not (value.keys() <= CELL and value):
        unknown = value.keys() - KEYS
        if unknown or not value:
            raise ModelError(f"input {index} has the keys {sorted(map(str, value))}; give `text`, `image`, or both")
        text, image = value.get("text"), value.get("image")
    elif isinstance(value, str) and not is_image(value):
        text, image = value, None
    else:
        text, image = None, value
    if isinstance(image, (list, tuple)):
        raise ModelError(
            f"input {index} has {len(image)} images, but an MMRet takes one; give others as inputs of their own"
        )
    if text is not None and not isinstance(text, str):
        raise ModelError(f"the text of input {index} is a {type(text).__name__}; give a string")
    text = text or None
    if text is None and image is None:
        raise ModelError(f"input {index} is empty; give a text, an image, or both")
    return Input(text, image)


def is_image(text: str) -> bool:
    """Whether a string names or holds an image."""
    if text.startswith("data:image/"):
        return True
    if text.startswith(("http://", "https://")) and " " not in text:
        try:
            return urlparse(text).path.lower().endswith(ENDINGS)
        except ValueError:
            return False
    try:
        return text.lower().endswith(ENDINGS) and Path(text).is_file()
    except OSError:  # longer than any file's name
        return False


def load_image(value: Any, index: int) -> Any:
    """The RGB image of an input.

    Args:
        value: as in `Input.image`.
        index: of the input in its list, for errors.

    Raises:
        ModelError: it cannot be read or decoded.
    """
    try:
        return open_image(value)
    except ImageRejectedError as error:
        raise ModelError(f"the image of input {index} cannot be used ({error}); leave it out or replace it") from error
