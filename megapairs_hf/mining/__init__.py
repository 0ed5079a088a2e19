"""Image pairs that are related in several different ways, with hard negatives."""

from typing import TYPE_CHECKING

from megapairs_hf.core import lazy

if TYPE_CHECKING:
    from megapairs_hf.mining.config import MineConfig, NegativesConfig, RelationConfig
    from megapairs_hf.mining.negatives import hard_negatives
    from megapairs_hf.mining.pairs import mine
    from megapairs_hf.mining.stage import mine_pairs
else:
    __getattr__, __dir__ = lazy.exports(
        __name__,
        {
            "config": ["MineConfig", "NegativesConfig", "RelationConfig"],
            "negatives": ["hard_negatives"],
            "pairs": ["mine"],
            "stage": ["mine_pairs"],
        },
    )

__all__ = ["MineConfig", "NegativesConfig", "RelationConfig", "hard_negatives", "mine", "mine_pairs"]
