"""LoRA adapters on an MMRet by PEFT: add and merge (paper, sections 4.1 and 4.3: rank 32).

Adapters sit on every linear layer of the vision tower and of the language model (or of a dual encoder's two towers).
The projector between them is left alone. What surprises: a model saved with adapters is a folder of adapters that
names its backbone, and loads only while the backbone is there; `unload_lora` makes a whole model of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.core.compatibility import require_adapters
from megapairs_hf.core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sentence_transformers import SentenceTransformer

RANK = 32  # section 4.1: "LoRA … rank 32"
# vision towers and language models of the families, and the two towers of dual encoders
TOWERS = ("vision_tower", "visual", "vision_model", "language_model", "text_model")
BETWEEN = ("merger", "deepstack_merger_list", "multi_modal_projector", "projector")


def add_lora(
    model: SentenceTransformer,
    *,
    rank: int = RANK,
    alpha: int | None = None,
    dropout: float = 0.0,
    name: str = "default",
    layers: Collection[str] = (),
) -> None:
    """Put fresh adapters on a model; everything else is frozen.

    Args:
        model: an MMRet.
        rank: of the adapters.
        alpha: their scale, divided by the rank; None for twice the rank, which is ours.
        dropout: before them.
        name: of the adapter.
        layers: names of the layers that get adapters, such as `q_proj`; all linear ones of the towers where empty.

    Raises:
        MissingDependencyError: peft is not installed.
        ModelError: the model has no towers of a known name, or has such an adapter, or the installed peft does not
            work with transformers.
    """
    require_adapters("LoRA")
    from peft import LoraConfig

    inner = model[0].model
    if any(True for _ in _layers(inner)):
        raise ModelError("the model has adapters already; call unload_lora first")
    targets = lora_targets(inner, layers)
    config = LoraConfig(r=rank, lora_alpha=alpha or 2 * rank, lora_dropout=dropout, target_modules=targets)
    inner.add_adapter(config, adapter_name=name)


def lora_targets(inner: Any, layers: Collection[str] = ()) -> list[str]:
    """Names of the linear layers that get adapters.

    Args:
        inner: the transformers model.
        layers: their last names; all where empty.

    Raises:
        ModelError: there is none, or none of one of these names.
    """
    import torch

    targets = []
    for name, module in inner.named_modules():
        parts = name.split(".")
        # not its subclasses: torch's MultiheadAttention reads the weights of its own kind past any adapter
        if type(module) is torch.nn.Linear and set(parts) & set(TOWERS) and not set(parts) & set(BETWEEN):
            targets.append(name)
    known = {name.rpartition(".")[2] for name in targets}
    unknown = sorted(set(layers) - known)
    if targets and unknown:
        raise ModelError(f"{type(inner).__name__} has no layer {unknown[0]!r}; it has {', '.join(sorted(known))}")
    if layers:
        targets = [name for name in targets if name.rpartition(".")[2] in layers]
    if not targets:
        raise ModelError(f"{type(inner).__name__} has no linear layer below any of {', '.join(TOWERS)}; adapt another")
    return targets


def _layers(inner: Any) -> Iterator[tuple[str, Any]]:
    """The adapted layers by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(inner.named_modules()):
        if isinstance(module, BaseTunerLayer):
            yield name, module


def unload_lora(model: SentenceTransformer) -> None:
    """Add the adapters to the weights and remove them: the model is a plain one with other weights.

    Each layer is merged in float32 and then has its own type again, so that the sum is rounded once, at the end.

    Args:
        model: an MMRet with adapters.

    Raises:
        ModelError: it has none, or merging gives numbers that are not finite.
    """
    inner = model[0].model
    layers = list(_layers(inner))
    if not layers:
        raise ModelError("the model has no adapters to merge; call add_lora, or load an adapted model")
    for name, layer in layers:
        if not layer.merged:
            weight = layer.get_base_layer().weight
            dtype, weight.data = weight.dtype, weight.data.float()
            try:
                layer.merge(safe_merge=True)
            except ValueError as error:
                raise ModelError(f"the adapter of {name} is not made of finite numbers; train it again") from error
            weight.data = weight.data.to(dtype)
        parent, _, last = name.rpartition(".")
        setattr(inner.get_submodule(parent), last, layer.get_base_layer())
    inner._hf_peft_config_loaded = False
    del inner.peft_config
    for weight in inner.parameters():
        weight.requires_grad_(True)
