"""A `Transformer` module that refuses a checkpoint with missing or unexpected weights, for the time of loading.

What surprises: it is never saved. After loading, the object is made the stock class again, so that the folder names
nothing but stock modules.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sentence_transformers.base.modules import Transformer

from megapairs_hf.core.errors import ModelError
from megapairs_hf.models.released_checkpoints import key_mapping

# buffers that old checkpoints carry and new classes compute, and the head that an embedding does not use
UNUSED = ("position_ids", "rotary_emb.inv_freq", "lm_head.weight")
SHOWN = 12


class CheckedTransformer(Transformer):
    """Loads like the stock module, and checks."""

    def _load_model(self, model_name_or_path: str, *arguments: Any, **keywords: Any) -> Any:
        refuse_pickles(model_name_or_path)
        task, config, *others = arguments
        keywords |= {"output_loading_info": True, "use_safetensors": True}
        # so that a weight of another shape is listed with the rest
        keywords["ignore_mismatched_sizes"] = True
        names = key_mapping(str(config.model_type))
        if names:
            keywords["key_mapping"] = names
        model, info = super()._load_model(model_name_or_path, task, config, *others, **keywords)
        check_keys(model_name_or_path, info)
        return model

    def stock(self) -> Transformer:
        """The same object as the stock class."""
        self.__class__ = Transformer
        return self


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


def check_keys(name: str, info: dict[str, Any]) -> None:
    """Refuse a checkpoint whose weights are not those of the model.

    Args:
        name: of the model.
        info: as transformers gives it with `output_loading_info`.

    Raises:
        ModelError: listing the weights.
    """
    problems = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        keys = sorted(str(key) for key in info.get(kind) or () if not str(key).endswith(UNUSED))
        if keys:
            more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
            problems.append(f"{len(keys)} {kind.replace('_', ' ')} ({', '.join(keys[:SHOWN])}{more})")
    if problems:
        raise ModelError(
            f"the weights of {name} do not fit its configuration: {'; '.join(problems)}; take another checkpoint"
        )
