"""MMRet: retrievers for text, images, and both together."""

from typing import TYPE_CHECKING

from megapairs_hf.core import lazy

if TYPE_CHECKING:
    from megapairs_hf.models.loading import load_mmret, save_mmret
else:
    __getattr__, __dir__ = lazy.exports(__name__, {"loading": ["load_mmret", "save_mmret"]})

__all__ = ["load_mmret", "save_mmret"]
