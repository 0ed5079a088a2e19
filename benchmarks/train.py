"""How fast the training loop is, and how little memory it takes, as ratios measured in one run.

    python benchmarks/train.py [--quick] [--only plain dedupe siblings bf16 memory st waiting reading]

The model is a small two-tower CLIP with random weights, the data are triplets in the released set's form: a query, its
retrieved images as targets in turn, the others as negatives, hns[0] the query image. Things that are compared take
turns (A B A B …) on one thread, and each ratio is that of the medians of processor seconds (decoding threads counted),
since a shared machine is never quiet.

- `train_step_vs_plain`: a step of the loop over a plain torch loop that does the same forward and backward passes on
  tensors that lie ready. Images are decoded already, as by processes that have cores of their own.
- `train_dedupe_speedup`: every column by itself (six image passes a triplet, ready tensors) over the loop.
- `train_siblings_speedup`: the same over the loop with `group_siblings: 4`.
- `train_bf16_speedup`: the loop in float32 over the loop in bf16.
- `train_frozen_vs_full`: the loop over the loop with `freeze: [vision, text]`, whose tower outputs are there already.
- `train_memory_2048_vs_256`: peak memory of a process with batch 2,048 over that with batch 256 (tiny model, cached
  gradients), apart from the logits and their mask (queries of a process × candidates of all): the loss is one without
  any. The peaks with them are printed too.
- `train_workers_busy`: images per second over those that the workers can read, where an image takes 5 ms to read and
  the model a third of a step's reading (both are sleeps, so that cores are no bound).
- `train_decodes_per_image`: images decoded over distinct images of the steps, with cached gradients.
- `train_beside_one_busy_process`: steps per second on all cores beside a process that computes without end, over those
  on the idle machine, both with the OpenMP setting that `megapairs demo` and recipes for small machines choose.
- `train_waiting_idle`: steps per second on the idle machine with that setting, over those with OpenMP's default.
- `train_vs_st`: a step of SentenceTransformerTrainer with CachedMultipleNegativesRankingLoss over a step of the loop
  with cached gradients, the same triplets, batch and micro-batch.
"""

from __future__ import annotations

import argparse
import copy
import io
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import datasets
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cross_entropy, normalize
from transformers import TrainerCallback

from megapairs_hf.core.openmp import CHOICES, PASSIVE
from megapairs_hf.core.progress import Progress
from megapairs_hf.dataset import Triplets, training_view
from megapairs_hf.models import load_mmret
from megapairs_hf.models.small_encoders import SmallModelConfig, small_clip, train_tokenizer
from megapairs_hf.training import TrainConfig, retrieval_task
from megapairs_hf.training.data.batch import Batch
from megapairs_hf.training.data.loader import ImageBatch
from megapairs_hf.training.data.triplets import TripletPool
from megapairs_hf.training.encoder import prepared
from megapairs_hf.training.retrieval_task import ContrastTask
from megapairs_hf.training.tracking import Log
from megapairs_hf.training.trainer import make_trainer

if TYPE_CHECKING:
    from collections.abc import Callable

    from megapairs_hf.training.task_trainer import TaskTrainer

PARTS = ("plain", "dedupe", "siblings", "bf16", "frozen", "memory", "st", "waiting", "reading")
SMALL = SmallModelConfig(96, 16, 192, 3, 4, 192, 400, 24)
TINY = SmallModelConfig(32, 16, 32, 2, 2, 24, 400, 24)
# of the demo's recipe
DEMO = SmallModelConfig(48, 8, 128, 3, 4, 128, 400, 24)
TURN_S = 4.0
WORKERS = 4
RETRIEVED = 6
WORDS = ("red", "blue", "large", "small", "at night", "with a dog", "from above", "in snow", "closer", "older")


def made_triplets(queries: int, side: int) -> Triplets:
    """Triplets in the form of the released set: each retrieved image is a target, the others its negatives."""
    rng = np.random.default_rng(0)
    rows: dict[str, list[Any]] = {"q_img": [], "q_text": [], "t_img": [], "hns": [], "relation": []}
    names, files = [], []
    for query in range(queries):
        own = [f"{query}-{i}" for i in range(RETRIEVED + 1)]
        for name in own:
            coarse = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            sink = io.BytesIO()
            Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(sink, "JPEG")
            names.append(name)
            files.append({"bytes": sink.getvalue(), "path": None})
        for target in own[1:]:
            rows["q_img"].append(own[0])
            rows["q_text"].append([" ".join(rng.choice(WORDS, 4)) for _ in range(3)])
            rows["t_img"].append(target)
            rows["hns"].append([own[0], *(name for name in own[1:] if name != target)])
            rows["relation"].append(["clip_image"])
    features = datasets.Features({"image_id": datasets.Value("string"), "image": datasets.Image()})
    images = datasets.Dataset.from_dict({"image_id": names, "image": files}, features=features)
    return Triplets(datasets.Dataset.from_dict(rows), images)


def made_model(folder: Path, sizes: SmallModelConfig) -> Any:
    place = folder / f"clip-{sizes.width}"
    if not place.exists():
        torch.manual_seed(0)
        model, processor = small_clip(sizes, train_tokenizer([" ".join(WORDS)] * 50, sizes))
        model.save_pretrained(place)
        processor.save_pretrained(place)
    return load_mmret(str(place), device="cpu")


class Steps(TrainerCallback):
    """A run whose steps are made one at a time, by a thread that waits in between; nothing is saved.

    Args:
        trainer: of the run.
    """

    def __init__(self, trainer: TaskTrainer) -> None:
        self.trainer, self.task = trainer, trainer.task
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.threads = torch.get_num_threads()
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._train, daemon=True)
        trainer.add_callback(self)

    def _train(self) -> None:
        torch.set_num_threads(self.threads)
        self.go.acquire()
        try:
            with tempfile.TemporaryDirectory() as folder:
                log = Log(Path(folder) / "log.jsonl", 0)
                self.trainer.run(log, Progress("bench", self.trainer.config.last_step, "steps"), None)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.done.release()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save nothing."""
        control.should_save = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Wait for one's turn; what follows a step, such as its line in the log, belongs to it."""
        if state.global_step:
            self.done.release()
            self.go.acquire()

    def step(self) -> float:
        """Make the next step.

        Returns:
            The processor seconds that it took, those of the loop around it counted.
        """
        began = time.process_time()
        if not self.thread.is_alive():
            self.thread.start()
        self.go.release()
        self.done.acquire()
        if self.error:
            raise self.error
        return time.process_time() - began


def made_run(model: Any, triplets: Triplets, folder: Path, **settings: Any) -> Steps:
    values = {"steps": 1000, "lr": 1e-5, "tracker": "none", "batch_size": 64, "log_every": 1, **settings}
    config = TrainConfig(**values, checkpoint_every=10**9)
    task = ContrastTask(model, [TripletPool(triplets, config)], [1], config)
    return Steps(make_trainer(task, config, folder / "run", "bench", {}))


class Ready:
    """Reads images that lie in memory, each in so many seconds; travels to worker processes."""

    def __init__(self, pixels: dict[str, torch.Tensor], seconds: float = 0.0) -> None:
        self.pixels, self.seconds = pixels, seconds

    def __getitems__(self, keys: list[tuple[int, str]]) -> ImageBatch:
        time.sleep(self.seconds * len(keys))
        return ImageBatch([torch.stack([self.pixels[name] for _, name in keys])])


def took(act: Callable[[], Any]) -> float:
    began = time.process_time()
    act()
    return time.process_time() - began


def turns(acts: dict[str, Callable[[int], Any]], count: int) -> dict[str, float]:
    """Median seconds of each act; they take turns, and the first turn does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in acts}
    for turn in range(count + 1):
        for name, act in acts.items():
            seconds[name].append(act(turn))
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def filled(run: Steps) -> Steps:
    """The run with every image decoded before, as if others had done it."""
    task: Any = run.task
    names = list(task.pools[0].triplets.images["image_id"])
    (pixels,) = task.images.load(0, names).parts
    task.images.reader = Ready(dict(zip(names, pixels, strict=True)))
    return run


def plain_step(task: Any, module: Any, optimizer: Any, step: int) -> float:
    """The same passes on ready tensors, written as one would without this package."""
    batch = task.batch(step, 0, 1)
    chunks = []
    for numbers in batch.chunks(task.size):
        parts = [batch.inputs[i] for i in numbers]
        images = task.images.load(0, [part.image for part in parts if part.image is not None])
        chunks.append(prepared(task.model, parts, images, torch.device("cpu")))
    queries, candidates = torch.from_numpy(batch.queries), torch.from_numpy(batch.candidates)
    wrong = torch.from_numpy(batch.mask()[0])

    def act() -> None:
        embeddings = module(chunks)
        padded = torch.cat([embeddings, embeddings.new_zeros(1, embeddings.shape[1])])
        left, right = normalize(padded[queries].sum(1), dim=-1), normalize(padded[candidates].sum(1), dim=-1)
        logits = (left @ right.T / 0.02).masked_fill(wrong, -torch.inf)
        cross_entropy(logits, batch.width * torch.arange(len(queries))).backward()
        finish(module, optimizer)

    return took(act)


def naive_step(task: Any, module: Any, optimizer: Any, step: int) -> float:
    """Every column by itself: query image, query text, positive, four negatives; ready tensors."""
    batch = task.batch(step, 0, 1)
    table = batch.candidates[:, 0].reshape(-1, batch.width)
    columns = [batch.queries[:, 0], batch.queries[:, 1], *table.T]
    ready = []
    for column in columns:
        parts = [batch.inputs[i] for i in column]
        images = task.images.load(0, [part.image for part in parts if part.image is not None])
        ready.append(prepared(task.model, parts, images, torch.device("cpu")))

    def act() -> None:
        image, text, *others = [module([column]) for column in ready]
        left = normalize(image + text, dim=-1)
        right = normalize(torch.stack(others, 1).flatten(0, 1), dim=-1)
        cross_entropy(left @ right.T / 0.02, batch.width * torch.arange(len(left))).backward()
        finish(module, optimizer)

    return took(act)


def finish(module: Any, optimizer: Any) -> None:
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def other(run: Steps) -> tuple[Any, Any]:
    """A copy of the model with its own optimizer."""
    module = copy.deepcopy(run.trainer.model).train()
    return module, torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-5)


def frozen_step(triplets: Triplets, folder: Path, count: int) -> dict[str, Callable[[int], float]]:
    """A step of the heads alone, on tower outputs that were computed before."""
    run = made_run(made_model(folder, SMALL), triplets, folder, freeze=("vision", "text"), steps=count + 1)
    task: Any = run.task
    task.fill(folder / "frozen")
    return {"frozen": lambda turn: run.step()}


def speeds(names: set[str], triplets: Triplets, folder: Path, count: int) -> list[tuple[str, float]]:
    ratios = []
    loop = filled(made_run(made_model(folder, SMALL), triplets, folder))
    module, optimizer = other(loop)
    acts: dict[str, Callable[[int], float]] = {"loop": lambda turn: loop.step()}
    if "plain" in names:
        acts["plain"] = lambda turn: plain_step(loop.task, module, optimizer, turn)
    if names & {"dedupe", "siblings"}:
        acts["naive"] = lambda turn: naive_step(loop.task, module, optimizer, turn)
    if "siblings" in names:
        grouped = filled(made_run(made_model(folder, SMALL), triplets, folder, group_siblings=4))
        acts["siblings"] = lambda turn: grouped.step()
    acts |= frozen_step(triplets, folder, count) if "frozen" in names else {}
    seconds = turns(acts, count)
    if "bf16" in names:
        narrow = filled(made_run(made_model(folder, SMALL), triplets, folder, mixed_precision="bf16"))
        pair = {"float32": acts["loop"], "bf16": lambda turn: narrow.step()}
        seconds |= turns(pair, 1)
    for name, value in seconds.items():
        print(f"{name}: {value:.2f} processor seconds a step of 64 triplets")
    if "plain" in names:
        ratios.append(("train_step_vs_plain", seconds["loop"] / seconds["plain"]))
    if "dedupe" in names:
        ratios.append(("train_dedupe_speedup", seconds["naive"] / seconds["loop"]))
    if "siblings" in names:
        ratios.append(("train_siblings_speedup", seconds["naive"] / seconds["siblings"]))
    ratios += [("train_frozen_vs_full", seconds["loop"] / seconds[name]) for name in seconds if name == "frozen"]
    if "bf16" in names:
        ratios.append(("train_bf16_speedup", seconds["float32"] / seconds["bf16"]))
    return ratios


def against_trainer(triplets: Triplets, folder: Path, count: int) -> list[tuple[str, float]]:
    """Steps of both trainers in turns of one run each, because the other trainer cannot be stopped in between."""
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.begun: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun.append(time.process_time())

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.begun.append(time.process_time())

    loop = made_run(made_model(folder, SMALL), triplets, folder, micro_batch=64)
    ours = [loop.step() for _ in range(count + 1)]
    model = made_model(folder, SMALL)
    settings = SentenceTransformerTrainingArguments(
        output_dir=str(folder / "st"), max_steps=count + 1, per_device_train_batch_size=64, learning_rate=1e-5,
        use_cpu=True, save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    clock = Clock()
    loss = CachedMultipleNegativesRankingLoss(model, scale=50.0, mini_batch_size=64)
    view = training_view(triplets, negatives=4)
    SentenceTransformerTrainer(model=model, args=settings, train_dataset=view, loss=loss, callbacks=[clock]).train()
    theirs = np.diff(clock.begun)[1:]
    again = [loop.step() for _ in range(count)]
    mine, other_seconds = statistics.median([*ours[1:], *again]), statistics.median(theirs)
    print(f"loop, gradients cached: {mine:.2f} processor seconds a step; the other trainer: {other_seconds:.2f}")
    return [("train_vs_st", other_seconds / mine)]


def without_logits(outputs: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A loss of the embeddings alone, half the sum of their squares, and its gradient."""
    return outputs.square().sum() / 2, outputs


def memory_child(batch: int, logits: bool) -> None:
    """Two steps; prints the peak in MB."""
    if not logits:
        retrieval_task.loss_and_gradient = without_logits
        Batch.mask = lambda *_: (np.zeros((1, 1), bool), (0, 0, 0))  # type: ignore[method-assign, assignment]
    folder = Path(tempfile.mkdtemp())
    torch.set_num_threads(1)
    settings = {"batch_size": batch, "micro_batch": 64}
    run = made_run(made_model(folder, TINY), made_triplets(400, 32), folder, **settings)
    for _ in range(2):
        run.step()
    # getrusage would tell the parent's peak, which a child inherits
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def memory() -> list[tuple[str, float]]:
    peaks = {}
    for batch, logits in itertools.product((256, 2048), (True, False)):
        command = [sys.executable, __file__, "--memory-child", str(batch), *(["--logits"] if logits else [])]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[batch, logits] = float(done.stdout.split()[-1])
        print(f"batch {batch}: peak {peaks[batch, logits]:,.0f} MB with{'' if logits else 'out'} the logits")
    return [("train_memory_2048_vs_256", peaks[2048, False] / peaks[256, False])]


def reading(triplets: Triplets, folder: Path, count: int) -> list[tuple[str, float]]:
    """How busy the workers are where they are the bound, and how often an image is decoded."""
    seconds, steps = 0.005, 4 + count
    settings = {"micro_batch": 64, "steps": steps}
    run = filled(made_run(made_model(folder, TINY), triplets, folder, workers=WORKERS, **settings))
    task: Any = run.task
    task.images.reader.seconds = seconds
    images, began = 0, 0.0
    for step in range(steps):
        if step == 4:
            # the workers have started, and what they read ahead of the first steps is used up
            began = time.monotonic()
        read = sum(1 for part in task.step_images.begin(step) for _ in part.each())
        images += read if step >= 4 else 0
        time.sleep(read * seconds / WORKERS / 3)
    rate = images / (time.monotonic() - began)
    task.close()
    print(f"{rate:.0f} images per second by {WORKERS} workers of {1 / seconds:.0f}")

    run = made_run(made_model(folder, TINY), triplets, folder, **settings)
    task, decoded = run.task, [0]
    prepare = task.images.reader.prepare

    def counted(image: Image.Image) -> Any:
        decoded[0] += 1
        return prepare(image)

    task.images.reader.prepare = counted
    distinct = 0
    for _ in range(steps):
        run.step()
        distinct += run.trainer.output.counts["images"]
    task.close()
    print(f"{decoded[0]:,} images decoded for {distinct:,}")
    return [("train_workers_busy", rate * seconds / WORKERS), ("train_decodes_per_image", decoded[0] / distinct)]


def waiting_child() -> None:
    """For every line of standard input, train for a turn and print the steps per second."""
    folder = Path(tempfile.mkdtemp())
    triplets = made_triplets(60, 48)
    run = filled(made_run(made_model(folder, DEMO), triplets, folder, batch_size=32))
    run.step()
    print("ready", flush=True)
    number = 0
    for _ in sys.stdin:
        began, first = time.monotonic(), number
        while time.monotonic() - began < TURN_S:
            number += 1
            run.step()
        print((number - first) / (time.monotonic() - began), flush=True)


def waiting(count: int) -> list[tuple[str, float]]:
    """Two processes that train in turns, one for each setting; the first of them beside a busy process too."""
    usual = {name: value for name, value in os.environ.items() if name not in (*CHOICES, "OMP_NUM_THREADS")}
    command = [sys.executable, __file__, "--waiting-child"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    trainers = [subprocess.Popen(command, env=usual | chosen, **pipes) for chosen in (PASSIVE, {})]
    rates: dict[str, list[float]] = {"passive, idle": [], "passive, beside one busy process": [], "spinning, idle": []}
    try:
        for trainer in trainers:
            trainer.stdout.readline()
        for _ in range(count):
            rates["passive, idle"].append(one_turn(trainers[0]))
            rates["spinning, idle"].append(one_turn(trainers[1]))
            busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            try:
                rates["passive, beside one busy process"].append(one_turn(trainers[0]))
            finally:
                busy.kill()
                busy.wait()
    finally:
        for trainer in trainers:
            trainer.stdin.close()
            trainer.wait()
    median = {name: statistics.median(values) for name, values in rates.items()}
    for name, value in median.items():
        print(f"{name}: {value:.2f} steps per second on {os.cpu_count()} cores")
    return [
        ("train_beside_one_busy_process", median["passive, beside one busy process"] / median["passive, idle"]),
        ("train_waiting_idle", median["passive, idle"] / median["spinning, idle"]),
    ]


def one_turn(trainer: Any) -> float:
    trainer.stdin.write("go\n")
    trainer.stdin.flush()
    return float(trainer.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="three turns instead of nine")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--memory-child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--logits", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--waiting-child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.waiting_child:
        waiting_child()
        return
    if options.memory_child:
        memory_child(options.memory_child, options.logits)
        return
    torch.set_num_threads(1)
    names, count, ratios = set(options.only), 3 if options.quick else 9, []
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        triplets = made_triplets(800, 112) if names - {"memory", "waiting"} else made_triplets(1, 8)
        if names - {"memory", "st", "waiting", "reading"}:
            ratios += speeds(names, triplets, folder, count)
        if "st" in names:
            ratios += against_trainer(triplets, folder, count)
        if "memory" in names:
            ratios += memory()
        if "reading" in names:
            ratios += reading(triplets, folder, count)
        if "waiting" in names:
            ratios += waiting(count)
    for name, value in ratios:
        print(f"ratio {name} {value:.3f}")


if __name__ == "__main__":
    main()
