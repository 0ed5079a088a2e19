"""What a model returns, as one row of numbers per input.

What surprises: the sequence of a vision transformer may begin with more than its class token (registers, of DINOv2
with registers and DINOv3), which belong to no patch, or without any (SigLIP, Swin); and a convolutional network
returns a map [B, C, H, W], whose average over height and width is its embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import ModelError

if TYPE_CHECKING:
    import torch

CLASS_TOKENS = {"cls_token", "class_embedding"}
# it puts the average of all patches in front, which is no weight
AVERAGE_FIRST = "dinov3_convnext"


def check_rows(encoded: Any, rows: int, name: str) -> torch.Tensor:
    """What an encoder returned, if it is one embedding per input (Tensor[rows, D]).

    Raises:
        ModelError: it is anything else.
    """
    import torch

    if isinstance(encoded, torch.Tensor):
        good = encoded.ndim == 2 and encoded.shape[0] == rows and encoded.shape[1] > 0
        if good and (encoded.is_floating_point() or encoded.dtype == torch.int8):
            return encoded
        what = f"{str(encoded.dtype).removeprefix('torch.')} numbers of shape {list(encoded.shape)}"
    else:
        what = f"a {type(encoded).__name__}"
    raise ModelError(
        f"the encoder {name} returned {what} for {rows} input{'s' if rows > 1 else ''}, but must return one embedding"
        f" per input, floats of shape [{rows}, D]; set another `pooling`, or take a model made for embeddings"
    )


def leading_tokens(model: Any) -> int:
    """How many tokens stand before the patches of a vision model: class token, distillation token, registers."""
    names = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    registers = int(getattr(model.config, "num_register_tokens", 0) or 0)
    return int(has_class_token(model)) + int("distillation_token" in names) + registers


def has_class_token(model: Any) -> bool:
    """Whether the first token of a vision model stands for the whole image."""
    names = {name.rpartition(".")[2] for name, _ in model.named_parameters()}
    return bool(names & CLASS_TOKENS) or getattr(model.config, "model_type", "") == AVERAGE_FIRST


def pooled(output: Any, pooling: str, model: Any, name: str) -> Any:
    """The embeddings (Tensor[B, D]) of a vision model's output.

    Args:
        output: of the model.
        pooling: `cls`, `mean` or `pooler`.
        model: the model.
        name: of the encoder.

    Raises:
        ModelError: the model has no such output.
    """
    if pooling == "pooler":
        values = getattr(output, "pooler_output", None)
        if values is None:
            raise ModelError(f"the encoder {name} has no pooler, so it cannot have `pooling: pooler`; set mean or cls")
        # [B, C, 1, 1] of ResNet and its kin
        return values.flatten(1) if values.shape[2:].numel() == 1 else values
    hidden = output.last_hidden_state
    if pooling == "mean":
        return hidden.mean((2, 3)) if hidden.ndim == 4 else hidden[:, leading_tokens(model) :].mean(1)
    if hidden.ndim == 4 or not has_class_token(model):
        kind = "is a convolutional network" if hidden.ndim == 4 else "has no class token"
        raise ModelError(f"the encoder {name} {kind}, so it cannot have `pooling: cls`; set mean or pooler")
    return hidden[:, 0]


def features_of(output: Any) -> Any:
    """The features of one tower: an object that holds them, or, of code from elsewhere, the features themselves."""
    import torch

    return output if isinstance(output, torch.Tensor) else getattr(output, "pooler_output", output)
