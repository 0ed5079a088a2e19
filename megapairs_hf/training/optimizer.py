"""AdamW with two kinds of groups: by weight decay, and by learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn

    from megapairs_hf.training.config import LoopConfig


def make_optimizer(
    module: nn.Module, config: LoopConfig, rates: Mapping[str, float] | None = None
) -> torch.optim.AdamW:
    """AdamW, with weight decay on matrices and none on biases, norms and scales.

    Args:
        module: whose parameters.
        config: learning rate and weight decay.
        rates: learning rates of parameters by name, where they are not `lr`.
    """
    import torch

    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    groups = []
    for rate in dict.fromkeys([config.lr, *(rates or {}).values()]):
        some = [p for name, p in trained if (rates or {}).get(name, config.lr) == rate]
        groups.append({"params": [p for p in some if p.ndim > 1], "lr": rate, "weight_decay": config.weight_decay})
        groups.append({"params": [p for p in some if p.ndim <= 1], "lr": rate, "weight_decay": 0.0})
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr)
