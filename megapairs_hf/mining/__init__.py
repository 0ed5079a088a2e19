"""Image pairs that are related in several different ways, with hard negatives."""

from typing import TYPE_CHECKING

from megapairs_hf.core import lazy

if TYPE_CHECKING:
    from megapairs_hf.mining.config import MineConfig, RelationConfig
    from megapairs_hf.mining.pairs import mine
    from megapairs_hf.mining.stage import mine_pairs
else:
    __getattr__, __dir__ = lazy.exports(
        __name__, {"config": ["MineConfig", "RelationConfig"], "pairs": ["mine"], "stage": ["mine_pairs"]}
    )

__all__ = ["MineConfig", "RelationConfig", "mine", "mine_pairs"]
