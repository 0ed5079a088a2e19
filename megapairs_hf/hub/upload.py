"""`push`: triplets in memory or a folder go to the Hub by `upload_folder`, with a card and after a search for tokens.

Files that are there with the same bytes are not sent again, so the same command finishes an upload that was cut. What
surprises: shards of an earlier push that this one no longer has are deleted in the same commit. The configs of a data
set are file patterns, so one stale shard would silently become part of it.
"""

from __future__ import annotations

import glob
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import MANIFEST, Artifact, open_artifact
from megapairs_hf.artifacts.fingerprints import sha256_of
from megapairs_hf.artifacts.manifest import PUBLISHED_PARTS
from megapairs_hf.artifacts.storage import join
from megapairs_hf.artifacts.workspace import RESULTS
from megapairs_hf.core.config import build_config
from megapairs_hf.core.errors import ConfigError, HubError
from megapairs_hf.core.progress import note
from megapairs_hf.dataset.rows_with_images import RowsWithImages
from megapairs_hf.dataset.save import save_triplets
from megapairs_hf.hub.config import PushConfig
from megapairs_hf.hub.errors import explained_hub
from megapairs_hf.hub.licenses import ADVICE, LICENSES, OTHER, UNKNOWN, license_advice
from megapairs_hf.hub.prepare import LIST, Kind, prepare
from megapairs_hf.hub.push_results import prepare_results
from megapairs_hf.hub.retries import patient
from megapairs_hf.hub.upload_files import CARD
from megapairs_hf.hub.verification import check_loads

if TYPE_CHECKING:
    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.dataset.triplets import Triplets

# what the Hub itself, or its web page, puts into a new repository
NEUTRAL = frozenset({".gitattributes", CARD, "LICENSE", "LICENSE.md", "LICENSE.txt", ".gitignore"})
STALE = {
    "dataset": [f"{part}/*" for part in PUBLISHED_PARTS],
    "model": ["*.safetensors", "*.safetensors.index.json"],
    "results": [],
    "space": ["index/*", "model/*"],
}
PREFIX = {"dataset": "datasets/", "space": "spaces/"}


KINDS: dict[str, Kind] = {"triplets": "dataset", "model": "model", "results": "results"}


def push(
    source: Triplets | Artifact | PathLike,
    repo_id: str,
    *,
    kind: Kind | None = None,
    out: PathLike | None = None,
    work: PathLike | None = None,
    **options: Any,
) -> str:
    """Push triplets, a model, results or a Space to the Hub, with a card made of what is known of them.

        push(triplets, "you/your-pairs", license="cc-by-4.0")
        push("work/model", "you/your-mmret", license="apache-2.0", private=True)

    Args:
        source: `Triplets`; or a folder with triplets, a model or results, the file of result records, or the folder
            of a Space that `write_space` made.
        repo_id: `user/name` or `organization/name`.
        kind: dataset, model, results or space; None to look into the folder.
        out: the folder to upload, made here; it stays, and the same call continues after a failure. None for
            `publish/KIND` in the work folder; of `Triplets`, for `publish/dataset` in the working directory with
            `dry_run`, and for a temporary folder otherwise.
        work: the work folder that the card is made of; None for the one that holds `source`. `Triplets` have none.
        **options: the fields of `PushConfig`: `license` (of a folder needed), `private`, `create_pr`, `dry_run`, …

    Returns:
        The URL of the repository or pull request; with `dry_run` the folder.

    Raises:
        ConfigError: an option is unknown or out of range.
        CardError: the card cannot be filled.
        HubError: there is nothing fit to push, the repository holds something else, or the Hub refuses it.
        IncompleteArtifactError: the artifact is not finished.
    """
    config = build_config(PushConfig, {"repo_id": repo_id, **options}, "push")
    _check_name(config)
    _note_license(config)
    if isinstance(source, RowsWithImages):
        return _push_rows(source, config, out)
    if not isinstance(source, Artifact | str | os.PathLike):
        raise ConfigError(
            f"push takes `Triplets` or a folder, not a {type(source).__name__}; make it Triplets(…) first"
        )
    path = source.path if isinstance(source, Artifact) else str(source)
    above = storage.parent(path)
    folder = work if work is not None else storage.parent(above) if path.endswith(".jsonl") else above
    kind = kind or kind_of(path)
    target = out or Path(folder if storage.is_local(folder) else ".") / "publish" / kind
    return _push_folder(kind, path, config, target, folder)


def kind_of(path: str) -> Kind:
    """What a folder or file holds that can be pushed.

    Raises:
        HubError: nothing of the kind.
    """
    # a model has its own results beside it
    if path.endswith(".jsonl") or (storage.exists(join(path, RESULTS)) and not storage.exists(join(path, MANIFEST))):
        return "results"
    if storage.exists(join(path, "app.py")):
        return "space"
    kind = open_artifact(path).manifest.kind
    if kind not in KINDS:
        raise HubError(f"{path} holds {kind}, which is not pushed; name a folder with {', '.join(KINDS)}")
    return KINDS[kind]


def _check_name(config: PushConfig) -> None:
    from huggingface_hub.utils import validate_repo_id

    with explained_hub(config):
        # also before a dry run, which sends no request
        validate_repo_id(config.repo_id)


def _note_license(config: PushConfig) -> None:
    """Name a license that the Hub may not know, before anything is written."""
    if config.license is not None and config.license not in LICENSES:
        note(f"the license {config.license} is not on the Hub's list; {license_advice(config.license)}")
    elif config.license == OTHER and not (config.license_name and config.license_link):
        note(f"`license: other` says nothing without a name and a link to the text: {ADVICE}")


def _push_rows(triplets: RowsWithImages, config: PushConfig, out: PathLike | None) -> str:
    """Save triplets as the published folder, and push that; a folder made for it alone tells its card nothing else."""
    if config.license is None:
        note(f'no license is named, so the card says `license: {UNKNOWN}`; name one with license="cc-by-4.0"')
        config = replace(config, license=UNKNOWN)
    with tempfile.TemporaryDirectory() as folder:
        path = save_triplets(triplets, join(folder, "triplets")).path
        target = out or (Path("publish") / "dataset" if config.dry_run else Path(folder) / "publish")
        return _push_folder("dataset", path, config, target, folder)


def _push_folder(kind: Kind, path: str, config: PushConfig, out: PathLike, work: PathLike) -> str:
    from huggingface_hub import HfApi

    api = HfApi(token=config.token)
    if kind == "results":
        with explained_hub(config):
            names = prepare_results(api, path, config, out)
    else:
        names = prepare(kind, path, work, config, out)
        if kind == "dataset":
            check_loads(storage.local(out), names)
    if config.dry_run:
        return str(out)
    with explained_hub(config):
        return _upload(api, kind, config, storage.local(out), names)


def plan_text(out: PathLike) -> str:
    """What a dry run shows: every file with its size in bytes and sha256, and where the card is to be read."""
    folder = storage.local(out)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and ".cache" not in p.parts and p.name != LIST]
    sizes = [(p.stat().st_size, p.relative_to(folder).as_posix()) for p in files]
    lines = [f"{size:>15,}  {name}  sha256 {sha256_of(str(folder / name))}" for size, name in sizes]
    lines.append(f"{sum(size for size, _ in sizes):>15,}  in {len(sizes)} files")
    lines.append(f"the card: {folder / CARD}")
    return "\n".join(lines)


def _upload(api: Any, kind: Kind, config: PushConfig, folder: Path, names: list[str]) -> str:
    repo_type, branch = "model" if kind == "results" else kind, config.revision
    if kind != "results":
        _make_repository(api, repo_type, config)
    if branch and not branch.startswith("refs/"):
        patient(lambda: api.create_branch(config.repo_id, branch=branch, repo_type=repo_type, exist_ok=True))
    if kind != "results":
        _check_free(api, repo_type, config, folder, names)
    tables = [name for name in names if kind == "dataset" and name.endswith(".parquet")]
    info = patient(
        lambda: api.upload_folder(
            repo_id=config.repo_id,
            repo_type=repo_type,
            folder_path=folder,
            commit_message=config.commit_message or f"Upload {kind} with megapairs-hf",
            revision=branch,
            create_pr=config.create_pr,
            allow_patterns=[glob.escape(name) for name in names],
            delete_patterns=sorted({*STALE[kind], *(f"{glob.escape(name.split('/', 1)[0])}/*" for name in tables)}),
        )
    )
    url = f"{api.endpoint}/{PREFIX.get(repo_type, '')}{config.repo_id}"
    return str(info.pr_url or (f"{url}/tree/{branch}" if branch else url))


def _make_repository(api: Any, repo_type: str, config: PushConfig) -> None:
    # one that exists may be someone else's and take pull requests only, so no creation is requested for it
    name = {"repo_id": config.repo_id, "repo_type": repo_type}
    if not patient(lambda: api.repo_exists(**name)):
        sdk = "gradio" if repo_type == "space" else None
        patient(lambda: api.create_repo(**name, private=config.private, exist_ok=True, space_sdk=sdk))
    elif config.private and not patient(lambda: api.repo_info(**name)).private:
        raise HubError(
            f"{config.repo_id} exists and is public; make it private on its page first, or leave out --private"
        )


def _check_free(api: Any, repo_type: str, config: PushConfig, folder: Path, names: list[str]) -> None:
    """Refuse a repository that holds anything but the very files of this push, as an upload that was cut leaves it."""
    from huggingface_hub.hf_api import RepoFile

    if config.overwrite or config.create_pr or (config.revision or "").startswith("refs/"):
        return
    name = {"repo_id": config.repo_id, "repo_type": repo_type}
    for entry in patient(lambda: list(api.list_repo_tree(**name, revision=config.revision, recursive=True))):
        if isinstance(entry, RepoFile) and entry.path not in NEUTRAL and not _is_same(entry, folder, names):
            raise HubError(
                f"{config.repo_id} holds something else ({entry.path}, …); push under another name, open a pull"
                " request with --create-pr, or pass --overwrite to replace it"
            )


def _is_same(entry: Any, folder: Path, names: list[str]) -> bool:
    if entry.path not in names or entry.size != (folder / entry.path).stat().st_size:
        return False
    return entry.lfs is None or entry.lfs.sha256 == sha256_of(str(folder / entry.path))
