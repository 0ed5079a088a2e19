"""What a user hands to `encode`, sorted: a text, an image, or both together.

What surprises: a string is an image only where it is a data URI, a URL with an image's suffix, or the path of a file
that exists and has one; every other string is a text. One that looks like a path all the same is mostly a mistake, of
which `encode` warns once, or which it refuses (`strict`). `{"text": …}` is always a text.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from megapairs_hf.core.errors import ImageRejectedError, ModelError
from megapairs_hf.core.image_formats import is_image_name
from megapairs_hf.core.inputs import Input
from megapairs_hf.images.inputs import open_image

# an absolute path, one that begins with `.`, `..` or `~`, or one word with a separator and a suffix
PATH = re.compile(r"(~|\.{0,2})[/\\]\w.*|[A-Za-z]:[/\\].*|file://.*|\S*[/\\]\S*\w\.[A-Za-z]\w{1,4}")
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
        if any(isinstance(part, str) and not is_image(part) for part in image):
            raise ModelError(
                f"input {index} is a {type(image).__name__}; give an image and a text together as"
                ' {"image": …, "text": …}, and several inputs as one list'
            )
        raise ModelError(
            f"input {index} has {len(image)} images, but an MMRet takes one; give others as inputs of their own"
        )
    if text is not None and not isinstance(text, str):
        raise ModelError(f"the text of input {index} is a {type(text).__name__}; give a string")
    text = text or None
    if text is None and image is None:
        raise ModelError(f"input {index} is empty; give a text, an image, or both")
    return Input(text, image)


def refuse_pair(inputs: Any) -> None:
    """Refuse an image and a text in a tuple, which mean one joint input to most, and would be two.

    Raises:
        ModelError: they are such a tuple.
    """
    if not isinstance(inputs, tuple) or len(inputs) != 2 or any(isinstance(part, dict) for part in inputs):
        return
    texts = [isinstance(part, str) and not is_image(part) and not is_image_name(part.strip()) for part in inputs]
    if texts[0] != texts[1]:
        raise ModelError(
            'the inputs are a tuple of an image and a text; give both together as {"image": …, "text": …}, or two'
            " inputs as a list"
        )


def is_image(text: str) -> bool:
    """Whether a string names or holds an image."""
    if text.startswith("data:image/"):
        return True
    if text.startswith(("http://", "https://")) and " " not in text:
        try:
            return is_image_name(urlparse(text).path)
        except ValueError:
            return False
    try:
        return is_image_name(text) and Path(text).is_file()
    except OSError:  # longer than any file's name
        return False


def mistaken_path(value: Any, item: Input) -> bool:
    """Whether an input that is taken for a text looks like the path of an image, or names a file without its suffix.

    Args:
        value: as it was given.
        item: what it was taken for.
    """
    # a dict says what it means
    if not isinstance(value, str) or item.image is not None:
        return False
    # a line of a file may have its end
    value = value.strip()
    if "\n" in value:
        return False
    if is_image_name(value) or PATH.fullmatch(value):
        return True
    try:
        return "/" in value and Path(value).exists()
    except OSError:
        return False


def describe_mistake(value: str, index: int) -> str:
    """The sentence about such an input."""
    return (
        f"input {index}, {value[:200]!r}, looks like the path of an image, but there is no image of that name; correct"
        ' it, or give {"text": …} if it is a text'
    )


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
