"""Contrastive training of an MMRet, and of the small similarity models that stand in where no weights are."""

from megapairs_hf.train.config import PretrainConfig, TrainConfig
from megapairs_hf.train.pretrain import pretrain_similarity
from megapairs_hf.train.stage import init_mmret, train_mmret

__all__ = ["PretrainConfig", "TrainConfig", "init_mmret", "pretrain_similarity", "train_mmret"]
