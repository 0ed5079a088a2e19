"""The train stage: triplets and a CLIP become an MMRet."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import COMPANIONS, MANIFEST, Artifact
from megapairs_hf.artifacts.fingerprints import model_path, sha256_of, weights_fingerprint
from megapairs_hf.artifacts.workspace import RESULTS, TRAINING_LOG
from megapairs_hf.artifacts.writer import ArtifactWriter, create_artifact
from megapairs_hf.core import distributed
from megapairs_hf.core.compatibility import require_adapters
from megapairs_hf.core.config import given_settings
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import ArtifactError, TrainingError
from megapairs_hf.core.progress import note
from megapairs_hf.models.loading import load_mmret, save_mmret
from megapairs_hf.models.lora import add_lora, unload_lora
from megapairs_hf.models.weighted_fusion import keep_fitted
from megapairs_hf.training.checkpoint import explained_save
from megapairs_hf.training.config import TrainConfig
from megapairs_hf.training.data.mmeb import source_fingerprint
from megapairs_hf.training.data.opened import opened_triplets
from megapairs_hf.training.data.pools import divide, fitted_batch, open_pools
from megapairs_hf.training.evaluate import EvalCallback
from megapairs_hf.training.retrieval_task import ContrastTask
from megapairs_hf.training.tracking import chosen_tracker
from megapairs_hf.training.trainer import run_loop
from megapairs_hf.training.validation import Validation, compared, open_validation
from megapairs_hf.training.verdict import FEWEST, SPLIT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.dataset.triplets import Triplets

    Evaluators = Mapping[str, Callable[[Any], Mapping[str, float]]]

RUN, FROZEN = ".run", "frozen"


def train(
    triplets: Triplets | Artifact | PathLike,
    out: str | Path,
    *,
    config: TrainConfig | None = None,
    work: str | Path = ".",
    overwrite: bool = False,
    evaluators: Evaluators | None = None,
    callbacks: Sequence[Any] = (),
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
        callbacks: `TrainerCallback`s of transformers, which the loop calls besides its own.
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
        divided = divide(data, config)
        used = fitted_batch(config, len(divided.train))
        pools, weights, small = open_pools(divided, used, work)
        task = ContrastTask(model, pools, weights, used)
        validation = open_validation(task, divided, used)
        if used.freeze:
            task.fill(folder / FROZEN, validation.keys() if validation else ())
        before = validation.before(folder) if validation else None
        watch = _watch(model, validation, used, evaluators or {})
        trained = run_loop(task, used, folder, "train", inputs, watch, Path(f"{out}.tracking"), callbacks)
        # in every process, since all measure what the first saves
        if config.lora_rank:
            unload_lora(model)
        records, facts = compared(validation, before)
        # of fewer queries the best weight is chance, and an index would start from it
        if validation and len(validation.queries) >= FEWEST and not task.joint:
            keep_fitted(model, facts["image_weight"])
        left_out = [(name.partition("/")[2], "unreadable", error) for name, error in sorted(task.bad.items())] + small
        stats = {"rows": sum(pool.rows for pool in pools), **trained.stats(), **facts}
        save = functools.partial(_save, model, records)
        return {"save": save, "stats": stats, "rejected": left_out}

    return make_model(out, config, inputs, make, overwrite=overwrite)


def started_model(config: TrainConfig, work: str | Path) -> Any:
    """The model before its first step, with adapters and checkpointing as the settings say."""
    require("models", "train")
    if config.lora_rank:
        require_adapters("`lora_rank`")
    import torch

    path = model_path(config.model, work)
    limits = {"min_pixels": config.min_pixels, "max_pixels": config.max_pixels}
    settings: dict[str, Any] = {
        "model_kwargs": {"dtype": getattr(torch, config.dtype)},
        "processor_kwargs": {name: value for name, value in limits.items() if value is not None},
    }
    model = load_mmret(path, revision=config.revision, device="cpu", **settings)
    if config.lora_rank:
        # the adapters' first values are sampled
        torch.manual_seed(config.seed)
        add_lora(model, rank=config.lora_rank, layers=config.lora_layers)
        # a step of 5e-6 is lost in bfloat16's eight bits
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if config.gradient_checkpointing:
        model[0].model.gradient_checkpointing_enable({"use_reentrant": False})
    width = model.get_embedding_dimension()
    if any(size > width for size in config.matryoshka):
        raise TrainingError(f"matryoshka is {list(config.matryoshka)}, but the model has only {width} dimensions")
    return model.to(distributed.choose_device())


def _watch(model: Any, validation: Validation | None, config: TrainConfig, evaluators: Evaluators) -> EvalCallback:
    """What is measured during training, and what follows from it.

    Raises:
        TrainingError: `best_metric` is of the validation split, and there is none because none was asked for.
    """
    measures: dict[str, Callable[[], Mapping[str, float]]] = {}
    if config.eval_every and validation is not None:
        measures[SPLIT] = validation.recall
    measures |= {name: functools.partial(measure, model) for name, measure in evaluators.items()}
    best, patience = config.best_metric, config.patience
    if best is not None and not measures and best.startswith(f"{SPLIT}/") and config.validation:
        note(f"nothing is held out, so {best} cannot be measured: every step is made, and the last weights are kept")
        best, patience = None, 0
    if best is not None and not measures:
        raise TrainingError(
            f"best_metric {config.best_metric} needs a validation split; set `validation`, or build with one"
        )
    every = config.eval_every if measures else 0
    return EvalCallback(measures, every, best, patience, lambda path: save_mmret(model, path))


def _save(model: Any, records: list[dict[str, Any]], path: Path) -> None:
    """The model, and beside it what was measured before and after."""
    save_mmret(model, path)
    if records:
        storage.write_bytes(path / RESULTS, "".join(json.dumps(record) + "\n" for record in records).encode())


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
        further: dict[str, str] = {}
        if distributed.is_main():
            _place(writer, run, Path(out), outcome["save"], files)
            further = _further_files(Path(out), files)
        return writer.finish(_threads() | outcome["stats"], outcome.get("rejected", ()), files=further)


def _threads() -> dict[str, int]:
    """How many threads the sums of this run were divided among, on which the last bits of weights depend."""
    import torch

    return {"cpu_threads": torch.get_num_threads()}


def _further_files(out: Path, files: tuple[str, ...]) -> dict[str, str]:
    """sha256 of what belongs to a model beside its weights; not of logs, which hold times."""
    left_out = {*files, MANIFEST, *COMPANIONS}
    names = [n for n in storage.list_files(out) if n not in left_out and "/." not in f"/{n}"]
    return {name: sha256_of(str(out / name)) for name in names if Path(name).name != TRAINING_LOG}


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
