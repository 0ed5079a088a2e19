"""Warnings of the decoders, counted where an image is decoded and printed nowhere.

Pillow warns through `warnings` and once through `logging`, libtiff writes to standard error from C. What surprises:
nothing here is switched off for the process. Filter, log filter and handler ask whether this very thread is
decoding; what other threads, or the user's own calls of Pillow, have to say takes its usual way.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import threading
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator

LOCAL = threading.local()
LOCK = threading.Lock()


class Count:
    """How many warnings there were."""

    def __init__(self) -> None:
        self.number = 0


def counts_here() -> bool:
    """Count a warning if this thread decodes an image; whether it does."""
    count: Count | None = getattr(LOCAL, "count", None)
    if count is not None:
        count.number += 1
    return count is not None


class _ThisThread:
    """Is in a warning filter where the pattern of a module's name would be."""

    def match(self, module: str) -> bool:
        return counts_here()


@contextlib.contextmanager
def counted_warnings() -> Generator[Count, None, None]:
    """Count the warnings of what this thread decodes meanwhile, and print none."""
    _install()
    outer, count = getattr(LOCAL, "count", None), Count()
    LOCAL.count = count
    try:
        yield count
    finally:
        LOCAL.count = outer


def _install() -> None:
    # no lock where all is there, since a process may be forked while another thread holds it
    if warnings.filters and isinstance(warnings.filters[0][3], _ThisThread):
        return
    with LOCK:
        _install_once()
        # `catch_warnings` would do for one thread, and loses filters where several use it
        filters: Any = warnings.filters
        # whoever sets filters of their own puts them first, or brings back a list from before
        if not filters or not isinstance(filters[0][3], _ThisThread):
            # single steps, so that no filter that is set meanwhile is lost, and ours is never absent
            earlier = [known for known in list(filters) if isinstance(known[3], _ThisThread)]
            filters.insert(0, ("ignore", None, Warning, _ThisThread(), 0))
            for known in earlier:
                with contextlib.suppress(ValueError):
                    filters.remove(known)


@lru_cache(maxsize=1)
def _install_once() -> Any:
    """The log filter and the handler of libtiff; the handler is what this gives, so that it is kept."""
    logging.getLogger("PIL.TiffImagePlugin").addFilter(lambda _: not counts_here())
    return _install_libtiff_handler()


def _install_libtiff_handler() -> Any:
    """Come before the handler of libtiff's errors; a build of Pillow that hides the function goes on printing them."""
    from PIL import _imaging

    # module, format and arguments are handed on as they are; Pillow itself switches libtiff's mere warnings off
    handler_type = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    try:
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
    except (AttributeError, OSError):
        return None
    set_handler.restype, set_handler.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    earlier: list[Any] = []

    def handle(module: Any, text: Any, arguments: Any) -> None:
        if not counts_here() and earlier:
            earlier[0](module, text, arguments)

    handler = handler_type(handle)
    address = set_handler(ctypes.cast(handler, ctypes.c_void_p))
    if address:
        earlier.append(handler_type(address))
    return handler
