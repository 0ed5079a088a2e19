"""Files that the package ships and that lie beside it in the repository: recipes, benchmarks, metrics, card templates.

What surprises: there is one copy. A wheel carries it as `megapairs_hf/_shipped/` (setup.py puts it there); a checkout
and an editable install read the folders at the repository's top.
"""

from __future__ import annotations

import difflib
import os
from importlib import resources
from pathlib import Path

from megapairs_hf.core.errors import ConfigError

SHIPPED = ("recipes", "eval", "model_cards")


def shipped(name: str) -> Path:
    """The folder of that name.

    Args:
        name: one of `SHIPPED`.
    """
    package = Path(str(resources.files("megapairs_hf")))
    inside = package / "_shipped" / name
    return inside if inside.is_dir() else package.parent / name


def is_bare(name: str) -> bool:
    """Whether it is a name and no path: no separator, and not `.` or `..`."""
    return bool(name) and name not in {".", ".."} and not any(mark in name for mark in (os.sep, os.altsep) if mark)


def named(name: str, known: dict[str, Path], what: str) -> Path:
    """A shipped thing by its bare name, or whatever lies at a path.

    Args:
        name: bare: one of `known`; with a separator: a path, taken as it is.
        known: what is shipped, by name.
        what: what it is, for the message.

    Raises:
        ConfigError: nothing of that name is shipped; the nearest name is named.
    """
    if not is_bare(name):
        return Path(name)
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"shipped are {', '.join(sorted(known))}"
    there = f"; for the one in this folder write .{os.sep}{name}" if Path(name).exists() else ""
    raise ConfigError(f"no {what} {name!r} is shipped; {hint}{there}")


def recipes() -> dict[str, Path]:
    """The shipped recipes, by name."""
    return {path.stem: path for path in sorted(shipped("recipes").glob("*.yaml"))}


def card_templates() -> dict[str, Path]:
    """The shipped card templates, by name: `mmret-base` for `mmret-base.md.jinja`."""
    return {path.name.removesuffix(".md.jinja"): path for path in sorted(shipped("model_cards").glob("*.md.jinja"))}
