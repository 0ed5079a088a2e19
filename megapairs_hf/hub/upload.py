"""`push`: a prepared folder goes to the Hub by `upload_folder`.

Files that are there with the same bytes are not sent again, so the same command finishes an upload that was cut. What
surprises: shards of an earlier push that this one no longer has are deleted in the same commit. The configs of a data
set are file patterns, so one stale shard would silently become part of it.
"""

from __future__ import annotations

import glob
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.fingerprints import sha256_of
from megapairs_hf.core.errors import HubError
from megapairs_hf.hub.errors import explained_hub
from megapairs_hf.hub.prepare import CARD, LIST, Kind, prepare
from megapairs_hf.hub.push_results import prepare_results
from megapairs_hf.hub.verification import check_loads

if TYPE_CHECKING:
    from pathlib import Path

    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.hub.config import PushConfig

# what the Hub itself, or its web page, puts into a new repository
NEUTRAL = frozenset({".gitattributes", CARD, "LICENSE", "LICENSE.md", "LICENSE.txt", ".gitignore"})
STALE = {
    "dataset": ["triplets/*", "images/*", "preview/*"],
    "model": ["*.safetensors", "*.safetensors.index.json"],
    "results": [],
}


def push(kind: Kind, path: PathLike, config: PushConfig, out: PathLike, work: PathLike | None = None) -> str:
    """Prepare a folder and upload it.

    Args:
        kind: dataset, model or results.
        path: the `triplets` or `model` artifact, or the folder or file of result records.
        config: the settings of the push.
        out: the folder to prepare; it stays, and the same command continues after a failure.
        work: the work folder that the card is made of; None for the one that holds `path`.

    Returns:
        The URL of the repository or pull request; with `dry_run` the folder.

    Raises:
        CardError: the card cannot be filled.
        HubError: there is nothing fit to push, the repository holds something else, or the Hub refuses it.
        IncompleteArtifactError: the artifact is not finished.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    api = HfApi(token=config.token)
    with explained_hub(config):
        # also before a dry run, which sends no request
        validate_repo_id(config.repo_id)
    if kind == "results":
        with explained_hub(config):
            names = prepare_results(api, path, config, out)
    else:
        names = prepare(kind, path, work if work is not None else storage.parent(path), config, out)
        if kind == "dataset":
            check_loads(storage.local(out), names)
    if config.dry_run:
        return str(out)
    with explained_hub(config):
        return _upload(api, kind, config, storage.local(out), names)


def plan_text(out: PathLike) -> str:
    """What a dry run shows: every file with its size in bytes, then the card."""
    folder = storage.local(out)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and ".cache" not in p.parts and p.name != LIST]
    sizes = [(p.stat().st_size, p.relative_to(folder).as_posix()) for p in files]
    lines = [f"{size:>15,}  {name}" for size, name in sizes]
    lines.append(f"{sum(size for size, _ in sizes):>15,}  in {len(sizes)} files")
    return "\n".join([*lines, "", (folder / CARD).read_text(encoding="utf-8")])


def _upload(api: Any, kind: Kind, config: PushConfig, folder: Path, names: list[str]) -> str:
    repo_type, branch = "dataset" if kind == "dataset" else "model", config.revision
    if kind != "results":
        _make_repository(api, repo_type, config)
    if branch and not branch.startswith("refs/"):
        api.create_branch(config.repo_id, branch=branch, repo_type=repo_type, exist_ok=True)
    if kind != "results":
        _check_free(api, repo_type, config, folder, names)
    info = api.upload_folder(
        repo_id=config.repo_id,
        repo_type=repo_type,
        folder_path=folder,
        commit_message=config.commit_message or f"Upload {kind} with megapairs-hf",
        revision=branch,
        create_pr=config.create_pr,
        allow_patterns=[glob.escape(name) for name in names],
        delete_patterns=STALE[kind],
    )
    url = f"{api.endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{config.repo_id}"
    return str(info.pr_url or (f"{url}/tree/{branch}" if branch else url))


def _make_repository(api: Any, repo_type: str, config: PushConfig) -> None:
    # one that exists may be someone else's and take pull requests only, so no creation is requested for it
    if not api.repo_exists(config.repo_id, repo_type=repo_type):
        api.create_repo(config.repo_id, repo_type=repo_type, private=config.private, exist_ok=True)
    elif config.private and not api.repo_info(config.repo_id, repo_type=repo_type).private:
        raise HubError(
            f"{config.repo_id} exists and is public; make it private on its page first, or leave out --private"
        )


def _check_free(api: Any, repo_type: str, config: PushConfig, folder: Path, names: list[str]) -> None:
    """Refuse a repository that holds anything but the very files of this push, as an upload that was cut leaves it."""
    from huggingface_hub.hf_api import RepoFile

    if config.overwrite or config.create_pr or (config.revision or "").startswith("refs/"):
        return
    for entry in api.list_repo_tree(config.repo_id, repo_type=repo_type, revision=config.revision, recursive=True):
        if isinstance(entry, RepoFile) and entry.path not in NEUTRAL and not _is_same(entry, folder, names):
            raise HubError(
                f"{config.repo_id} holds something else ({entry.path}, …); push under another name, open a pull"
                " request with --create-pr, or pass --overwrite to replace it"
            )


def _is_same(entry: Any, folder: Path, names: list[str]) -> bool:
    if entry.path not in names or entry.size != (folder / entry.path).stat().st_size:
        return False
    return entry.lfs is None or entry.lfs.sha256 == sha256_of(str(folder / entry.path))
