"""The train stage: triplets and a CLIP become an MMRet."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.fingerprints import model_path, weights_fingerprint
from megapairs_hf.artifacts.workspace import TRAINING_LOG
from megapairs_hf.artifacts.writer import ArtifactWriter, Rejection, create_artifact
from megapairs_hf.core import distributed
from megapairs_hf.core.compatibility import require_adapters
from megapairs_hf.core.config import given_settings
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import ArtifactError, TrainingError
from megapairs_hf.core.progress import note
from megapairs_hf.models.loading import load_mmret, save_mmret
from megapairs_hf.models.lora import add_lora, unload_lora
from megapairs_hf.training.checkpoint import explained_save
from megapairs_hf.training.config import TrainConfig
from megapairs_hf.training.data.mmeb import open_source, source_fingerprint
from megapairs_hf.training.data.opened import opened_triplets
from megapairs_hf.training.data.triplets import TripletPool
from megapairs_hf.training.evaluate import EvalCallback, of_triplets
from megapairs_hf.training.retrieval_task import ContrastTask
from megapairs_hf.training.tracking import chosen_tracker
from megapairs_hf.training.trainer import run_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.dataset.triplets import Triplets
    from megapairs_hf.training.data.dataset import TrainDataset
    from megapairs_hf.training.data.opened import OpenedTriplets

    Evaluators = Mapping[str, Callable[[Any], Mapping[str, float]]]

RUN = ".run"
EVAL_QUERIES, EVAL_BATCH = 500, 64


def train(
    triplets: Triplets | Artifact | PathLike,
    out: str | Path,
    *,
    config: TrainConfig | None = None,
    work: str | Path = ".",
    overwrite: bool = False,
    evaluators: Evaluators | None = None,
    **settings: Any,
) -> Artifact:
    """Train an MMRet on triplets.

        train("you/your-pairs", "mmret", model="openai/clip-vit-base-patch16", steps=200, batch_size=64)

    Args:
        triplets: `Triplets` (of `load_triplets`), what the build stage made, its folder, or the id of such a data set
            on the Hub.
        out: the folder of the model; a Sentence Transformers model when done. A tracker's files go to a folder beside
            it, with `.tracking` after the name.
        config: the settings as one object.
        work: what `./…` in the model's path is relative to.
        overwrite: replace what is there.
        evaluators: functions by name that measure the model; they run every `eval_every` steps, besides retrieval on
            the validation split (`validation/recall@1`).
        **settings: the fields of `TrainConfig`, instead of `config`; the others have the paper's values.

    Returns:
        A `model` artifact; the same call again resumes a run that was interrupted.

    Raises:
        ConfigError: a setting is unknown or out of range.
        ModelError: the backbone cannot be loaded.
        TrainingError: the data do not fit the settings, or the loss is not a number.
        StaleArtifactError: `out` holds a run with other settings or inputs.
    """
    config = given_settings(TrainConfig, config, settings, "train")
    data = opened_triplets(triplets)
    inputs = {"triplets": data.fingerprint, "model": backbone_fingerprint(config, work)}
    inputs |= {f"sources[{i}]": source_fingerprint(source, work) for i, source in enumerate(config.sources)}

    def make(folder: Path) -> dict[str, Any]:
        # checked again when the loop begins; here before anything is loaded
        chosen_tracker(config.tracker)
        model = started_model(config, work)
        pools, weights, small = open_pools(data.split(config.split), config, work)
        task = ContrastTask(model, pools, weights, config)
        measures = _measures(model, data, config, evaluators or {})
        watch = EvalCallback(
            measures,
            config.eval_every if measures else 0,
            config.best_metric,
            config.patience,
            lambda path: save_mmret(model, path),
        )
        trained = run_loop(task, config, folder, "train", inputs, watch, Path(f"{out}.tracking"))
        # only the first process saves
        if config.lora_rank and distributed.is_main():
            # merged in bfloat16, most of what the adapters learned would be rounded away
            for parameter in model.parameters():
                parameter.data = parameter.data.float()
            unload_lora(model)
        left_out = [(name.partition("/")[2], "unreadable", error) for name, error in sorted(task.bad.items())] + small
        stats = {"rows": sum(pool.rows for pool in pools), **trained.stats()}
        return {"save": lambda path: save_mmret(model, path), "stats": stats, "rejected": left_out}

    return make_model(out, config, inputs, make, overwrite=overwrite)


def started_model(config: TrainConfig, work: str | Path) -> Any:
    """The model before its first step, with adapters and checkpointing as the settings say."""
    require("models", "train")
    if config.lora_rank:
        require_adapters("`lora_rank`")
    import torch

    weights = {"dtype": getattr(torch, config.dtype)}
    path = model_path(config.model, work)
    model = load_mmret(path, revision=config.revision, device="cpu", model_kwargs=weights)
    if config.lora_rank:
        # the adapters' first values are sampled
        torch.manual_seed(config.seed)
        add_lora(model, rank=config.lora_rank)
        # a step of 5e-6 is lost in bfloat16's eight bits
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if config.gradient_checkpointing:
        model[0].model.gradient_checkpointing_enable({"use_reentrant": False})
    width = model.get_embedding_dimension()
    if any(size > width for size in config.matryoshka):
        raise TrainingError(f"matryoshka is {list(config.matryoshka)}, but the model has only {width} dimensions")
    return model


def open_pools(
    triplets: Any, config: TrainConfig, work: str | Path
) -> tuple[list[TrainDataset], list[float], list[Rejection]]:
    """The rows of a run, the weight of each pool, and the pools of `sources` that are smaller than a batch.

    Raises:
        ArtifactError: a source cannot be opened.
        TrainingError: no triplet has one of the relations, or there are fewer than a batch.
    """
    pools: list[TrainDataset] = []
    weights: list[float] = []
    left_out: list[Rejection] = []
    if config.weight != 0:
        pool = TripletPool(triplets, config)
        if not pool.rows:
            raise TrainingError(f"no triplet has a relation of {list(config.relations)}; correct `relations`")
        if pool.rows < config.batch_size:
            raise TrainingError(
                f"batch_size is {config.batch_size}, but there are only {pool.rows:,} triplets; lower it"
            )
        pools, weights = [pool], [config.weight or pool.rows]
    for source in config.sources:
        for more, weight in zip(*open_source(source, config, work), strict=True):
            if more.rows < config.batch_size:
                note(f"{source.path} {source.name or ''}: {more.rows:,} rows of one kind are no whole batch")
                left_out.append((f"{source.path} {source.name or ''}", "fewer_than_a_batch", f"{more.rows} rows"))
            else:
                pools.append(more)
                weights.append(weight)
    if not pools:
        raise TrainingError(f"batch_size is {config.batch_size}, but no source has so many rows of one kind; lower it")
    return pools, weights, left_out


def _measures(
    model: Any, data: OpenedTriplets, config: TrainConfig, evaluators: Evaluators
) -> dict[str, Callable[[], Mapping[str, float]]]:
    """What is measured during training."""
    measures: dict[str, Callable[[], Mapping[str, float]]] = {}
    if config.eval_every:
        try:
            rows = data.split("validation")
        except ArtifactError as error:
            if not evaluators:
                if config.best_metric is not None:
                    raise TrainingError(f"best_metric needs a validation split: {error}") from error
                note(f"there is no validation split, so nothing is measured every {config.eval_every} steps")
        else:
            measures["validation"] = of_triplets(model, rows, EVAL_QUERIES, config.micro_batch or EVAL_BATCH)
    return measures | {name: functools.partial(measure, model) for name, measure in evaluators.items()}


def make_model(
    out: str | Path,
    config: Any,
    inputs: dict[str, str],
    make: Callable[[Path], dict[str, Any]],
    *,
    kind: str = "model",
    files: tuple[str, ...] = ("model.safetensors", "config.json"),
    overwrite: bool = False,
) -> Artifact:
    """A folder of weights as an artifact: locked, resumed, and never half written.

    Args:
        out: the folder.
        config: the settings.
        inputs: fingerprints.
        make: trains, with checkpoints and log in the folder it is given; returns how to save, and the stats.
        kind: of the artifact.
        files: whose hashes go into the manifest.
        overwrite: replace what is there.
    """
    writer = create_artifact(out, kind=kind, config=config, inputs=inputs, names=files, overwrite=overwrite)
    if isinstance(writer, Artifact):
        return writer
    with writer:
        run = Path(out) / ".parts" / RUN
        run.mkdir(parents=True, exist_ok=True)
        outcome = make(run)
        if distributed.is_main():
            _place(writer, run, Path(out), outcome["save"], files)
        return writer.finish(outcome["stats"], outcome.get("rejected", ()))


def _place(writer: ArtifactWriter, run: Path, out: Path, save: Callable[[Path], None], files: tuple[str, ...]) -> None:
    with explained_save(out):
        save(out)
        for log in run.rglob(TRAINING_LOG):
            target = out / log.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log, target)
    for i in range(len(files)):
        if not (out / files[i]).is_file():
            raise ArtifactError(f"{out} lacks {files[i]} after saving; run the command again")
        writer.adopt(i, 0, (), {})


def backbone_fingerprint(config: TrainConfig, work: str | Path) -> str:
    """What identifies the backbone."""
    return weights_fingerprint(model_path(config.model, work), config.revision)
