"""An encoder that is a Python function of the user: `module:callable`, or `path/to/file.py:callable`.

    def encode(batch):            # PIL images, or texts; a class is called once without arguments, then as a function
        return np.stack([histogram(image) for image in batch])   # [B, D]

What surprises: this runs code, so it is done only for what a recipe or a flag of this very call names. The settings in
a manifest or in the plan of an interrupted run are compared with those of the call and never loaded.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.errors import ModelError
from megapairs_hf.embedding.length_batches import encode_by_length
from megapairs_hf.images.transforms import WholeImage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from megapairs_hf.embedding.config import ModelSettings


class PythonEncoder:
    """A function from a list of images or texts to embeddings [B, D]: an array, a tensor, or a list of rows."""

    def __init__(self, settings: ModelSettings, path: str, device: str) -> None:
        self.config, self.batch_size = settings.model, settings.batch_size
        self.transform = WholeImage() if self.config.input == "image" else None
        self.function = _instance(load_callable(path), device)

    def encode_images(self, batch: Any) -> torch.Tensor:
        """Embeddings (Tensor[B, D])."""
        from PIL import Image

        return self._call([Image.fromarray(pixels.numpy()) for pixels in batch])

    def encode_captions(self, captions: Sequence[str]) -> torch.Tensor:
        """Embeddings (Tensor[N, D])."""

        def encode(_: int, rows: list[int]) -> torch.Tensor:
            return self._call([captions[row] for row in rows])

        return encode_by_length([0] * len(captions), self.batch_size, None, encode, self.config.name)

    def _call(self, inputs: list[Any]) -> torch.Tensor:
        import torch

        try:
            result = self.function(inputs)
            return result if isinstance(result, torch.Tensor) else torch.from_numpy(np.asarray(result))
        except Exception as error:
            raise ModelError(
                f"the encoder {self.config.name} ({self.config.model}) failed with {type(error).__name__}: {error}; it"
                f" must take a list of {self.config.input}s and return one embedding for each, [B, D]"
            ) from error


def _instance(function: Any, device: str) -> Callable[..., Any]:
    """The function; of a class an instance, which is given `device` where it takes one."""
    if not inspect.isclass(function):
        return function
    takes_device = "device" in inspect.signature(function).parameters
    kind: Callable[..., Any] = function
    return kind(device=device) if takes_device else kind()


def load_callable(name: str) -> Callable[..., Any]:
    """What `module:callable` names.

    Raises:
        ModelError: there is no such module, or nothing in it that can be called.
    """
    module, _, attribute = name.rpartition(":")
    file = source_file(name)
    try:
        if module.endswith(".py"):
            spec = importlib.util.spec_from_file_location(f"megapairs_encoder_{Path(module).stem}", file)
            assert spec is not None and spec.loader is not None
            loaded = importlib.util.module_from_spec(spec)
            # so that what it defines can be pickled
            sys.modules[spec.name] = loaded
            spec.loader.exec_module(loaded)
        else:
            loaded = importlib.import_module(module)
    except Exception as error:
        raise ModelError(f"cannot import {module}: {type(error).__name__}: {error}; mend it, and try again") from error
    function = getattr(loaded, attribute, None)
    if not callable(function):
        raise ModelError(f"{module} has nothing to call named {attribute!r}; name a function or class of it")
    return function


def source_file(name: str) -> Path | None:
    """The file of the module that `module:callable` names; None where it has none. Modules of this folder are found.

    Raises:
        ModelError: there is no such module.
    """
    module = name.rpartition(":")[0]
    if module.endswith(".py"):
        if not Path(module).is_file():
            raise ModelError(f"there is no file {module}; name a Python file, or a module as Python imports it")
        return Path(module)
    # the installed command does not look in the current folder, where encoders of one's own mostly are
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        spec = importlib.util.find_spec(module)
    # of `a.b` the package `a` is imported
    except Exception as error:
        raise ModelError(f"cannot import {module}: {type(error).__name__}: {error}; check its name") from error
    if spec is None:
        raise ModelError(f"there is no module {module!r}; name it as Python imports it, or its file (my/file.py:f)")
    return Path(spec.origin) if spec.has_location and spec.origin else None


def source_fingerprint(name: str) -> str:
    """What identifies the function: its name and the bytes of its file."""
    file = source_file(name)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file is not None else ""
    return f"{name} {digest}"
