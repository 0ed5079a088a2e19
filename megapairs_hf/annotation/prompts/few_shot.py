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
class FewShotExample:
    """One few-shot example of the second step."""

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


def load_examples(path: str | None, count: int) -> list[FewShotExample]:
    """The few-shot examples to sample from.

    Args:
        path: a JSON file, a list of objects with `id`, `description`, `instructions`; None for the package's own.
        count: how many will be sampled for each pair.

    Raises:
        ConfigError: the file cannot be read, has another form, or holds fewer than `count`.
    """
    text, name = read_prompt_file(path, "few_shot_examples.json")
    try:
        examples = [
            FewShotExample(int(d["id"]), str(d["description"]), tuple(d["instructions"])) for d in json.loads(text)
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"the few-shot file {name} must be a JSON list of objects with id, description, instructions ({error!r})"
        ) from error
    for d in examples:
        if not d.instructions or not all(isinstance(text, str) and len(text) > 1 for text in d.instructions):
            raise ConfigError(f"the few-shot file {name} has no list of instructions under id {d.id}; write some")
    if len({d.id for d in examples}) < len(examples):
        raise ConfigError(f"the few-shot file {name} has an id twice; number its examples")
    if len(examples) < count:
        raise ConfigError(
            f"the few-shot file {name} holds {len(examples)} examples, but `num_few_shot` is {count}; add some"
        )
    return examples


def examples_digest(examples: list[FewShotExample]) -> str:
    """A hash of the few-shot examples."""
    values = [[d.id, d.description, list(d.instructions)] for d in examples]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def sample_examples(examples: list[FewShotExample], count: int, seed: int) -> list[FewShotExample]:
    """The few-shot examples of a pair, in the order of the prompt."""
    return random.Random(seed).sample(examples, count)


def sample_word_num(bounds: tuple[int, int], seed: int) -> int:
    """The WORD_NUM of a pair."""
    return random.Random(seed).randint(*bounds)
