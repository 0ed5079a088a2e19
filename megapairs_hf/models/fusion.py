"""MMRet as a plain Sentence Transformers model: build, load and save.

The model is the stock `Transformer` module followed by the stock `Normalize`; only the class of the wrapped CLIP is
ours. What surprises: `SentenceTransformer(path)` without `trust_remote_code` gives text and image embeddings and
refuses the joint input; `load_mmret(path)` gives all three and executes no code from the folder.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.errors import ModelError

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MODELING = Path(__file__).with_name("modeling_mmret.py")
AUTO_MAP = {"AutoModel": "modeling_mmret.MMRetCLIPModel"}
FUSED = ("image", "text")


def modality_config() -> dict[Any, dict[str, str]]:
    """Which method of the model serves which kind of input, in the form of Sentence Transformers."""
    return {
        "text": {"method": "get_text_features", "method_output_name": "pooler_output"},
        "image": {"method": "get_image_features", "method_output_name": "pooler_output"},
        FUSED: {"method": "get_multimodal_features", "method_output_name": "pooler_output"},
    }


def build_mmret(backbone: str, *, revision: str | None = None, device: str | None = None) -> SentenceTransformer:
    """Make an MMRet of a CLIP checkpoint.

    Args:
        backbone: folder or Hub id of a transformers CLIP with its processor.
        revision: revision on the Hub.
        device: where to put it; None lets Sentence Transformers choose.

    Returns:
        A Sentence Transformers model for text, images, and `{"image": …, "text": …}` together.

    Raises:
        ModelError: there is no such model, or it is no CLIP.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Normalize

    keywords = {"revision": revision} if revision else {}
    try:
        transformer = Transformer(
            backbone,
            modality_config=modality_config(),
            module_output_name="sentence_embedding",
            model_kwargs=dict(keywords),
            processor_kwargs={**keywords, "backend": "pil"},
            config_kwargs=dict(keywords),
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the backbone {backbone}: {first_line(error)}") from error
    fuse(transformer, backbone)
    return SentenceTransformer(modules=[transformer, Normalize()], device=device, similarity_fn_name="cosine")


def load_mmret(path: str, *, revision: str | None = None, device: str | None = None) -> SentenceTransformer:
    """Load a saved MMRet, or a plain CLIP as an MMRet.

    Args:
        path: folder or Hub id.
        revision: revision on the Hub.
        device: where to put it; None lets Sentence Transformers choose.

    Returns:
        A Sentence Transformers model for text, images, and both together; no code from the folder is executed.

    Raises:
        ModelError: there is no such model, or it is no CLIP.
    """
    from sentence_transformers import SentenceTransformer

    folder = Path(path)
    if folder.is_dir() and not (folder / "modules.json").is_file():
        return build_mmret(path, revision=revision, device=device)
    try:
        model = SentenceTransformer(path, revision=revision, device=device, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load the model {path}: {first_line(error)}") from error
    fuse(model[0], path)
    if FUSED not in model[0].modality_config:
        return build_mmret(path, revision=revision, device=device)
    return model


def first_line(error: Exception) -> str:
    """The first line of a library's message."""
    return str(error).strip().split("\n", 1)[0]


def fuse(transformer: Any, name: str) -> None:
    """Give the wrapped CLIP the method for joint inputs.

    Args:
        transformer: a Sentence Transformers `Transformer` module.
        name: of the model, for the error.

    Raises:
        ModelError: the wrapped model is no CLIP.
    """
    from transformers import CLIPModel

    from megapairs_hf.models.modeling_mmret import MMRetCLIPModel

    model = getattr(transformer, "model", None)
    if not isinstance(model, CLIPModel):
        raise ModelError(f"{name} is a {type(model).__name__}, but MMRet by score fusion needs a CLIPModel")
    # the subclass adds a method and no state, so changing the class of the loaded object is exact and copies nothing
    model.__class__ = MMRetCLIPModel


def save_mmret(model: SentenceTransformer, path: str | Path) -> None:
    """Save an MMRet so that it loads with and without this package.

    Args:
        model: as made by `build_mmret` or `load_mmret`.
        path: the folder.
    """
    folder = Path(path)
    # the automatic card copies training pictures into itself and fails on joint inputs
    model.save(str(folder), create_model_card=False, safe_serialization=True)
    shutil.copyfile(MODELING, folder / MODELING.name)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["auto_map"] = AUTO_MAP
    config["architectures"] = ["CLIPModel"]
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
