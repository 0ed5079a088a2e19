"""The work folder of one pipeline: which artifacts it holds, and what stood in for what.

Cards and reports (DESIGN section 3, layers 6 and 7) read every stage's artifact and nothing else. What surprises: an
absent folder is no error here. A report of a half-done pipeline is a report, and a card asks for what it needs.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import MANIFEST, PLAN, Artifact, open_artifact
from megapairs_hf.artifacts.storage import HUB_ID, PathLike, join
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.formatting import format_value

if TYPE_CHECKING:
    from collections.abc import Iterator

STAGES = (
    "corpus",
    "heldout",
    "captions",
    "embeddings",
    "encoders",
    "aligned",
    "pairs",
    "descriptions",
    "instructions",
    "verified",
    "triplets",
)
AFTER = ("model", "results")
TRAINING_LOG = "training_log.jsonl"
RESULTS = "results.jsonl"
RECORD_KEYS = ("benchmark", "metric", "model", "strategy")
RANKINGS = "rankings.parquet"
ABSENT, UNFINISHED, FINISHED = "not made yet", "not finished", "finished"
RULE_BASED = "rule_based"
SYNTHETIC = "synthetic scenes"
WRITTEN = ("descriptions", "instructions")


@dataclass(frozen=True)
class Work:
    """A work folder.

    Attributes:
        path: the folder.
        about: name and artifact that a card is about; then `artifacts` are that one and what it was
            made of, by the fingerprints in the manifests, and not what else lies in the folder.
    """

    path: str
    about: tuple[str, Artifact] | None = None

    def find(self, name: str) -> Artifact | None:
        """The finished artifact in the folder `name`, or None."""
        folder = join(self.path, name)
        return open_artifact(folder) if storage.exists(join(folder, MANIFEST)) else None

    def status(self, name: str) -> str:
        """Whether the artifact `name` is finished, begun, or absent."""
        folder = join(self.path, name)
        if storage.exists(join(folder, MANIFEST)):
            return FINISHED
        begun = (PLAN, TRAINING_LOG)
        return UNFINISHED if any(storage.exists(join(folder, mark)) for mark in begun) else ABSENT

    @cached_property
    def artifacts(self) -> dict[str, Artifact]:
        """The artifacts by the names of their folders, in the order of the flow."""
        return self.everything if self.about is None else _traced(self.everything, *self.about)

    @cached_property
    def everything(self) -> dict[str, Artifact]:
        """Every finished artifact of the folder."""
        artifacts = {}
        for name in (*STAGES, *AFTER):
            inner = [f"{name}/{child}" for child in storage.list_names(join(self.path, name)) if child[0] != "."]
            for folder in [name, *(inner if name == "embeddings" else [])]:
                artifact = self.find(folder)
                if artifact is not None:
                    artifacts[folder] = artifact
        return artifacts

    @property
    def embeddings(self) -> dict[str, Artifact]:
        """The embeddings of each encoder, by its name."""
        prefix = "embeddings/"
        return {k.removeprefix(prefix): v for k, v in self.artifacts.items() if k.startswith(prefix)}

    def fingerprints(self, name: str) -> set[str]:
        """Those of the artifact `name`, or of the embeddings in that folder."""
        return {a.fingerprint for n, a in self.everything.items() if n == name or n.startswith(f"{name}/")}

    def made_of(self, fingerprints: set[str]) -> list[str]:
        """The artifacts that were made of these, however indirectly, in the order of the flow."""
        marks, names = set(fingerprints), list[str]()
        while more := [
            n for n, a in self.everything.items() if n not in names and marks & set(a.manifest.inputs.values())
        ]:
            names += more
            marks |= {self.everything[n].fingerprint for n in more}
        return [name for name in self.everything if name in names]

    def training_log(self) -> list[dict[str, Any]]:
        """The lines of the training log; the half line that a killed run may leave at the end is not one."""
        return list(_json_lines(join(self.path, "model", TRAINING_LOG)))

    def results(self) -> list[dict[str, Any]]:
        """The result records, those of the evaluation before those of the training's own validation split.

        There are none where the work is about another model than the folder's own.

        Raises:
            ArtifactError: one of them does not say what was measured.
        """
        if self.about is not None and not _same(self.everything.get(self.about[0]), self.about[1]):
            return []
        evaluated, trained = join(self.path, "results"), join(self.path, "model", RESULTS)
        records = read_results(evaluated) if storage.exists(join(evaluated, RESULTS)) else []
        return records + (read_results(trained) if storage.exists(trained) else [])

    def verdict(self) -> str:
        """Whether training helped, in one sentence; empty where nothing was trained."""
        model = self.artifacts.get("model")
        return str(model.manifest.stats.get("verdict") or "") if model is not None else ""

    def warnings(self) -> list[str]:
        """What the stages warned of, each sentence once, in the order of the flow."""
        sentences = [text for one in self.artifacts.values() for text in one.manifest.stats.get("warnings", [])]
        return list(dict.fromkeys(sentences))

    def stand_ins(self) -> list[str]:
        """One sentence for each part of the paper's method that something simpler took the place of."""
        sentences = []
        engines = {n: self.artifacts[n].manifest.config.get("engine") for n in WRITTEN if n in self.artifacts}
        written = [name for name, engine in engines.items() if engine == RULE_BASED]
        if written:
            sentences.append(
                f"The {' and the '.join(written)} were written by rules from the captions, without"
                " any model: no multimodal or language model saw an image or wrote a sentence."
            )
        similarity = self.artifacts.get("encoders")
        if similarity is not None:
            for part, value in similarity.manifest.stats.get("stands_in_for", {}).items():
                sentences.append(f"The encoder {part} takes the place of {format_value(value)}.")
        aligned = self.artifacts.get("aligned")
        if aligned is not None:
            sentences.append(_about_towers(aligned.manifest.stats))
        return sentences


def _about_towers(stats: dict[str, Any]) -> str:
    """What the towers of an aligned model are, and what brought them together."""
    towers = stats.get("towers", {})
    return (
        f"CLIP's place is taken by two encoders, {format_value(towers.get('image'))} for images and"
        f" {format_value(towers.get('text'))} for texts, with a small head on each that learned from"
        f" {format_value(stats.get('distinct_captions'))} distinct captions of this corpus."
    )


def _same(one: Artifact | None, other: Artifact) -> bool:
    return one is not None and one.fingerprint == other.fingerprint


def _traced(everything: dict[str, Artifact], name: str, artifact: Artifact) -> dict[str, Artifact]:
    """An artifact, and those of a work folder that it was made of, however indirectly."""
    related, made_of = {name: artifact}, set(artifact.manifest.inputs.values())
    while more := {n: a for n, a in everything.items() if n not in related and a.fingerprint in made_of}:
        related |= more
        made_of |= {mark for one in more.values() for mark in one.manifest.inputs.values()}
    # models of this folder: what was made by them names their weights, not the stage that made them
    used = {_model_of(one).split("/")[1] for one in related.values() if _model_of(one).startswith("./")}
    related |= {n: a for n, a in everything.items() if n in used & {"encoders", "aligned"}}
    if _same(everything.get(name), artifact) and name == "model":
        related |= {n: a for n, a in everything.items() if n in AFTER}
    return {n: related[n] for n in (*(n for n in everything if n in related), name)}


def _model_of(artifact: Artifact) -> str:
    """The model that made embeddings, or that a model began as; empty for anything else."""
    model = artifact.manifest.config.get("model") if artifact.manifest.kind in {"embeddings", "model"} else None
    return str(model.get("model") if isinstance(model, dict) else model or "")


def open_work(path: PathLike) -> Work:
    """Open a work folder.

    Raises:
        ArtifactError: nothing in it is an artifact, finished or begun.
    """
    work = Work(str(path))
    names = [name for name in (*STAGES, *AFTER) if work.status(name) != ABSENT]
    if not names and not work.embeddings:
        raise ArtifactError(f"{path} holds no artifact of a pipeline; name the folder that holds corpus/, pairs/, …")
    return work


def source_name(corpus: Artifact) -> str:
    """Where the images of a corpus come from: a Hub id, or the last part of a path; empty where it is not known."""
    if corpus.manifest.config.get("source") == "scenes":
        return SYNTHETIC
    path = str(corpus.manifest.config.get("path") or "").replace("\\", "/").rstrip("/")
    on_hub = corpus.manifest.config.get("source") == "dataset" and HUB_ID.fullmatch(path)
    return path if on_hub else path.rsplit("/", 1)[-1]


def _json_lines(path: str) -> Iterator[dict[str, Any]]:
    if not storage.exists(path):
        return
    lines = storage.read_bytes(path).decode("utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            # a line without its line break is one that was being written
            if number == len(lines):
                return
            raise ArtifactError(f"{path} line {number} is not JSON; run the stage that writes it again") from error
        if not isinstance(record, dict):
            raise ArtifactError(f"{path} line {number} is no JSON object; run the stage that writes it again")
        yield record


def read_results(path: PathLike) -> list[dict[str, Any]]:
    """The records of a `results` artifact, or of one file of JSON lines.

    Raises:
        ArtifactError: there is none, or a record does not say what was measured.
        IncompleteArtifactError: the evaluation is not finished.
    """
    file = str(path)
    if not file.endswith(".jsonl"):
        if any(storage.exists(join(path, name)) for name in (MANIFEST, PLAN)):
            open_artifact(path, "results")
        file = join(path, RESULTS)
    if not storage.exists(file):
        raise ArtifactError(f"{path} holds no {RESULTS}; name the folder or the file that `megapairs eval` wrote")
    records = list(_json_lines(file))
    for number, record in enumerate(records, start=1):
        _check_record(record, f"{file} line {number}")
    return records


def _check_record(record: dict[str, Any], where: str) -> None:
    lacking = [key for key in RECORD_KEYS if not (isinstance(record.get(key), str) and record[key])]
    if lacking or "value" not in record:
        raise ArtifactError(f"{where} has no `{(*lacking, 'value')[0]}`; run the evaluation again")
    value = record["value"]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ArtifactError(f"{where} has the value {value!r}, which is no number; run the evaluation again")
