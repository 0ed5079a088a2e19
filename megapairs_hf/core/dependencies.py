"""What each extra of the package brings, and the one sentence where it is needed and not there.

The base makes a corpus, asks servers, builds, reads and shares data sets. Everything else calls `require` before it
begins, with no import: looking for an installed package costs microseconds. What surprises: the names here are those
that Python imports (`faiss`), which pip knows by others (`faiss-cpu`, `faiss-gpu-cu12`); any package that gives the
module will do.
"""

from __future__ import annotations

from importlib.util import find_spec

from megapairs_hf.core.errors import MissingDependencyError

# what is imported of each extra of setup.cfg; of two extras with one package, the first is named
EXTRAS = {
    "models": ("torch", "transformers", "sentence_transformers", "accelerate", "peft", "tokenizers", "safetensors"),
    "mine": ("torch", "faiss", "numba"),
    "eva": ("open_clip", "torchvision"),
    "evaluate": ("evaluate",),
    "mteb": ("mteb",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "track": ("tensorboard", "trackio"),
    "wandb": ("wandb",),
    "report": ("matplotlib",),
}


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
