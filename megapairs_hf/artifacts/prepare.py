"""The folder of an artifact around its writing: what an earlier run left is continued, set aside, or refused."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import COMPANIONS, MANIFEST, PLAN, json_bytes, read_json
from megapairs_hf.artifacts.manifest import read_manifest
from megapairs_hf.artifacts.replace import (
    PARTS,
    begun,
    drop_old,
    plan_over,
    recover,
    refuse_foreign,
    remove_unlisted,
    set_aside,
)
from megapairs_hf.artifacts.shard_records import AGAIN, begin_again
from megapairs_hf.artifacts.staleness import check_plan
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.core.errors import ArtifactError, StaleArtifactError


def prepare_folder(path: PathLike, plan: dict[str, Any], overwrite: bool) -> None:
    """Leave in a folder what this plan made, and the plan; or set aside what another one made.

    Args:
        path: the folder.
        plan: what is to be made.
        overwrite: whether what another plan made may go.

    Raises:
        ArtifactError: the folder is somebody else's, or cannot be written.
        StaleArtifactError: another plan made what is there.
    """
    recover(path)
    if overwrite and not storage.is_local(path):
        plan_over(path, plan)
        return
    if overwrite:
        set_aside(path)
    if storage.exists(join(path, MANIFEST)):
        there = asdict(read_manifest(join(path, MANIFEST)))
        there["shards"] = [shard["file"] for shard in there["shards"]]
        check_plan(str(path), there, plan)
        tidy(str(path))
    elif storage.exists(join(path, PLAN)) and begun(path):
        try:
            check_plan(str(path), read_json(join(path, PLAN), AGAIN), plan)
        except StaleArtifactError:
            raise
        except ArtifactError as error:
            begin_again(path, plan, error)
    else:
        # also over the plan of a run that failed before it made anything: there is nothing to lose
        refuse_foreign(path)
        storage.write_bytes(join(path, PLAN), json_bytes(plan))


def tidy(path: str) -> None:
    """Remove what a finished artifact does not list."""
    manifest = read_json(join(path, MANIFEST))
    tables = [*manifest["shards"], *manifest.get("configurations", {}).values()]
    remove_unlisted(path, {MANIFEST, *COMPANIONS, *(table["file"] for table in tables)})
    for name in (PLAN, PARTS):
        storage.remove(join(path, name))
    if storage.is_local(path):
        storage.remove_temporary(path)
        drop_old(path)
