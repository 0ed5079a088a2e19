"""Contrastive training of an MMRet, and of the small encoders that stand in where no weights are."""

from typing import TYPE_CHECKING

from megapairs_hf.core import lazy

if TYPE_CHECKING:
    from megapairs_hf.training.config import PretrainConfig, TrainConfig
    from megapairs_hf.training.small_encoders import pretrain_encoders
    from megapairs_hf.training.stage import init_mmret, train_mmret
else:
    __getattr__, __dir__ = lazy.exports(
        __name__,
        {
            "config": ["PretrainConfig", "TrainConfig"],
            "small_encoders": ["pretrain_encoders"],
            "stage": ["init_mmret", "train_mmret"],
        },
    )

__all__ = ["PretrainConfig", "TrainConfig", "init_mmret", "pretrain_encoders", "train_mmret"]
