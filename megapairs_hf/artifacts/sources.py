"""Whatever holds the rows of an artifact, as an artifact: the one door for data of one's own.

A stage takes an artifact's folder, a `datasets.Dataset`, a parquet, CSV or JSON lines file (or a folder of them), or a
data set on the Hub where it takes an artifact. What surprises: a published data set has no corpus, but its
configuration `images` serves as one; and of images that files name by a path only those beside the files are read.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import MANIFEST, PLAN, README, Artifact, open_artifact
from megapairs_hf.artifacts.as_dataset import check_card, load
from megapairs_hf.artifacts.conform import REQUIRED
from megapairs_hf.artifacts.image_folder import image_rows, list_images
from megapairs_hf.artifacts.storage import HUB_ID, PathLike, join
from megapairs_hf.artifacts.table_files import check_file, read_files, table_files
from megapairs_hf.artifacts.virtual import virtual_artifact
from megapairs_hf.core.errors import ArtifactError, SchemaMismatchError
from megapairs_hf.core.image_paths import ImagePaths, caches

if TYPE_CHECKING:
    from pathlib import Path

    from datasets import Dataset

# the configuration of a published data set that holds a kind
PUBLISHED = {"corpus": "images", "triplets": "triplets"}


def as_artifact(source: Artifact | Dataset | PathLike, kind: str) -> Artifact:
    """Take rows from wherever they are.

    Args:
        source: a finished artifact or its folder; a `datasets.Dataset`; a parquet, CSV or JSON lines file, or a folder
            of them; for a corpus a folder of images, whose ids are their paths in it; the id of a data set on the Hub.
            A corpus needs the columns `image_id` and `image`, pairs `query_id` and `target_id`; columns that are not
            there are filled with blanks. In a CSV, a list is written as JSON. Where images are paths, only files in
            the folder of the named file (or in the named folder) are read, and of a data set that `datasets` downloads
            those in its caches; every other image has the reason `outside_source`. The paths in a `Dataset` are read
            where they lead.
        kind: `corpus`, `embeddings`, `captions`, `pairs`, `descriptions`, `instructions` or `triplets`.

    Returns:
        An artifact of this kind. Rows from elsewhere come in virtual shards of 1,000; its fingerprint is that of the
        data set, or the hash of the files.

    Raises:
        ArtifactError: there is nothing, it cannot be read, or an id is empty or repeated.
        SchemaMismatchError: it is of another kind, or lacks a column.
        IncompleteArtifactError: it was begun and not finished.
    """
    if isinstance(source, Artifact):
        return _of_kind(source, kind)
    if not isinstance(source, (str, os.PathLike)):
        return _of_rows(source, kind)
    path = str(source)
    if any(storage.exists(join(path, name)) for name in (MANIFEST, PLAN)):
        return _of_kind(open_artifact(path), kind)
    check_file(path)
    artifact = _of_path(path, kind) if kind in REQUIRED else None
    return artifact if artifact is not None else open_artifact(path, kind)


def _of_path(path: str, kind: str) -> Artifact | None:
    """Rows of files that are no artifact, or on the Hub; None where there are none."""
    if (HUB_ID.fullmatch(path) and not storage.exists(path)) or _has_configurations(path):
        return _of_published(path, kind)
    if storage.exists(join(path, "state.json")):
        return virtual_artifact(_saved(path), kind, path, images=_inside(path))
    if kind == "corpus" and storage.is_local(path):
        root = storage.local(path)
        images = list_images(root)
        if images:
            dataset, fingerprint = image_rows(root, images)
            return virtual_artifact(dataset, kind, path, fingerprint, _inside(path))
    files = table_files(path)
    if not files:
        return None
    dataset, fingerprint = read_files(files, kind, path)
    return virtual_artifact(dataset, kind, path, fingerprint, _inside(path))


def _has_configurations(path: str) -> bool:
    """Whether a folder has a README that says which files are its rows."""
    readme = join(path, README)
    return storage.exists(readme) and b"\nconfigs:" in storage.read_bytes(readme)


def _saved(path: str) -> Dataset:
    """What `Dataset.save_to_disk` wrote."""
    import datasets

    try:
        return datasets.Dataset.load_from_disk(path)
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"cannot read {path}, a saved Dataset ({error}); save it again") from error


def _inside(path: str, *more: Path) -> ImagePaths:
    """Images inside a folder, or beside a file; none where that is not on this machine."""
    if not storage.is_local(path) or not storage.exists(path):
        return ImagePaths(roots=more)
    there = storage.local(path)
    folder = there if there.is_dir() else there.parent
    return ImagePaths(folder, (folder, *more))


def _of_kind(artifact: Artifact, kind: str) -> Artifact:
    there = artifact.manifest.kind
    if there == kind:
        return artifact
    if there == "triplets" and kind == "corpus" and storage.exists(join(artifact.path, README)):
        return _of_published(artifact.path, kind)
    raise SchemaMismatchError(f"{artifact.path} holds {there}, but {kind} is needed here; name the other one")


def _of_rows(source: Any, kind: str) -> Artifact:
    import datasets

    if isinstance(source, datasets.DatasetDict):
        splits = ", ".join(map(str, source))
        raise ArtifactError(f"a data set of several splits cannot serve as {kind}; take one of them ({splits})")
    if isinstance(source, datasets.IterableDataset | datasets.IterableDatasetDict):
        raise ArtifactError(
            f"a streaming data set cannot serve as {kind}: a stage reads rows in any order; load it without"
            " `streaming=True`, or map the row functions over it"
        )
    if not isinstance(source, datasets.Dataset):
        raise ArtifactError(
            f"{kind} cannot come from a {type(source).__name__}; give a Dataset, an artifact or a path"
        )
    if kind not in REQUIRED:
        raise ArtifactError(f"{kind} cannot come from a Dataset; give the folder of the artifact")
    return virtual_artifact(source, kind, f"the Dataset of {len(source):,} rows")


def _own_cache(path: str) -> str | None:
    """Where `datasets` keeps the rows of a folder that is no artifact of ours: one place for each state of it.

    By itself it tells folders apart by their last name and the text of their README, and may give the rows of another.
    """
    if not storage.is_local(path) or not storage.exists(path) or storage.exists(join(path, MANIFEST)):
        return None
    import datasets

    folder = storage.local(path).resolve()
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    mark = hashlib.sha256(repr(facts).encode("utf-8", "backslashreplace")).hexdigest()[:16]
    return join(datasets.config.HF_DATASETS_CACHE, "megapairs_hf", f"folder-{mark}")


def _of_published(path: str, kind: str) -> Artifact:
    """A data set on the Hub, or a folder with a README that says which files it has."""
    import datasets

    check_card(path)
    try:
        names = datasets.get_dataset_config_names(path)
    except Exception as error:  # datasets raises whatever its reader or connection raises
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        absent = "" if storage.exists(path) else f"{path} is not here, and "
        raise ArtifactError(
            f"{absent}cannot open {path} as {kind}: {reason}; name a folder, a file, or a data set on the Hub"
        ) from error
    configuration = PUBLISHED.get(kind, kind)
    name = configuration if configuration in names else None
    if name is None and len(names) > 1 and "default" not in names:
        raise ArtifactError(
            f"{path} has no configuration {configuration!r} to serve as {kind}; it has {', '.join(names)}"
        )
    loaded = load(path, name=name, cache_dir=_own_cache(path))
    splits = list(loaded)
    split = "train" if "train" in splits else splits[0]
    if len(splits) > 1 and split != "train":
        raise ArtifactError(
            f"{path} has the splits {', '.join(map(str, splits))} and no `train`; load one and give the Dataset"
        )
    return virtual_artifact(loaded[split], kind, path, images=_inside(path, *caches()))
