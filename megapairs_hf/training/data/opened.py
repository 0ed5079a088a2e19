"""The triplets of a run, wherever they are: a folder of the build stage, the Hub, or `Triplets` in hand."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import MANIFEST, PLAN, Artifact, open_artifact
from megapairs_hf.artifacts.storage import join
from megapairs_hf.artifacts.virtual import dataset_fingerprint
from megapairs_hf.core.distributed import is_main
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.dataset.load import load_triplets
from megapairs_hf.dataset.triplets import Triplets

if TYPE_CHECKING:
    from collections.abc import Callable

    from megapairs_hf.artifacts.storage import PathLike


@dataclass(frozen=True)
class OpenedTriplets:
    """Triplets to train on.

    Attributes:
        fingerprint: of triplets and images.
        split: opens one split by its name; raises `ArtifactError` where there is none.
    """

    fingerprint: str
    split: Callable[[str], Triplets]


def opened_triplets(source: Triplets | Artifact | PathLike) -> OpenedTriplets:
    """Take triplets from wherever they are; rows and images are opened when a split is asked for.

    Args:
        source: `Triplets`, a `triplets` artifact or its folder, or the id of such a data set on the Hub.

    Raises:
        ArtifactError: it is none of these, or there is nothing.
    """
    if isinstance(source, Triplets):
        mark = f"{dataset_fingerprint(source.dataset)} {dataset_fingerprint(source.images)}"
        return OpenedTriplets(mark, partial(_split_of, source))
    if isinstance(source, (str, os.PathLike)):
        path = str(source)
        if not any(storage.exists(join(path, name)) for name in (MANIFEST, PLAN)):
            return OpenedTriplets(published_fingerprint(path), partial(load_triplets, path))
        source = open_artifact(path, "triplets")
    if not isinstance(source, Artifact):
        raise _no_triplets(source)
    return OpenedTriplets(source.fingerprint, partial(_checked_split, source))


def _checked_split(artifact: Artifact, name: str) -> Triplets:
    """A split of an artifact, after its files were compared with their sha256: `datasets` reads them by itself."""
    # one process is enough; where it stops, the launcher ends the others
    for index, shard in enumerate(artifact.manifest.shards if is_main() else ()):
        if shard["file"].startswith((f"triplets/{name}-", "images/")):
            artifact.checked_path(index)
    return load_triplets(artifact.path, name)


def _split_of(triplets: Triplets, name: str) -> Triplets:
    if name not in triplets.splits:
        raise ArtifactError(f"the triplets have no split {name!r}; they have {', '.join(triplets.splits)}")
    return triplets.split(name)


def _no_triplets(source: Any) -> ArtifactError:
    return ArtifactError(
        f"a {type(source).__name__} names images by id and holds none; give Triplets(rows, images=…), a folder of"
        " `megapairs build`, or a data set on the Hub"
    )


def published_fingerprint(repo_id: str) -> str:
    """What identifies the triplets and images of a data set on the Hub: its files, as `datasets` hashes them.

    Raises:
        ArtifactError: there is no such data set, or it has no triplets.
    """
    from datasets import load_dataset_builder

    try:
        return " ".join(str(load_dataset_builder(repo_id, name).hash) for name in ("triplets", "images"))
    except Exception as error:  # datasets raises whatever its reader or connection raises
        message = " ".join(str(error).split())[:300]
        raise ArtifactError(
            f"cannot open the triplets of {repo_id}: {message}; name a folder of `megapairs build` or a Hub data set"
        ) from error
