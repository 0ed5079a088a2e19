"""`push`: a prepared folder goes to the Hub, and what arrived is compared with what was sent.

What surprises: files of an earlier push that this one no longer has are deleted in the same commit. The configs of a
data set are file patterns, so one stale shard would silently become part of it.
"""

from __future__ import annotations

import glob
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import read_json
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import HubError
from megapairs_hf.core.progress import note
from megapairs_hf.hub.errors import explained_hub
from megapairs_hf.hub.prepare import CARD, MARKER, Kind, PreparedFile, prepare
from megapairs_hf.hub.push_results import prepare_results
from megapairs_hf.hub.remote_state import change, repo_type
from megapairs_hf.hub.verification import check_arrived, check_folder, check_loads

if TYPE_CHECKING:
    from pathlib import Path

    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.hub.config import PushConfig


def push(kind: Kind, path: PathLike, config: PushConfig, out: PathLike, work: PathLike | None = None) -> str:
    """Prepare a folder, upload it, and check what arrived.

    Args:
        kind: dataset, model or results.
        path: the `triplets` or `model` artifact, or the folder or file of result records.
        config: the settings of the push.
        out: the folder to prepare; it stays, and the same command continues after a failure.
        work: the work folder that the card tells about; None for the one that holds `path`.

    Returns:
        The URL of the repository or pull request; with `dry_run` the folder.

    Raises:
        CardError: the card cannot be filled.
        HubError: there is nothing fit to push, the repository holds something else, or the Hub refuses it.
        IncompleteArtifactError: the artifact is not finished.
        MissingDependencyError: a model could not be checked when it has arrived.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    if kind == "model" and not config.dry_run:
        # what arrived is read as its users will read it
        require("models", "the push of a model", "transformers")
    api = HfApi(token=config.token)
    with explained_hub(api, kind, config):
        # also before a dry run, which asks the Hub nothing
        validate_repo_id(config.repo_id)
    if kind == "results":
        with explained_hub(api, kind, config):
            files = prepare_results(api, path, config, out)
    else:
        files = prepare(kind, path, work if work is not None else storage.parent(path), config, out)
        if kind == "dataset":
            check_folder(storage.local(out), files)
    if config.dry_run:
        return str(out)
    with explained_hub(api, kind, config):
        if kind != "results":
            _make_repository(api, kind, config)
        return _upload(api, kind, config, storage.local(out), files)


def plan_text(out: PathLike) -> str:
    """What a dry run shows: every file with its size in bytes, then the card."""
    folder = storage.local(out)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and ".cache" not in p.parts]
    sizes = [(p.stat().st_size, p.relative_to(folder).as_posix()) for p in files]
    lines = [f"{size:>15,}  {name}" for size, name in sizes]
    lines.append(f"{sum(size for size, _ in sizes):>15,}  in {len(sizes)} files")
    return "\n".join([*lines, "", (folder / CARD).read_text(encoding="utf-8")])


def _make_repository(api: Any, kind: Kind, config: PushConfig) -> None:
    kept = repo_type(kind)
    # one that exists may be someone else's and take pull requests only, so it is not asked for again
    if not api.repo_exists(config.repo_id, repo_type=kept):
        api.create_repo(config.repo_id, repo_type=kept, private=config.private, exist_ok=True)
    elif config.private and not api.repo_info(config.repo_id, repo_type=kept).private:
        raise HubError(
            f"{config.repo_id} exists and is public; make it private on its page first, or leave out --private"
        )


def _upload(api: Any, kind: Kind, config: PushConfig, folder: Path, files: list[PreparedFile]) -> str:
    kept = repo_type(kind)
    title = config.commit_message or f"Upload {kind} with megapairs-hf"
    where = f"{api.endpoint}/{'datasets/' if kept == 'dataset' else ''}{config.repo_id}"
    request = _open_request(api, kind, config, title) if config.create_pr else None
    branch = request.git_reference if request is not None else config.revision
    if request is None and branch and not branch.startswith("refs/"):
        api.create_branch(config.repo_id, branch=branch, repo_type=kept, exist_ok=True)
    lineage = str(read_json(str(folder / MARKER)).get("lineage") or "") if (folder / MARKER).is_file() else ""
    todo = change(api, kind, config, branch, files, lineage)
    url = f"{where}/tree/{config.revision}" if config.revision else where
    url = f"{where}/discussions/{request.num}" if request is not None else url
    if todo.add or todo.delete:
        info = api.upload_folder(
            repo_id=config.repo_id,
            repo_type=kept,
            folder_path=folder,
            commit_message=title,
            revision=branch,
            create_pr=config.create_pr and request is None,
            allow_patterns=[glob.escape(name) for name in todo.add] or ["/"],
            delete_patterns=[glob.escape(name) for name in todo.delete],
        )
        commit, url = info.oid, str(info.pr_url or url)
    else:
        note(f"{config.repo_id} holds all of it already; nothing to upload")
        commit = api.repo_info(config.repo_id, repo_type=kept, revision=branch).sha
    check_arrived(api, kind, config, commit, files)
    check_loads(api, kind, config, commit, files)
    return url


def _open_request(api: Any, kind: Kind, config: PushConfig, title: str) -> Any:
    """An open pull request of ours with the same title, which a cut push left and this one goes on with; or None."""
    me = api.whoami()["name"]
    found = api.get_repo_discussions(
        config.repo_id,
        repo_type=repo_type(kind),
        author=me,
        discussion_type="pull_request",
        discussion_status="open",
    )
    mine = [request for request in found if request.title == title]
    if len(mine) > 1:
        raise HubError(
            f"{config.repo_id} has {len(mine)} open pull requests called {title!r}; close all but one, or give another"
            " --commit-message"
        )
    return mine[0] if mine else None
