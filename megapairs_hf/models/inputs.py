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
from megapairs_hf.images.decode import open_image

ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".avif")
KEYS = {"text", "image"}
CELL = {"bytes", "path"}
KINDS = ("text", "image", "joint")


def read_input(given: Any, place: int) -> Input:
    """Tell text and image of one input.

    Args:
        given: a text, an image in any form that `open_image` takes, or a dict with `text`, `image` or both.
        place: of the input in its list, for errors.

    Raises:
        ModelError: it is none of these, holds two images, or holds nothing.
    """
    if isinstance(given, dict) and not (given.keys() <= CELL and given):
        unknown = given.keys() - KEYS
        if unknown or not given:
            raise ModelError(f"input {place} has the keys {sorted(map(str, given))}; give `text`, `image`, or both")
        text, image = given.get("text"), given.get("image")
    elif isinstance(given, str) and not is_image(given):
        text, image = given, None
    else:
        text, image = None, given
    if isinstance(image, (list, tuple)):
        raise ModelError(
            f"input {place} has {len(image)} images, but an MMRet takes one; give others as inputs of their own"
        )
    if text is not None and not isinstance(text, str):
        raise ModelError(f"the text of input {place} is a {type(text).__name__}; give a string")
    text = text or None
    if text is None and image is None:
        raise ModelError(f"input {place} is empty; give a text, an image, or both")
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


def load_image(given: Any, place: int, allow_urls: bool) -> Any:
    """The RGB image of an input.

    Args:
        given: as in `Input.image`.
        place: of the input in its list, for errors.
        allow_urls: whether images may be fetched.

    Raises:
        ModelError: it cannot be read or decoded.
    """
    try:
        return open_image(given)
    except ImageRejectedError as error:
        raise ModelError(f"the image of input {place} cannot be used ({error}); leave it out or replace it") from error
