"""The few-shot examples and their sampling."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from megapairs_hf.core.errors import ConfigError


@dataclass(frozen=True)
class Demonstration:
    """One worked example of the second step."""

    id: int
    description: str
    instructions: tuple[str, ...]


def read_prompt_file(path: str | None, default: str) -> tuple[str, str]:
    """The text of a prompt file or of one that comes with the package, and its name."""
    if path is None:
        return (resources.files("megapairs_hf.annotation") / "prompts" / default).read_text(encoding="utf-8"), default
    try:
        return Path(path).read_text(encoding="utf-8"), path
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}; check the path in the settings") from error


def load_pool(path: str | None, draw: int) -> list[Demonstration]:
    """The demonstrations to draw from.

    Args:
        path: a JSON file, a list of objects with `id`, `description`, `instructions`; None for the package's own.
        draw: how many will be drawn for each pair.

    Raises:
        ConfigError: it cannot be read, has another form, or holds fewer than `draw`.
    """
    text, name = read_prompt_file(path, "few_shot_examples.json")
    try:
        pool = [Demonstration(int(d["id"]), str(d["description"]), tuple(d["instructions"])) for d in json.loads(text)]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"the pool {name} must be a JSON list of objects with id, description and instructions ({error!r})"
        ) from error
    for d in pool:
        if not d.instructions or not all(isinstance(text, str) and len(text) > 1 for text in d.instructions):
            raise ConfigError(f"the pool {name} has no list of instructions under id {d.id}; write some")
    if len({d.id for d in pool}) < len(pool):
        raise ConfigError(f"the pool {name} has an id twice; number its demonstrations")
    if len(pool) < draw:
        raise ConfigError(
            f"the pool {name} holds {len(pool)} demonstrations, but `demonstrations` is {draw}; add some"
        )
    return pool


def pool_digest(pool: list[Demonstration]) -> str:
    """A hash of the demonstrations."""
    told = [[d.id, d.description, list(d.instructions)] for d in pool]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def draw_demonstrations(pool: list[Demonstration], count: int, seed: int) -> list[Demonstration]:
    """A pair's own demonstrations, in the order in which they are shown."""
    return random.Random(seed).sample(pool, count)


def draw_word_num(bounds: tuple[int, int], seed: int) -> int:
    """A pair's own WORD_NUM."""
    return random.Random(seed).randint(*bounds)
