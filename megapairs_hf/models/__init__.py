"""MMRet: retrievers for text, images, and both together."""

from megapairs_hf.models.fusion import build_mmret, load_mmret, save_mmret

__all__ = ["build_mmret", "load_mmret", "save_mmret"]
