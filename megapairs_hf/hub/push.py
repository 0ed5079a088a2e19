"""`push`: a prepared folder goes to the Hub, and what arrived is compared with what was sent.

What surprises: files of an earlier push that this one no longer has are deleted in the same commit. The configs of a
data set are file patterns, so one stale shard would silently become part of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf import storage
from megapairs_hf.errors import HubError
from megapairs_hf.hub.prepare import Kind, PreparedFile, prepare

if TYPE_CHECKING:
    from pathlib import Path

    from megapairs_hf.hub.config import PushConfig
    from megapairs_hf.storage import PathLike

STALE = {"dataset": ["triplets/*", "images/*", "preview/*"], "model": ["*.safetensors", "*.safetensors.index.json"]}
OTHER: dict[Kind, Kind] = {"dataset": "model", "model": "dataset"}
TELLS = {
    400: "the Hub refuses the request",
    401: "you are not logged in, or the token is not valid; run `hf auth login` or set HF_TOKEN",
    403: "your token may not write there; use a token with write access, or --create-pr",
    409: "someone else is writing there; run the same command again",
    429: "the Hub asks for a pause; run the same command again later",
}


def push(kind: Kind, path: PathLike, config: PushConfig, out: PathLike, work: PathLike | None = None) -> str:
    """Prepare a folder, upload it, and check what arrived.

    Args:
        kind: dataset or model.
        path: the `triplets` or `model` artifact.
        config: the settings of the push.
        out: the folder to prepare; it stays, and the same command continues after a failure.
        work: the work folder that the card tells about; None for the one that holds `path`.

    Returns:
        The URL of the repository or pull request; with `dry_run` the folder.

    Raises:
        CardError: the card cannot be filled.
        HubError: there is nothing fit to push, or the Hub refuses it.
    """
    place = work if work is not None else str(storage.local(path).resolve().parent)
    files = prepare(kind, path, place, config, out)
    if config.dry_run:
        return str(out)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, LocalTokenNotFoundError

    api = HfApi()
    try:
        _make_repository(api, kind, config)
        return _upload(api, kind, config, storage.local(out), files)
    except HFValidationError as error:
        raise HubError(f"{config.repo_id!r} is no repository name: {_line(error)}; use organisation/name") from error
    except LocalTokenNotFoundError as error:
        raise HubError(f"cannot push {config.repo_id}: {TELLS[401]}") from error
    except HfHubHTTPError as error:
        raise HubError(_refused(api, kind, config, error)) from error
    except (HTTPError, OSError) as error:
        raise HubError(
            f"cannot push {config.repo_id}: the Hub does not answer ({_line(error)}); check the network and"
            " HF_HUB_OFFLINE, then run the same command again"
        ) from error
    except ValueError as error:
        # huggingface_hub raises it where the Hub refuses the card's metadata
        raise HubError(f"cannot push {config.repo_id}: {_line(error)}; correct the card or the settings") from error


def _make_repository(api: Any, kind: Kind, config: PushConfig) -> None:
    # one that exists may be someone else's and take pull requests only, so it is not asked for again
    if not api.repo_exists(config.repo_id, repo_type=kind):
        api.create_repo(config.repo_id, repo_type=kind, private=config.private, exist_ok=True)
    if config.revision and not config.revision.startswith("refs/"):
        api.create_branch(config.repo_id, branch=config.revision, repo_type=kind, exist_ok=True)


def _upload(api: Any, kind: Kind, config: PushConfig, folder: Path, files: list[PreparedFile]) -> str:
    info = api.upload_folder(
        repo_id=config.repo_id,
        repo_type=kind,
        folder_path=folder,
        commit_message=config.commit_message or f"Upload {kind} with megapairs-hf",
        revision=config.revision,
        create_pr=config.create_pr,
        allow_patterns=[file.name for file in files],
        delete_patterns=STALE[kind],
    )
    _check_arrived(api, kind, config, info.oid, files)
    where = f"{api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{config.repo_id}"
    return str(info.pr_url or (f"{where}/tree/{config.revision}" if config.revision else where))


def _check_arrived(api: Any, kind: Kind, config: PushConfig, commit: str, files: list[PreparedFile]) -> None:
    tree = api.list_repo_tree(config.repo_id, repo_type=kind, revision=commit, recursive=True)
    there = {entry.path: entry for entry in tree if hasattr(entry, "size")}
    for file in files:
        entry = there.get(file.name)
        digest = entry.lfs.sha256 if entry is not None and entry.lfs is not None else file.sha256
        if entry is None or entry.size != file.size or digest != file.sha256:
            raise HubError(f"{file.name} did not arrive whole in {config.repo_id}; run the same command again")


def _refused(api: Any, kind: Kind, config: PushConfig, error: Any) -> str:
    status = error.response.status_code
    if status == 404:
        other = OTHER[kind]
        try:
            taken = api.repo_exists(config.repo_id, repo_type=other)
        except OSError:
            taken = False
        if taken:
            return f"{config.repo_id} exists as a {other}, not as a {kind}; push under another name"
        return f"{config.repo_id} was not found, or you may not see it; check the name and your token"
    told = error.server_message or f"status {status}"
    return f"cannot push {config.repo_id}: {TELLS.get(status, 'the Hub failed; run the same command again')} ({told})"


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
