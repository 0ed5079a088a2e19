"""The README of an artifact: the YAML by which `load_dataset` finds its rows, its rejected rows and further tables.

What surprises: `datasets` keys its cache of a local folder by this text and not by the files, so each configuration's
description is a hash of its content; and one configuration without rows makes a folder unreadable, so it is left out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.shards import split_of
from megapairs_hf.artifacts.tables import is_arrow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from megapairs_hf.artifacts.manifest import Manifest

SHARD = re.compile(r"shard-\d{5}-of-\d{5}(\.\w+)")
TEXT = """
# {title}

Made by megapairs-hf ({counts}); `load_dataset` reads this folder, and `manifest.json` tells how it was made.
"""


def configuration(
    name: str, mark: str, files: Mapping[str, str | list[str]], *, default: bool = False
) -> dict[str, Any]:
    """One entry of `configs` in the YAML of a README.

    Args:
        name: of the configuration.
        mark: a hash that changes with the rows.
        files: of each split, a pattern or the names of its files.
        default: whether `load_dataset` takes it when none is named.
    """
    return {
        "config_name": name,
        **({"default": True} if default else {}),
        "description": mark,
        "data_files": [{"split": split, "path": path} for split, path in files.items()],
    }


def front_matter(configurations: Sequence[Mapping[str, Any]]) -> str:
    """The YAML at the beginning of a README, with its fences."""
    import yaml

    return f"---\n{yaml.safe_dump({'configs': list(configurations)}, sort_keys=False)}---\n"


def artifact_readme(manifest: Manifest, rejected: Mapping[str, Any]) -> str | None:
    """The README of an artifact whose shards are tables of one format; None for any other.

    Args:
        manifest: what the artifact holds.
        rejected: file, rows and sha256 of the rows that were left out.
    """
    names = [str(shard["file"]) for shard in manifest.shards]
    if not names or not (all(map(is_arrow, names)) or all(name.endswith(".parquet") for name in names)):
        return None
    files = _row_files(manifest)
    entries = [
        configuration(name, manifest.fingerprint, splits, default=name in {"default", "triplets"})
        for name, splits in files.items()
    ]
    further = {**manifest.configurations, "rejected": rejected}
    entries += [
        configuration(name, str(table["sha256"])[:16], {"train": str(table["file"])})
        for name, table in further.items()
        if table["rows"]
    ]
    counts = f"{manifest.rows:,} rows" if "default" in files else ", ".join(files)
    return front_matter(entries) + TEXT.format(title=manifest.kind.capitalize(), counts=counts)


def _row_files(manifest: Manifest) -> dict[str, dict[str, str | list[str]]]:
    """The files of each split of each configuration: a folder of shards is one, as published data sets have them."""
    names = [str(shard["file"]) for shard in manifest.shards]
    filled = [str(shard["file"]) for shard in manifest.shards if shard["rows"]] or names
    if all("/" in name for name in names):
        published: dict[str, dict[str, str | list[str]]] = {}
        for name in filled:
            part, split = name.split("/", 1)[0], split_of(name)
            published.setdefault(part, {})[str(split)] = f"{part}/{split}-*"
        return published
    shard = SHARD.fullmatch(names[0])
    # tens of thousands of names would make a README that nobody reads
    return {"default": {"train": f"shard-*{shard[1]}" if shard else filled}}
