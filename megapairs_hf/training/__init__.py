"""Contrastive training of an MMRet, of heads on frozen encoders, and of small encoders from scratch."""

from typing import TYPE_CHECKING

from megapairs_hf.core import lazy

if TYPE_CHECKING:
    from megapairs_hf.training.align import align_towers
    from megapairs_hf.training.align_config import AlignConfig
    from megapairs_hf.training.cached_loss import CachedInfoNCELoss
    from megapairs_hf.training.collator import MultimodalCollator
    from megapairs_hf.training.config import PretrainConfig, TrainConfig
    from megapairs_hf.training.loss_config import LossConfig
    from megapairs_hf.training.small_encoders import pretrain_encoders
    from megapairs_hf.training.stage import train
else:
    __getattr__, __dir__ = lazy.exports(
        __name__,
        {
            "align": ["align_towers"],
            "align_config": ["AlignConfig"],
            "cached_loss": ["CachedInfoNCELoss"],
            "collator": ["MultimodalCollator"],
            "config": ["PretrainConfig", "TrainConfig"],
            "loss_config": ["LossConfig"],
            "small_encoders": ["pretrain_encoders"],
            "stage": ["train"],
        },
    )

__all__ = [
    "AlignConfig",
    "CachedInfoNCELoss",
    "LossConfig",
    "MultimodalCollator",
    "PretrainConfig",
    "TrainConfig",
    "align_towers",
    "pretrain_encoders",
    "train",
]
