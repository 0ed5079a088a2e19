"""Does it load, before an upload and after it; and after it, is everything there, byte for byte?

The cost is bounded: the Hub tells sizes and hashes, a data set is opened as a stream for one row of each config, and
of a model the configuration is read, not the weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import HubError
from megapairs_hf.hub.remote_state import remote_files, repo_type

if TYPE_CHECKING:
    from megapairs_hf.hub.config import PushConfig
    from megapairs_hf.hub.prepare import Kind, PreparedFile


def check_folder(folder: Path, files: list[PreparedFile]) -> None:
    """Open a prepared data set the way its users will, so that one which does not open never leaves.

    Raises:
        HubError: it does not open.
    """
    try:
        _stream(str(folder), files)
    except Exception as error:  # datasets raises whatever its readers raise
        said = " ".join(str(error.__cause__ or error).split())[:300]
        raise HubError(f"{folder} does not load ({said}), so nothing was uploaded; make the data set again") from error


def check_arrived(api: Any, kind: Kind, config: PushConfig, commit: str, files: list[PreparedFile]) -> None:
    """Compare the files of a commit with those that were sent.

    Raises:
        HubError: one is missing or differs.
    """
    there = remote_files(api, config.repo_id, repo_type(kind), commit)
    for file in files:
        if file.name not in there or not there[file.name].same(file):
            raise HubError(f"{file.name} did not arrive whole in {config.repo_id}; run the same command again")


def check_loads(api: Any, kind: Kind, config: PushConfig, commit: str, files: list[PreparedFile]) -> None:
    """Open what was pushed the way its users will.

    Raises:
        HubError: it does not open.
    """
    try:
        if kind == "dataset":
            _stream(config.repo_id, files, revision=commit, token=config.token)
        else:
            _load_model(api, config, commit)
    except Exception as error:  # datasets and transformers raise whatever their readers raise
        said = " ".join(str(error).split())[:300]
        raise HubError(
            f"{config.repo_id} arrived whole at {commit[:12]} but does not load ({said}); run the same command again"
        ) from error


def _stream(place: str, files: list[PreparedFile], **options: Any) -> None:
    """Read one row of every split of every config that the files belong to."""
    from datasets import load_dataset

    for part in sorted({file.name.split("/", 1)[0] for file in files if file.name.endswith(".parquet")}):
        splits = load_dataset(place, part, streaming=True, **options)
        for split in splits.values():
            # of one row group: Arrow's threads that read further groups ahead abort a process that exits meanwhile
            # (apache/arrow#45214)
            next(iter(split.shard(split.num_shards, 0).reshard()))


def _load_model(api: Any, config: PushConfig, commit: str) -> None:
    def fetched(name: str) -> Any:
        return json.loads(Path(api.hf_hub_download(config.repo_id, name, revision=commit)).read_text(encoding="utf-8"))

    modules = fetched("modules.json")
    if not isinstance(modules, list) or not modules:
        raise ValueError("modules.json lists no module")
    if api.file_exists(config.repo_id, "config.json", revision=commit):
        from transformers import AutoConfig

        AutoConfig.from_pretrained(config.repo_id, revision=commit, token=config.token, trust_remote_code=False)
