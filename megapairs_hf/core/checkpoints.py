"""What a checkpoint must hold before a model is trusted: every weight, as safetensors; and how long a text may be.

What surprises: transformers fills a weight that a checkpoint lacks with random numbers and says so in a log. A model
with one random layer still gives embeddings, so here that is an error that lists the names.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# buffers that old checkpoints carry and new classes compute, and the head that an embedding does not use
UNUSED = ("position_ids", "rotary_emb.inv_freq", "lm_head.weight")
KINDS = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
# of an encoder, which has no use for the weights of a head
LACKING = ("missing_keys", "mismatched_keys", "error_msgs")
SHOWN = 12


def refuse_pickles(name: str) -> None:
    """Say of a folder with nothing but pickled weights what can be done.

    Args:
        name: folder or Hub id.

    Raises:
        ModelError: there are pickled weights and no safetensors.
    """
    folder = Path(name)
    if any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{name} has its weights in pytorch_model.bin alone, a pickle, which can run code and is not read; if you"
            " trust it, load it with transformers and save_pretrained it as safetensors"
        )


def check_keys(name: str, info: Mapping[str, Any], kinds: Sequence[str] = KINDS, unused: Sequence[str] = ()) -> None:
    """Refuse a checkpoint whose weights are not those of the model.

    Args:
        name: of the model.
        info: as transformers gives it with `output_loading_info`.
        kinds: what is a problem.
        unused: parts of the names of weights that this use of the model does not need.

    Raises:
        ModelError: listing the weights.
    """
    problems = []
    for kind in kinds:
        names = sorted(str(key) for key in info.get(kind) or ())
        keys = [key for key in names if not key.endswith(UNUSED) and not any(part in key for part in unused)]
        if keys:
            more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
            problems.append(f"{len(keys)} {kind.replace('_', ' ')} ({', '.join(keys[:SHOWN])}{more})")
    if problems:
        raise ModelError(
            f"the weights of {name} do not fit its configuration: {'; '.join(problems)}; take another checkpoint"
        )


def token_limit(model: Any) -> int | None:
    """Tokens that the text tower has positions for; None where its configuration does not say."""
    text = getattr(model.config, "text_config", model.config)
    limit = getattr(text, "max_position_embeddings", None)
    if limit is None:
        return None
    # positions of RoBERTa and its kin (CamemBERT, MPNet, AltCLIP's text tower, …) begin behind the padding's
    tables = [table for name, table in model.named_modules() if name.endswith("position_embeddings")]
    padding = [int(table.padding_idx) for table in tables if getattr(table, "padding_idx", None) is not None]
    return int(limit) - max((index + 1 for index in padding), default=0)
