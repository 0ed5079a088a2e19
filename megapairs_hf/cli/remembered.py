"""Which recipe made what is in a work folder, so that a message can name its file."""

from __future__ import annotations

from pathlib import Path

from megapairs_hf.artifacts.leftovers import replace_file
from megapairs_hf.artifacts.storage import exists, join, read_bytes
from megapairs_hf.core import distributed

RECIPE = ".recipe"


def remember_recipe(work: str, path: Path) -> None:
    """Keep in a work folder which recipe made what is in it."""
    if distributed.is_main():
        content, file = f"{path.resolve()}\n".encode(), join(work, RECIPE)
        if not exists(file) or read_bytes(file) != content:
            replace_file(file, content)


def remembered_recipe(work: str) -> str:
    """The file of the recipe that made what is in a work folder; empty where none did, or it is gone."""
    path = read_bytes(join(work, RECIPE)).decode().strip() if exists(join(work, RECIPE)) else ""
    return path if path and Path(path).is_file() else ""
