"""What `megapairs search serve PATH` serves: an index, or the models of a work folder, whose indexes are built first.

Of a work folder the trained model stands beside the one that it was trained from, so that before and after can be
compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from megapairs_hf.artifacts.artifact import MANIFEST, open_artifact
from megapairs_hf.artifacts.fingerprints import model_path
from megapairs_hf.core.errors import ArtifactError, ConfigError
from megapairs_hf.search.generation import INDEX, read_record
from megapairs_hf.search.index import SearchIndex
from megapairs_hf.search.page.served import ServedIndex

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.search.config import SearchConfig
    from megapairs_hf.search.page.opening import Report

TRAINED, BASE = "index", "index-base"
ENCODERS = "encoders"
TOY = (
    "This model is a toy: it was trained from scratch, for minutes, on a small corpus. It shows how the page works,"
    " and little of what can be found."
)


@dataclass(frozen=True)
class IndexSource:
    """An index to open, or to build first.

    Attributes:
        folder: of the index.
        label: what the page calls it.
        model: to build it with; None for an index that is there.
        images: to build it of.
    """

    folder: Path
    label: str = ""
    model: str | None = None
    images: str | None = None


def sources_of(paths: Sequence[str], *, compare: bool = True) -> list[IndexSource]:
    """What some paths name.

    Args:
        paths: indexes, or one work folder.
        compare: whether a work folder's base model stands beside the trained one.

    Raises:
        ArtifactError: a path is neither.
        ConfigError: there are more than two indexes.
    """
    sources: list[IndexSource] = []
    for path in map(Path, paths):
        label = path.name if len(paths) > 1 else ""
        if (path / INDEX).is_file():
            sources.append(IndexSource(path, label))
        elif (path / "model" / MANIFEST).is_file() and (path / "corpus" / MANIFEST).is_file():
            sources += _of_work(path, compare)
        else:
            raise ArtifactError(
                f"{path} is neither an index (`megapairs search index`) nor a work folder with a corpus and a trained"
                " model (`megapairs run`); name one"
            )
    if len(sources) > 2:
        raise ConfigError(f"two indexes stand side by side, not {len(sources)}; name one or two")
    return sources


def _of_work(work: Path, compare: bool) -> list[IndexSource]:
    model = open_artifact(str(work / "model"), "model")
    base = model_path(str(model.manifest.config["model"]), work)
    images = str(work / "corpus")
    trained = IndexSource(work / TRAINED, "after training" if compare else "", str(work / "model"), images)
    return [trained, IndexSource(work / BASE, "before training", base, images)] if compare else [trained]


def open_sources(sources: Sequence[IndexSource], config: SearchConfig, report: Report) -> list[ServedIndex]:
    """Indexes, opened; those of a work folder are built or brought up to date first.

    Args:
        sources: which.
        config: of indexes that are built.
        report: called with what is done, how much of it, and of how much.
    """
    indexes = []
    for source in sources:
        if source.model is None:
            index = SearchIndex.open(source.folder)
        else:
            text = f"building the index {source.label or source.folder.name}"
            index = SearchIndex.build(
                source.model,
                str(source.images),
                source.folder,
                config=config,
                overwrite=True,
                on_progress=partial(report, text),
            )
        report(f"loading the model {source.label}".rstrip(), 0, 0)
        one = ServedIndex(index, source.label)
        one.warm_up()
        indexes.append(one)
    report("putting the page together", 0, 0)
    return indexes


def banner_of(paths: Sequence[str]) -> str:
    """A sentence where a model is a toy: one whose towers were trained from scratch on a small corpus.

    Args:
        paths: of indexes or work folders; the model of an index may lie in a work folder too.
    """
    for path in map(Path, paths):
        folders = [path / ENCODERS]
        if (path / INDEX).is_file():
            model = Path(str(read_record(path).model["name"]))
            folders = [model.parent, model.parent / ENCODERS]
        for folder in folders:
            if (folder / MANIFEST).is_file() and open_artifact(str(folder)).manifest.kind == ENCODERS:
                return TOY
    return ""
