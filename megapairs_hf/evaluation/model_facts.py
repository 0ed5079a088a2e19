"""How a model was loaded: what the records say of it, and whether it is what the settings ask for.

What surprises: this is read off the model that runs and not off the settings, because `auto` is decided by the device
and by the checkpoint.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.config import require

if TYPE_CHECKING:
    from megapairs_hf.evaluation.config import EvalConfig


def model_facts(model: Any) -> dict[str, Any]:
    """Number format of most weights, attention, tokens per pass of a language model; empty for no torch module."""
    import torch
    from transformers import PreTrainedModel

    if not isinstance(model, torch.nn.Module):
        return {}
    counts: Counter[str] = Counter()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            counts[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    facts: dict[str, Any] = {"dtype": counts.most_common(1)[0][0]} if counts else {}
    backbones = (module for module in model.modules() if isinstance(module, PreTrainedModel))
    attention = next((backbone.config._attn_implementation for backbone in backbones), None)
    facts |= {"attn_implementation": attention} if isinstance(attention, str) else {}
    tokens = getattr(model, "max_tokens_per_pass", None)
    return facts | ({"max_tokens_per_pass": tokens} if tokens is not None else {})


def check_loaded(model: Any, config: EvalConfig) -> None:
    """Refuse settings of loading that a model, loaded by somebody else, does not have.

    Raises:
        ConfigError: with the setting and what the model has.
    """
    facts = model_facts(model)
    for name, value in config.loading.items():
        allowed = f"left out, since the model was loaded with {facts.get(name)!r}; load it so, or by `megapairs eval`"
        require(facts.get(name) == value, name, value, allowed)
