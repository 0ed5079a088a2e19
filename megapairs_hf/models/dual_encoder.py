"""MMRet on a dual encoder: any transformers model with a text tower and an image tower (paper, section 3.2, eq. 2).

The model is the stock `Transformer` module followed by the stock `Normalize`; only the class of the wrapped backbone
is ours. What surprises: SigLIP was trained on texts padded to their full length without an attention mask, so the
settings that a saved model carries say so, and stock Sentence Transformers obeys them.
"""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

from megapairs_hf.core.errors import ModelError

MODELING = Path(__file__).with_name("modeling_mmret.py")
FUSED = ("image", "text")
METHODS = {"text": "get_text_features", "image": "get_image_features"}
SIGLIP_TOKENS = 64


# until the model is there to be asked
SINGLE: dict[Any, dict[str, Any]] = {
    modality: {"method": name, "method_output_name": "pooler_output"} for modality, name in METHODS.items()
}


def no_dual_encoder(name: str, model_class: type, missing: list[str]) -> ModelError:
    """The error for a model that lacks a tower."""
    return ModelError(
        f"{name} is a {model_class.__name__} without {' and '.join(missing)}, which score fusion needs; choose a dual"
        " encoder such as CLIP or SigLIP, or a multimodal language model"
    )


def missing_methods(model_class: type) -> list[str]:
    """Those of the two methods that a dual encoder must have and this class lacks."""
    return [name for name in METHODS.values() if not callable(inspect.getattr_static(model_class, name, None))]


def modality_config(model: Any) -> dict[Any, dict[str, str | None]]:
    """Which method of the model serves which kind of input, in the form of Sentence Transformers."""
    config: dict[Any, dict[str, str | None]] = {}
    for modality, name in METHODS.items():
        # transformers 5 returns an object with the features in it, other models the features themselves
        returned = str(inspect.signature(getattr(model, name)).return_annotation)
        config[modality] = {"method": name, "method_output_name": "pooler_output" if "Output" in returned else None}
    config[FUSED] = {"method": "get_multimodal_features", "method_output_name": "pooler_output"}
    return config


def processing_kwargs(model_type: str, tokenizer: Any) -> dict[str, dict[str, Any]]:
    """How texts are tokenized, where it is not padding to the longest."""
    if not model_type.startswith("siglip"):
        return {}
    longest = min(int(tokenizer.model_max_length), SIGLIP_TOKENS)
    return {"text": {"padding": "max_length", "max_length": longest, "return_attention_mask": False}}


def token_limit(model: Any) -> int | None:
    """Tokens that the text tower has positions for; None where its configuration does not tell."""
    text = getattr(model.config, "text_config", model.config)
    limit = getattr(text, "max_position_embeddings", None)
    if limit is None:
        return None
    # positions of RoBERTa and its kin (CamemBERT, MPNet, AltCLIP's text tower, …) begin behind the padding's
    tables = [table for name, table in model.named_modules() if name.endswith("position_embeddings")]
    padding = [int(table.padding_idx) for table in tables if getattr(table, "padding_idx", None) is not None]
    return int(limit) - max((index + 1 for index in padding), default=0)


def fuse(transformer: Any, name: str) -> None:
    """Make a dual encoder of a wrapped backbone: its class, its modalities, its texts.

    Args:
        transformer: a Sentence Transformers `Transformer` module.
        name: of the model, for the error.

    Raises:
        ModelError: the wrapped model lacks one of the two towers.
    """
    from megapairs_hf.models import modeling_mmret

    model = transformer.model
    if not isinstance(model, modeling_mmret.ScoreFusionMixin):
        missing = missing_methods(type(model))
        if missing:
            raise no_dual_encoder(name, type(model), missing)
        # the subclass adds a method and no state, so changing the class of the loaded object is exact and copies
        # nothing
        model.__class__ = fused_class(type(model), name)
    if FUSED not in transformer.modality_config:
        transformer.modality_config = modality_config(model)
        transformer.module_output_name = "sentence_embedding"
        transformer.input_formatter.supported_modalities = list(transformer.modality_config)
        transformer.processing_kwargs = processing_kwargs(str(model.config.model_type), transformer.tokenizer)
        limit = token_limit(model)
        if limit is not None:
            transformer.tokenizer.model_max_length = min(transformer.tokenizer.model_max_length, limit)


def fused_class(model_class: type, name: str) -> type:
    """The class with the method for joint inputs.

    Raises:
        ModelError: the class is none of transformers.
    """
    from megapairs_hf.models import modeling_mmret

    try:
        made = getattr(modeling_mmret, modeling_mmret.PREFIX + model_class.__name__)
    except AttributeError as error:
        raise ModelError(
            f"{name} is a {model_class.__name__}, which transformers does not have; choose another"
        ) from error
    return made


def finish_folder(folder: Path) -> None:
    """Put the modeling file beside the saved weights and name its class.

    Args:
        folder: as saved by Sentence Transformers.
    """
    from megapairs_hf.models import modeling_mmret

    if not (folder / "config.json").is_file():
        return  # adapters alone; their backbone is elsewhere
    shutil.copyfile(MODELING, folder / MODELING.name)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    base = config["architectures"][0].removeprefix(modeling_mmret.PREFIX)
    config["architectures"] = [base]
    config["auto_map"] = {"AutoModel": f"{MODELING.stem}.{modeling_mmret.PREFIX}{base}"}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
