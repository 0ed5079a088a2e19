"""Image pairs that are related in several different ways, with hard negatives."""

from megapairs_hf.mine.config import MineConfig, RelationConfig
from megapairs_hf.mine.stage import mine_pairs

__all__ = ["MineConfig", "RelationConfig", "mine_pairs"]
