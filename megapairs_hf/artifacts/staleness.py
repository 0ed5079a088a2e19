"""Whether what is in a folder was made with other settings or inputs."""

from __future__ import annotations

from typing import Any

from megapairs_hf.core.errors import StaleArtifactError


def check_plan(path: str, there: dict[str, Any], plan: dict[str, Any]) -> None:
    """Refuse to continue what was begun otherwise.

    Args:
        path: the folder.
        there: kind, schema version, config, inputs and shards of what is in it.
        plan: the same of this run.

    Raises:
        StaleArtifactError: they differ; the message names the first difference.
    """
    for part in ("kind", "schema_version", "config", "inputs", "shards"):
        difference = first_difference(part, there.get(part), plan[part])
        if difference:
            name, old, new = difference
            raise StaleArtifactError(
                f"{path} was made with another {name} ({_short(old)} there, {_short(new)} now);"
                " use other folders (--work, --out), or pass --overwrite to make it again",
                name,
            )


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def first_difference(name: str, old: Any, new: Any) -> tuple[str, Any, Any] | None:
    """The first difference of two plain values: dotted name, old value, new value."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            difference = first_difference(f"{name}.{key}", old.get(key), new.get(key))
            if difference:
                return difference
        return None
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (left, right) in enumerate(zip(old, new, strict=True)):
            difference = first_difference(f"{name}[{i}]", left, right)
            if difference:
                return difference
        return None
    return None if old == new else (name, old, new)
