"""MMRet: retrievers for text, images, and both together."""

from typing import TYPE_CHECKING

from megapairs_hf import lazy

if TYPE_CHECKING:
    from megapairs_hf.models.fusion import build_mmret, load_mmret, save_mmret
else:
    __getattr__, __dir__ = lazy.exports(__name__, {"fusion": ["build_mmret", "load_mmret", "save_mmret"]})

__all__ = ["build_mmret", "load_mmret", "save_mmret"]
