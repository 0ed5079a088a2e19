"""Two towers of published encoders, with heads that have not learned yet, as an MMRet.

What surprises: a part of a dual encoder (the image tower of a CLIP, say) is an encoder like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from megapairs_hf.core.checkpoints import check_keys, refuse_pickles
from megapairs_hf.core.errors import ModelError
from megapairs_hf.models.dual_encoder import register
from megapairs_hf.models.loading import explained, load_mmret

if TYPE_CHECKING:
    from collections.abc import Callable

    from megapairs_hf.models.model import MMRet

Part = Literal["vision_config", "text_config"]


@dataclass(frozen=True)
class TowerSource:
    """Where a tower comes from.

    Attributes:
        path: folder or Hub id.
        revision: on the Hub.
        pooling: `pooler`, `cls` or `mean`.
    """

    path: str
    revision: str | None
    pooling: str


def new_two_towers(
    image: TowerSource, text: TowerSource, *, dimension: int, head_size: int, head_dropout: float, seed: int
) -> MMRet:
    """Two towers with heads of random weights.

    Args:
        image: the image encoder.
        text: the text encoder.
        dimension: of the embeddings.
        head_size: width inside the heads.
        head_dropout: dropout inside the heads while they are trained.
        seed: of the heads' weights.

    Raises:
        ModelError: a tower cannot be loaded, lacks weights, or gives no embedding of one length.
    """
    import torch
    from transformers import AutoImageProcessor, AutoTokenizer, VisionTextDualEncoderProcessor

    from megapairs_hf.models.modeling_two_towers import TwoTowersConfig, TwoTowersModel

    register()
    towers = {"vision": _load(image, "vision_config"), "text": _load(text, "text_config")}
    processor = VisionTextDualEncoderProcessor(
        _located(AutoImageProcessor, image, backend="pil"), _located(AutoTokenizer, text)
    )
    settings: dict[str, Any] = {
        **{f"{name}_config": tower.config for name, tower in towers.items()},
        **{"image_pooling": image.pooling, "text_pooling": text.pooling},
        **{"projection_dim": dimension, "head_size": head_size, "head_dropout": head_dropout},
    }
    untried = TwoTowersModel(TwoTowersConfig(vision_size=1, text_size=1, **settings))
    sizes: dict[str, Any] = _sizes(untried, processor, image, text)
    torch.manual_seed(seed)
    model = TwoTowersModel(TwoTowersConfig(**sizes, **settings))
    model.vision_model.load_state_dict(towers["vision"].state_dict())
    model.text_model.load_state_dict(towers["text"].state_dict())
    # Sentence Transformers takes folders
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return load_mmret(Path(folder), device="cpu")


def _load(source: TowerSource, part: Part) -> Any:
    """An encoder, or the named part of a dual encoder, with every weight that is used."""
    from transformers import AutoConfig

    from megapairs_hf.models.modeling_two_towers import tower_class

    refuse_pickles(source.path)
    whole = _located(AutoConfig, source)
    config = getattr(whole, part, whole)
    loading = {"output_loading_info": True, "use_safetensors": True, "ignore_mismatched_sizes": True}
    model, info = _located(tower_class(config), source, config=config, dtype="float32", **loading)
    # a checkpoint may have more than the tower: its head, the other tower
    needed = {key: names for key, names in info.items() if key != "unexpected_keys"}
    if source.pooling != "pooler":
        needed["missing_keys"] = [key for key in needed["missing_keys"] if not key.startswith("pooler.")]
    check_keys(source.path, needed)
    # a folder of this machine would be published with the model
    model.config._name_or_path = ""
    return model.eval()


def _located(auto: Any, source: TowerSource, **settings: Any) -> Any:
    """What an auto class of transformers makes of a source; its code is never run."""
    settings |= {"revision": source.revision, "trust_remote_code": False}
    return explained(lambda: auto.from_pretrained(source.path, **settings), f"the encoder {source.path}")


def _sizes(model: Any, processor: Any, image: TowerSource, text: TowerSource) -> dict[str, int]:
    """What each tower gives, tried on a gray image and a word.

    Raises:
        ModelError: it is no embedding.
    """
    import torch
    from PIL import Image

    gray = processor.image_processor(images=[Image.new("RGB", (64, 64), (127, 127, 127))], return_tensors="pt")
    word = processor.tokenizer(["a photo"], return_tensors="pt")
    calls: dict[str, tuple[TowerSource, Callable[[], Any]]] = {
        "vision_size": (image, lambda: model.image_outputs(gray["pixel_values"])),
        "text_size": (text, lambda: model.text_outputs(word["input_ids"], word["attention_mask"])),
    }
    sizes = {}
    for name, (source, call) in calls.items():
        try:
            with torch.inference_mode():
                shape = tuple(call().shape)
        except (AttributeError, IndexError, TypeError):
            shape = ()
        if len(shape) != 2:
            raise ModelError(
                f"{source.path} with the pooling {source.pooling!r} gives no embedding of one length for each input;"
                " take another of pooler, mean, cls"
            )
        sizes[name] = shape[1]
    return sizes
