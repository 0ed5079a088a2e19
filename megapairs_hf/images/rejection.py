"""Whatever a reader of images raises, as a rejection of the image that names the exception's type.

Pillow's readers are meant to raise OSError and raise nearly everything on odd files (IndexError of GIF, KeyError of
TIFF, NotImplementedError of DDS, RuntimeError of AVIF, …). What surprises: a MemoryError is one image's fault only
where there is memory for an image of its size; otherwise the run ends, since the next image would fare no better.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from megapairs_hf.core.errors import ImageRejectedError, MegaPairsError

if TYPE_CHECKING:
    from collections.abc import Generator

CUT_OFF = (OSError, EOFError, SyntaxError)
UNDECODABLE = "undecodable"
DETAIL_LENGTH = 200
# with these the file may be good but for its metadata
DAMAGED = {"not_an_image", "truncated", "undecodable", "unsupported_mode"}


@contextlib.contextmanager
def rejecting(pixels: int = 1 << 24) -> Generator[None, None, None]:
    """Turn whatever Pillow raises into a rejection that names its type.

    Args:
        pixels: of the image, for which there should be memory.
    """
    from PIL import Image

    try:
        yield
    except MegaPairsError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageRejectedError("too_many_pixels", "refused by Pillow as a decompression bomb") from error
    except Exception as error:
        if isinstance(error, MemoryError) and not _is_available(4 * pixels):
            raise MegaPairsError(
                "there is not enough memory to decode an image; free some, or lower `threads` or `max_pixels`, and run"
                " the same command again"
            ) from error
        reason = "truncated" if isinstance(error, CUT_OFF) else UNDECODABLE
        # an address differs from run to run
        text = re.sub(r" at 0x[0-9a-f]+", "", f"{type(error).__name__}: {error}")
        raise ImageRejectedError(reason, " ".join(ascii(text)[1:-1].split())[:DETAIL_LENGTH]) from error


def _is_available(size: int) -> bool:
    """Whether so many bytes can be had: if so, it was the file that asked for more than any image needs."""
    try:
        bytearray(size)
    except MemoryError:
        return False
    return True
