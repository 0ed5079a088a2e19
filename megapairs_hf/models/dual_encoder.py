"""MMRet on a dual encoder: CLIP, SigLIP, or two towers of any kind (paper, section 3.2, eq. 2).

The model is the stock `Transformer` module followed by the stock `Normalize`; only the class of the wrapped backbone
is ours. What surprises: SigLIP was trained on texts padded to their full length without an attention mask, so the
settings that a saved model carries say so, and stock Sentence Transformers obeys them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from megapairs_hf.core.checkpoints import token_limit
from megapairs_hf.core.errors import ModelError

HERE = Path(__file__).parent
FUSED = ("image", "text")
METHODS = {"text": "get_text_features", "image": "get_image_features"}
SIGLIP_TOKENS = 64


# by the `model_type` of the backbone; `modeling_mmret` holds the first two, which are made of a stock model
TWO_TOWERS = "two_towers"
CLASSES = {"clip": "MMRetCLIPModel", "siglip": "MMRetSiglipModel", TWO_TOWERS: "TwoTowersModel"}
TOWERS: dict[Any, dict[str, Any]] = {
    modality: {"method": name, "method_output_name": "pooler_output"} for modality, name in METHODS.items()
}


def register() -> None:
    """Let transformers' auto classes know two towers and EfficientNet-lite, so that no folder's code need be run."""
    from transformers import AutoConfig, AutoModel

    from megapairs_hf.models import modeling_two_towers as modeling

    pairs: tuple[tuple[Any, Any], ...] = (
        (modeling.EfficientNetLiteConfig, modeling.EfficientNetLiteModel),
        (modeling.TwoTowersConfig, modeling.TwoTowersModel),
    )
    for config, model in pairs:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)


def is_dual_encoder(config: Any) -> bool:
    """Whether a configuration is that of a backbone for score fusion."""
    return str(config.model_type) in CLASSES


def no_dual_encoder(name: str, config: Any) -> ModelError:
    """The error for any other model."""
    return ModelError(
        f"{name} is a {config.model_type} model, but score fusion takes {', '.join(CLASSES)}; choose one of these, or"
        " a multimodal language model"
    )


def processing_kwargs(config: Any, tokenizer: Any) -> dict[str, dict[str, Any]]:
    """How texts are tokenized, where it is not padding to the longest."""
    if not str(config.text_config.model_type).startswith("siglip"):
        return {}
    longest = min(int(tokenizer.model_max_length), SIGLIP_TOKENS)
    return {"text": {"padding": "max_length", "max_length": longest, "return_attention_mask": False}}


def fuse(transformer: Any, name: str) -> None:
    """Make a dual encoder of a wrapped backbone: its class, its modalities, its texts.

    Args:
        transformer: a Sentence Transformers `Transformer` module.
        name: of the model, for the error.

    Raises:
        ModelError: the wrapped model is no dual encoder.
    """
    from megapairs_hf.models import modeling_mmret

    model = transformer.model
    if not is_dual_encoder(model.config):
        raise no_dual_encoder(name, model.config)
    if model.config.model_type != TWO_TOWERS:
        # the subclass adds a method and no state, so changing the class of the object is exact and copies nothing
        model.__class__ = getattr(modeling_mmret, CLASSES[model.config.model_type])
    if FUSED not in transformer.modality_config:
        joint = {"method": "get_multimodal_features", "method_output_name": "pooler_output"}
        transformer.modality_config = {**TOWERS, FUSED: joint}
        transformer.module_output_name = "sentence_embedding"
        transformer.input_formatter.supported_modalities = list(transformer.modality_config)
        transformer.processing_kwargs = processing_kwargs(model.config, transformer.tokenizer)
        limit = token_limit(model)
        if limit is not None:
            transformer.tokenizer.model_max_length = min(transformer.tokenizer.model_max_length, limit)


def finish_folder(folder: Path) -> None:
    """Put the modeling file beside the saved weights and name its class.

    Args:
        folder: as saved by Sentence Transformers.
    """
    from megapairs_hf.models import modeling_mmret

    if not (folder / "config.json").is_file():
        return  # adapters alone; their backbone is elsewhere
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    base = config["architectures"][0].removeprefix(modeling_mmret.PREFIX)
    config["architectures"] = [base]
    if config["model_type"] == TWO_TOWERS:
        modeling = "modeling_two_towers"
        config["auto_map"] = {"AutoConfig": f"{modeling}.TwoTowersConfig", "AutoModel": f"{modeling}.{base}"}
    else:
        modeling = "modeling_mmret"
        config["auto_map"] = {"AutoModel": f"{modeling}.{modeling_mmret.PREFIX}{base}"}
    shutil.copyfile(HERE / f"{modeling}.py", folder / f"{modeling}.py")
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
