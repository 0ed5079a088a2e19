"""What `auto` stands for: the number format of the forward pass and the decoders that keep a device busy.

On a GPU that is bfloat16 where it has it. On a processor it is measured, because nothing else tells: with AMX a
ViT-B/32 in bfloat16 is three times as fast as in float32, with AVX-512 VNNI alone four times slower. What surprises:
the main process chooses once, and the choice is a setting of the embeddings like any other. It stands in their plan
and their manifest, which all processes and all later runs read, on whatever machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import MANIFEST, PLAN, read_json
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.core import distributed
from megapairs_hf.core.distributed import choose_device
from megapairs_hf.core.errors import ModelError
from megapairs_hf.core.platforms import cpu_cores
from megapairs_hf.core.progress import note
from megapairs_hf.embedding.config import EmbedConfig, EncoderConfig, ModelSettings, Precision
from megapairs_hf.embedding.encoders import load_encoder
from megapairs_hf.embedding.sources import pinned
from megapairs_hf.embedding.unit_embeddings import blank_embedding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from megapairs_hf.embedding.encoder import Encoder

# what these compute in is theirs to say
OF_THEIR_OWN = ("onnx", "python", "file")
# bfloat16 must be so much faster, and a pass of float32 last so many seconds: nobody waits for a tiny model
GAIN = 1.3
LEAST_SECONDS = 0.02
ENOUGH_SECONDS = 1.0
CPU_THREADS = 2
MOST_DECODERS = 16
HAS_BFLOAT16 = "import torch; print(torch.cuda.is_bf16_supported(including_emulation=False))"


@dataclass(frozen=True)
class Choice:
    """The number formats of a run.

    Attributes:
        dtypes: by encoder.
        encoders: that were loaded on the way, by name.
    """

    dtypes: dict[str, Precision]
    encoders: dict[str, Encoder] = field(default_factory=dict)


def agreed_dtypes(config: EmbedConfig, out: PathLike, loaded_from: Mapping[str, str], *, overwrite: bool) -> Choice:
    """The number format of each encoder, the same in every process; every process must call this.

    Args:
        config: the settings.
        out: the folder in which each encoder has one of its name.
        loaded_from: where each encoder is, by name.
        overwrite: whether what is there goes.
    """
    if config.dtype != "auto":
        return Choice(dict.fromkeys((model.name for model in config.encoders), config.dtype))
    choice = Choice({})
    if distributed.is_main():
        for model in config.encoders:
            earlier = None if overwrite else _recorded(join(out, model.name))
            if earlier is not None or model.library in OF_THEIR_OWN:
                choice.dtypes[model.name] = earlier or "float32"
        missing = [model for model in config.encoders if model.name not in choice.dtypes]
        if missing:
            dtype = _chosen(missing, config, loaded_from, choice.encoders)
            note(f"embed: dtype {dtype} for {', '.join(model.name for model in missing)}")
            choice.dtypes.update(dict.fromkeys((model.name for model in missing), dtype))
    return Choice(distributed.from_main(choice.dtypes), choice.encoders)


def _recorded(target: str) -> Precision | None:
    """The number format of the embeddings in a folder, begun or finished."""
    for name in (PLAN, MANIFEST):
        if storage.exists(join(target, name)):
            dtype: Precision | None = read_json(join(target, name)).get("config", {}).get("dtype")
            return dtype
    return None


def _chosen(
    models: Sequence[EncoderConfig], config: EmbedConfig, loaded_from: Mapping[str, str], loaded: dict[str, Encoder]
) -> Precision:
    device = choose_device(config.device)
    if device != "cpu":
        return device_dtype(device)
    # those of images take nearly all of the time
    costly = [model for model in models if model.input == "image"] or models
    seconds = {"float32": 0.0, "bfloat16": 0.0}
    for model in costly:
        path = loaded_from[model.name]
        wide = pinned(ModelSettings(model, "float32", config.batch_size, config.draft), path)
        encoder = load_encoder(wide, path, device)
        spent = _seconds(encoder)
        if spent >= LEAST_SECONDS:
            narrow = pinned(ModelSettings(model, "bfloat16", config.batch_size, config.draft), path)
            try:
                seconds["bfloat16"] += _seconds(load_encoder(narrow, path, device))
            except ModelError:
                # not finite in so few digits
                return "float32"
            seconds["float32"] += spent
        loaded[model.name] = encoder
    if seconds["float32"] <= GAIN * seconds["bfloat16"]:
        return "float32"
    loaded.clear()
    return "bfloat16" if seconds["bfloat16"] else "float32"


def _seconds(encoder: Encoder) -> float:
    """CPU seconds of one small forward pass, the least of a few; wall-clock time would measure the neighbors too."""
    least, start = float("inf"), time.process_time()
    while time.process_time() - start < min(ENOUGH_SECONDS, 3 * least):
        before = time.process_time()
        blank_embedding(encoder)
        least = min(least, time.process_time() - before)
    return least


def device_dtype(device: str | None) -> Precision:
    """The number format that a device is quick in; float32 for what is no GPU of CUDA.

    Args:
        device: None for the first GPU where there is one, without waking it, since processes may yet be forked.
    """
    if device is None:
        if find_spec("torch") is None:
            return "float32"
        import torch

        device = "cuda" if torch.cuda.device_count() else "cpu"
    if not device.startswith("cuda"):
        return "float32"
    return "bfloat16" if _has_bfloat16() else "float16"


@lru_cache
def _has_bfloat16() -> bool:
    """Whether the GPU has bfloat16; where this process has not begun to use it, another one asks."""
    import torch

    if torch.cuda.is_initialized():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    command = [sys.executable, "-c", HAS_BFLOAT16]
    asked = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - a constant
    return asked.stdout.strip() == "True"


def decoders(threads: int | None, workers: int | None, device: str) -> tuple[int, int]:
    """Decoding threads and processes: as set, else two threads beside a CPU's forward pass, and processes for a GPU.

    Args:
        threads: None for as many as the device wants.
        workers: None for as many as the device wants; 0 decodes in threads.
        device: of the model.
    """
    cores = max(1, cpu_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    on_gpu = device != "cpu"
    if workers is None:
        # one core launches the forward passes
        workers = min(MOST_DECODERS, max(1, cores - 1)) if on_gpu and threads is None else 0
    return threads or (min(MOST_DECODERS, cores) if on_gpu else CPU_THREADS), workers
