"""MMRet on a dual encoder: CLIP, SigLIP or a VisionTextDualEncoder (paper, section 3.2, eq. 2).

The model is the stock `Transformer` module followed by the stock `Normalize`; only the class of the wrapped backbone
is ours. What surprises: SigLIP was trained on texts padded to their full length without an attention mask, so the
settings that a saved model carries say so, and stock Sentence Transformers obeys them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from megapairs_hf.core.errors import ModelError

MODELING = Path(__file__).with_name("modeling_mmret.py")
FUSED = ("image", "text")
METHODS = {"text": "get_text_features", "image": "get_image_features"}
SIGLIP_TOKENS = 64


# by the `model_type` of the backbone; `modeling_mmret` holds the classes, which import transformers
CLASSES = {
    "clip": "MMRetCLIPModel",
    "siglip": "MMRetSiglipModel",
    "vision-text-dual-encoder": "MMRetVisionTextDualEncoderModel",
}
TOWERS: dict[Any, dict[str, Any]] = {
    modality: {"method": name, "method_output_name": "pooler_output"} for modality, name in METHODS.items()
}


def is_dual_encoder(config: Any) -> bool:
    """Whether a configuration is that of a backbone for score fusion."""
    return str(config.model_type) in CLASSES


def no_dual_encoder(name: str, config: Any) -> ModelError:
    """The error for any other model."""
    return ModelError(
        f"{name} is a {config.model_type} model, but score fusion takes {', '.join(CLASSES)}; choose one of these, or"
        " a multimodal language model"
    )


def processing_kwargs(model_type: str, tokenizer: Any) -> dict[str, dict[str, Any]]:
    """How texts are tokenized, where it is not padding to the longest."""
    if model_type != "siglip":
        return {}
    longest = min(int(tokenizer.model_max_length), SIGLIP_TOKENS)
    return {"text": {"padding": "max_length", "max_length": longest, "return_attention_mask": False}}


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
    # the subclass adds a method and no state, so changing the class of the loaded object is exact and copies nothing
    model.__class__ = getattr(modeling_mmret, CLASSES[model.config.model_type])
    if FUSED not in transformer.modality_config:
        joint = {"method": "get_multimodal_features", "method_output_name": "pooler_output"}
        transformer.modality_config = {**TOWERS, FUSED: joint}
        transformer.module_output_name = "sentence_embedding"
        transformer.input_formatter.supported_modalities = list(transformer.modality_config)
        transformer.processing_kwargs = processing_kwargs(str(model.config.model_type), transformer.tokenizer)
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
    shutil.copyfile(MODELING, folder / MODELING.name)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    base = config["architectures"][0].removeprefix(modeling_mmret.PREFIX)
    config["architectures"] = [base]
    config["auto_map"] = {"AutoModel": f"{MODELING.stem}.{modeling_mmret.PREFIX}{base}"}
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
