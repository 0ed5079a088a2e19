"""Steps of a training recipe, at the largest micro-batch that fits: `megapairs train` as users run it, and then ended.

What surprises: the command is ended when it has written two steps into its log. A step is the time between the first
and the second, and the weights, which nobody wants, are never merged or saved.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import encode as encoding

ROOT = Path(__file__).parent.parent
WORDS = ("red", "blue", "large", "small", "at night", "with a dog", "from above", "in snow", "closer", "older")
# a query, a target and four negatives
IMAGES_OF_ROW = 6
POLL_S = 0.1


@dataclass(frozen=True)
class Recipe:
    """How a recipe is measured.

    Attributes:
        batch: queries per step.
        micro_batches: from the largest that may fit to the smallest.
        side: of the images, in pixels.
        forward_tflop: of a forward pass over the step, as recipes/README.md computes it.
        clip: which of `encode`'s models; None for a LLaVA.
    """

    batch: int
    micro_batches: tuple[int, ...]
    side: int
    forward_tflop: float
    clip: str | None = None


FULL = {
    "mmret_clip_base": Recipe(2048, (1024, 512, 256), 224, 370, "base"),
    "mmret_clip_large": Recipe(2048, (256, 128, 64), 224, 1690, "large"),
    # of the recipe's 144 queries, so that a step takes seconds
    "mmret_mllm": Recipe(8, (4, 2, 1), 512, 32_500 * 8 / 144),
}
# nobody computed what the tiny models take
TINY = {
    "mmret_clip_base": Recipe(8, (4,), 32, 0.001, "tiny"),
    "mmret_clip_large": Recipe(8, (4,), 32, 0.001, "tiny"),
    "mmret_mllm": Recipe(2, (2,), 32, 0.001),
}


def write_triplets(rows: int, side: int, folder: Path) -> str:
    """Triplets that share no image, as a published folder."""
    import datasets

    from megapairs_hf.dataset import Triplets
    from megapairs_hf.dataset.save import save_triplets

    def image(number: int) -> dict[str, Any]:
        coarse = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        sink = io.BytesIO()
        Image.fromarray(coarse).resize((side, side), Image.Resampling.BILINEAR).save(sink, "JPEG")
        return {"bytes": sink.getvalue(), "path": None}

    with ThreadPoolExecutor() as pool:
        files = list(pool.map(image, range(rows * IMAGES_OF_ROW)))
    names = [f"{number:06d}" for number in range(len(files))]
    rng = np.random.default_rng(0)
    columns: dict[str, list[Any]] = {"q_img": names[::IMAGES_OF_ROW], "t_img": names[1::IMAGES_OF_ROW]}
    columns["q_text"] = [[" ".join(rng.choice(WORDS, 4)) for _ in range(3)] for _ in range(rows)]
    starts = range(0, len(names), IMAGES_OF_ROW)
    columns["hns"] = [[names[start], *names[start + 2 : start + IMAGES_OF_ROW]] for start in starts]
    columns["relation"] = [["clip_image"]] * rows
    features = datasets.Features({"image_id": datasets.Value("string"), "image": datasets.Image()})
    images = datasets.Dataset.from_dict({"image_id": names, "image": files}, features=features)
    return save_triplets(Triplets(datasets.Dataset.from_dict(columns), images), folder).path


def steps_logged(work: Path) -> int:
    """Steps with a loss in the log of a run under this folder."""
    count = 0
    for log in work.rglob("training_log.jsonl"):
        for line in log.read_text().split("\n")[:-1]:
            count += "loss" in json.loads(line)
    return count


def used_gb() -> float:
    """Memory of the GPU that any process uses."""
    if not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**30


def attempt(command: list[str], work: Path) -> dict[str, Any] | None:
    """Seconds of a step and the most memory while it ran; None where the memory does not suffice.

    Raises:
        SystemExit: the command fails for another reason.
    """
    before, peak, times = used_gb(), 0.0, []
    with (work / "stderr").open("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, cwd=ROOT)
        try:
            while process.poll() is None and len(times) < 2:
                peak = max(peak, used_gb() - before)
                times += [time.monotonic()] * (min(2, steps_logged(work / "out")) - len(times))
                time.sleep(POLL_S)
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        message = errors.read()
    if len(times) == 2:
        return {"seconds_per_step": round(times[1] - times[0], 3), "peak_gb": round(peak, 1)}
    if "out of memory" in message.lower() or "memory is short" in message.lower():
        return None
    raise SystemExit(f"{' '.join(command)} ended after {len(times)} steps: {message[-1500:]}")


def train_step(name: str, folder: Path, *, tiny: bool) -> dict[str, Any]:
    """A step of a recipe at the largest micro-batch that fits: batch, seconds, memory, and operations a second."""
    recipe = (TINY if tiny else FULL)[name]
    if recipe.clip is not None:
        model = encoding.make_clip(folder, recipe.clip)
    else:
        model = encoding.make_llava(folder / "llava", tiny=tiny)
        torch.cuda.empty_cache()
    triplets = write_triplets(2 * recipe.batch, recipe.side, folder / "triplets")
    for micro_batch in recipe.micro_batches:
        work = folder / f"work{micro_batch}"
        work.mkdir()
        words = ["train", "--config", str(ROOT / "recipes" / f"{name}.yaml"), "--model", model, "--triplets", triplets]
        words += ["--work", str(work), "--out", str(work / "out" / "model"), "--max-steps", "4", "--log-every", "1"]
        words += ["--validation", "0"]
        words += ["--batch-size", str(recipe.batch), "--micro-batch", str(micro_batch)]
        words += ["--workers", "1"] if tiny else []
        measured = attempt([sys.executable, "-m", "megapairs_hf", *words], work)
        if measured is not None:
            # cached gradients cost two forward passes and a backward pass of two
            tflops = 4 * recipe.forward_tflop / measured["seconds_per_step"]
            return {"batch": recipe.batch, "micro_batch": micro_batch, **measured, "tflops": tflops}
    raise SystemExit(f"not even a micro-batch of {recipe.micro_batches[-1]} fits")
