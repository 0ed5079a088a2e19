"""`load_triplets`: a data set of triplets with its images, from a folder or the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.as_dataset import check_card
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.dataset.triplets import Triplets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.artifacts.storage import PathLike


def load_triplets(
    path_or_repo: PathLike,
    split: str = "train",
    columns: Sequence[str] | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    check: bool = False,
) -> Triplets:
    """Open a data set of triplets with its images.

    Args:
        path_or_repo: folder made by `megapairs build`, or a data set on the Hub.
        split: `train` or `validation`.
        columns: the columns of a row; None for all.
        revision: revision on the Hub.
        token: of the Hub.
        check: look for the images of all rows now, instead of when a row is read.

    Returns:
        The rows; images are decoded when a row is read.

    Raises:
        ArtifactError: there is no such data set or split, or images are missing.
    """
    import datasets

    path_or_repo = str(path_or_repo)
    folder = Path(path_or_repo)
    if storage.is_local(path_or_repo) and not folder.exists() and not storage.HUB_ID.fullmatch(path_or_repo):
        raise ArtifactError(f"{path_or_repo} is not there; run `megapairs build`, or check the path")
    if folder.exists() and not (folder / "README.md").exists():
        raise ArtifactError(f"{path_or_repo} holds no data set of triplets; run `megapairs build`, or check the path")
    check_card(path_or_repo)
    options = {"revision": revision, "token": token}
    try:
        rows = datasets.load_dataset(path_or_repo, "triplets", split=split, **options)
        images = datasets.load_dataset(path_or_repo, "images", split="train", **options)
    except Exception as error:  # datasets raises whatever its reader or connection raises
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        advice = "" if folder.exists() else "; no folder of that name is here: check the path, or the name on the Hub"
        if storage.is_full(error):
            advice = "; free some space and run the same command again"
        raise ArtifactError(f"cannot open the triplets of {path_or_repo} ({split}): {reason}{advice}") from error
    # what was loaded may be a stranger's: a published data set holds its images, and a path in it leads nowhere
    triplets = Triplets(rows, images, columns, "")
    if check:
        triplets.check()
    return triplets
