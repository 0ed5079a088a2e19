"""The command as on a machine where only some requirements are installed: Python finds no other package.

What is hidden is neither importable nor listed among the installed distributions. Processes that the command starts
see the same, since the hiding is done by a `sitecustomize`.
"""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from tests.small import ROOT, run

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterable, Sequence
    from pathlib import Path

# what setup.cfg names; the first is its install_requires
BASE = (
    "dacite datasets filelock fsspec httpx2 huggingface_hub jinja2 numpy packaging pandas pillow pyarrow pyyaml scipy"
    " shtab tqdm"
).split()
EXTRAS = {
    "models": "torch transformers sentence-transformers accelerate peft tokenizers safetensors".split(),
    "mine": "torch faiss-cpu numba".split(),
    "report": ["matplotlib"],
    "track": "tensorboard trackio".split(),
    "onnx": "onnx onnxruntime onnxscript".split(),
    "mteb": ["mteb"],
    "evaluate": ["evaluate"],
}
HIDE = """
import re
import sys
from importlib.machinery import PathFinder
from importlib.metadata import MetadataPathFinder

PACKAGES, NAMES = frozenset({packages!r}), frozenset({names!r})


class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in PACKAGES else PathFinder.find_spec(name, path, target)

    @classmethod
    def find_distributions(cls, *words, **named):
        for found in MetadataPathFinder.find_distributions(*words, **named):
            if re.sub("[-_.]+", "-", found.name).lower() not in NAMES:
                yield found


sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


def normal(name: str) -> str:
    """The one spelling of a distribution's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def with_requirements(names: Iterable[str]) -> set[str]:
    """Distributions and everything that pip would install with them."""
    todo, found = [(normal(name), frozenset()) for name in names], set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in found:
            continue
        found.add((name, extras))
        for line in metadata.requires(name) or []:
            one = Requirement(line)
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                todo.append((normal(one.name), frozenset(one.extras)))
    return {name for name, _ in found}


@cache
def packages() -> dict[str, set[str]]:
    """The distributions that bring each importable name."""
    return {name: set(map(normal, owners)) for name, owners in metadata.packages_distributions().items()}


def hide(folder: Path, *extras: str) -> dict[str, str]:
    """Variables of the environment under which nothing but the base and these extras is found."""
    wanted = [*BASE, *(name for extra in extras for name in EXTRAS[extra])]
    visible = with_requirements(wanted) | {"megapairs-hf"}
    hidden = {name for name, owners in packages().items() if not owners & visible}
    names = {name for owners in packages().values() for name in owners} - visible
    folder.mkdir(parents=True, exist_ok=True)
    text = HIDE.format(packages=sorted(hidden), names=sorted(names))
    (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def commands(environment: dict[str, str], *calls: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    """Run `megapairs` several times in one process, until one does not end with status 0."""
    given = [[str(word) for word in call] for call in calls]
    return python(environment, f"sys.exit(next(filter(None, map(main, {given!r})), 0))")


def python(environment: dict[str, str], code: str) -> subprocess.CompletedProcess[str]:
    """Run a script in which `main` is the command line."""
    start = "import sys\nfrom megapairs_hf.cli import main\n"
    return run([sys.executable, "-c", start + code], {"CUDA_VISIBLE_DEVICES": "", **environment})
