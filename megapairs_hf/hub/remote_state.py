"""What a repository holds now, and what has to change for it to hold what was prepared.

What surprises: nothing is decided by time or by version. A file that is there with the same bytes is left alone, so
the same command after a cut goes on where it stopped, and a third time does nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, NamedTuple

from megapairs_hf.artifacts import storage
from megapairs_hf.core.errors import HubError
from megapairs_hf.hub.prepare import CARD, MARKER, SHEET, Kind, PreparedFile

if TYPE_CHECKING:
    from megapairs_hf.hub.config import PushConfig

# what the Hub itself, or its web page, puts into a new repository
NEUTRAL = frozenset({".gitattributes", CARD, SHEET, "LICENSE", "LICENSE.md", "LICENSE.txt", ".gitignore"})
# the configs of a data set are patterns, so one stale shard would silently become part of it
STALE = {
    "dataset": ["triplets/*", "images/*", "preview/*", "assets/*", "descriptions/*", "instructions/*"],
    "model": ["*.safetensors", "*.safetensors.index.json"],
}


class RemoteFile(NamedTuple):
    """A file of the repository: bytes, sha256 where it is stored by LFS, git blob id where it is not."""

    size: int
    sha256: str | None
    blob: str

    def same(self, file: PreparedFile) -> bool:
        """Whether this is the prepared file."""
        return self.size == file.size and (
            self.sha256 == file.sha256 if self.sha256 is not None else self.blob == file.blob
        )


@dataclass(frozen=True)
class Change:
    """What a push has to do.

    Attributes:
        add: names to upload.
        delete: names to delete.
    """

    add: list[str]
    delete: list[str]


def remote_files(api: Any, repo_id: str, repo_type: str, revision: str | None) -> dict[str, RemoteFile]:
    """The files of a repository by name."""
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(repo_id, repo_type=repo_type, revision=revision, recursive=True)
    return {
        entry.path: RemoteFile(entry.size, entry.lfs.sha256 if entry.lfs is not None else None, entry.blob_id)
        for entry in tree
        if isinstance(entry, RepoFile)
    }


def change(
    api: Any, kind: Kind, config: PushConfig, revision: str | None, files: list[PreparedFile], lineage: str = ""
) -> Change:
    """Compare the repository with the prepared files.

    Args:
        api: of the Hub.
        kind: dataset, model or results.
        config: the settings of the push.
        revision: branch or pull request; None for the default branch.
        files: the prepared files.
        lineage: what `megapairs.json` of the prepared folder tells as such; empty where it tells none.

    Raises:
        HubError: the repository holds something else, or another data set of ours, and neither `overwrite` nor a pull
            request was asked for.
    """
    there = remote_files(api, config.repo_id, repo_type(kind), revision)
    mine = {file.name: file for file in files}
    add = [name for name, file in mine.items() if name not in there or not there[name].same(file)]
    if kind == "results":
        return Change(add, [])
    marker = _marker(api, kind, config, revision) if MARKER in there else {}
    if marker.get("kind") != kind and not config.overwrite and not config.create_pr:
        foreign = [n for n in there if n not in NEUTRAL and not (n in mine and there[n].same(mine[n]))]
        if foreign:
            raise HubError(
                f"{config.repo_id} holds something else ({foreign[0]}, …); push under another name, open a pull"
                " request with --create-pr, or pass --overwrite"
            )
    other = marker.get("kind") == kind and str(marker.get("lineage") or lineage) != lineage
    if other and not config.overwrite and not config.create_pr:
        raise HubError(
            f"{config.repo_id} holds a data set made of other images or lines; push under another name, open a pull"
            " request with --create-pr, or pass --overwrite to replace it"
        )
    listed = {str(name) for name in marker.get("files", [])} if marker.get("kind") == kind else set()
    stale = [
        name
        for name in there
        if name not in mine and (name in listed or any(fnmatch(name, pattern) for pattern in STALE[kind]))
    ]
    return Change(add, stale)


def _marker(api: Any, kind: Kind, config: PushConfig, revision: str | None) -> dict[str, Any]:
    path = api.hf_hub_download(config.repo_id, MARKER, repo_type=repo_type(kind), revision=revision)
    try:
        told = json.loads(storage.read_bytes(path))
    except ValueError:
        # a file of that name which is not ours
        return {}
    return told if isinstance(told, dict) else {}


def repo_type(kind: Kind) -> str:
    """The Hub's word for the kind of repository that takes this push."""
    return "dataset" if kind == "dataset" else "model"
