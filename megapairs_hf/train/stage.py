"""The train stage: triplets and a CLIP become an MMRet."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf import launch, storage
from megapairs_hf.artifact import Artifact, model_place, weights_fingerprint
from megapairs_hf.artifact_writer import ArtifactWriter, create_artifact
from megapairs_hf.config import config_hash
from megapairs_hf.dataset.load import load_triplets
from megapairs_hf.errors import ArtifactError, TrainingError
from megapairs_hf.models.fusion import build_mmret, save_mmret
from megapairs_hf.train.loop import LOG, run_loop
from megapairs_hf.train.pixels import PixelCache
from megapairs_hf.train.tasks import TripletTask

if TYPE_CHECKING:
    from collections.abc import Callable

    from megapairs_hf.train.config import TrainConfig

RUN = ".run"


@dataclass(frozen=True)
class InitConfig:
    """Settings of an MMRet that was not trained.

    Attributes:
        model: the backbone.
        revision: of the backbone on the Hub.
    """

    model: str
    revision: str | None = None


def train_mmret(
    triplets: Artifact, *, config: TrainConfig, out: str | Path, work: str | Path = ".", overwrite: bool = False
) -> Artifact:
    """Train an MMRet on triplets.

    Args:
        triplets: as made by the build stage.
        config: the settings.
        out: the folder of the model; a Sentence Transformers model when done.
        work: what `./…` in the model's path is relative to.
        overwrite: throw away what is there.

    Returns:
        A `model` artifact.

    Raises:
        ModelError: the backbone cannot be loaded.
        TrainingError: the data do not fit the settings, or the loss is not a number.
        StaleArtifactError: `out` holds a run with other settings or inputs.
    """
    inputs = {"triplets": triplets.fingerprint, "model": backbone_fingerprint(config, work)}

    def make(folder: Path) -> dict[str, Any]:
        model = build_mmret(model_place(config.model, work), revision=config.revision, device="cpu")
        data = load_triplets(triplets.path, config.split)
        pixels = PixelCache(data.image, model[0].processor.image_processor, config.cache_gb)
        task = TripletTask(model, data, pixels, config)
        if task.rows == 0:
            raise TrainingError(f"no triplet has a relation of {list(config.relations)}; correct `relations`")
        log = run_loop(task, config, folder, "train", config_hash(config) + str(inputs))
        return {"save": lambda path: save_mmret(model, path), "stats": {"rows": task.rows, **last(log, config.steps)}}

    return make_model(out, config, inputs, make, overwrite=overwrite)


def init_mmret(config: TrainConfig, *, out: str | Path, work: str | Path = ".", overwrite: bool = False) -> Artifact:
    """The same model before training, to compare with.

    Args:
        config: whose `model` to take.
        out: the folder of the model.
        work: what `./…` in the model's path is relative to.
        overwrite: throw away what is there.
    """
    settings = InitConfig(config.model, config.revision)

    def make(folder: Path) -> dict[str, Any]:
        model = build_mmret(model_place(config.model, work), revision=config.revision, device="cpu")
        return {"save": lambda path: save_mmret(model, path), "stats": {"steps": 0}}

    return make_model(out, settings, {"model": backbone_fingerprint(config, work)}, make, overwrite=overwrite)


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
        overwrite: throw away what is there.
    """
    writer = create_artifact(out, kind=kind, config=config, inputs=inputs, names=files, overwrite=overwrite)
    if isinstance(writer, Artifact):
        return writer
    with writer:
        run = Path(out) / ".parts" / RUN
        run.mkdir(parents=True, exist_ok=True)
        made = make(run)
        if launch.is_main():
            _place(writer, run, Path(out), made["save"], files)
        return writer.finish(made["stats"])


def _place(writer: ArtifactWriter, run: Path, out: Path, save: Callable[[Path], None], files: tuple[str, ...]) -> None:
    with storage.explained(out):
        save(out)
        for log in run.rglob(LOG):
            target = out / log.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log, target)
    for i in range(len(files)):
        if not (out / files[i]).is_file():
            raise ArtifactError(f"{out} lacks {files[i]} after saving; run the command again")
        writer.adopt(i, 0, (), {})


def backbone_fingerprint(config: TrainConfig, work: str | Path) -> str:
    """What identifies the backbone."""
    return weights_fingerprint(model_place(config.model, work), config.revision)


def last(log: list[dict[str, Any]], steps: int) -> dict[str, Any]:
    """What the manifest tells of a run; no times, so that a resumed run gives the same bytes."""
    return {"steps": steps, "final_loss": round(log[-1]["loss"], 6)} if log else {"steps": steps}
