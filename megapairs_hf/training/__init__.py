"""Contrastive training of an MMRet, and of small encoders from scratch."""

from typing import TYPE_CHECKING

from megapairs_hf.core import lazy

if TYPE_CHECKING:
    from megapairs_hf.training.config import PretrainConfig, TrainConfig
    from megapairs_hf.training.small_encoders import pretrain_encoders
    from megapairs_hf.training.stage import train
else:
    __getattr__, __dir__ = lazy.exports(
        __name__,
        {
            "config": ["PretrainConfig", "TrainConfig"],
            "small_encoders": ["pretrain_encoders"],
            "stage": ["train"],
        },
    )

__all__ = ["PretrainConfig", "TrainConfig", "pretrain_encoders", "train"]
