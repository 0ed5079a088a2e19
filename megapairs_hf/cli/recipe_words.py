"""The words of a stage while a recipe runs, where its settings are no flags but `--set STAGE.KEY=VALUE`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from megapairs_hf.cli.commands import STAGES
from megapairs_hf.cli.flags import settings_of
from megapairs_hf.core.config import RENAMED, is_list

if TYPE_CHECKING:
    from collections.abc import Iterator

# a flag, and its values where they end before anything but a word of the sentence
FLAG = re.compile(r"--([a-z][\w.]*)((?: (?!--)[\w.{}\[\]-]*[\w}\]])+(?=[`,;.)]|$| --))?")


def with_set(text: str, name: str, cls: type[Any]) -> str:
    """A sentence that names flags of a stage, with what `run` takes in their place.

    Args:
        text: the sentence, such as `make them with --caption_template, or pass --captions optional`.
        name: the stage's key in the recipe.
        cls: the class of its settings.
    """
    hints = {setting.key: setting.hint for setting in settings_of(cls)}

    def replaced(match: re.Match[str]) -> str:
        key, values = match[1], (match[2] or "").split()
        if key not in hints:
            return match[0]
        if is_list(hints[key]) and values:
            return f"--set '{name}.{key}=[{', '.join(values)}]'"
        # what follows a value is a word of the sentence
        return " ".join([f"--set {name}.{key}={values[0] if values else '…'}", *values[1:]])

    return FLAG.sub(replaced, text)


def with_key(text: str, name: str, cls: type[Any]) -> str:
    """An error that names a setting, with how `run` changes the first that it names."""
    for quoted in re.finditer(r"`([a-z][\w.]*)`", text):
        if quoted[1] in {setting.key for setting in settings_of(cls)}:
            return f"{text[: quoted.end()]} (--set {name}.{quoted[1]}=…){text[quoted.end() :]}"
    return text


def advise_set(word: str) -> str:
    """What to pass in place of a flag that is a setting of a stage; empty where it is none."""
    flag, _, value = word.partition("=")
    key = flag.removeprefix("--").replace("-", "_")
    key = RENAMED.get(key, key)
    stages = list(_stages_with(key))
    if not stages:
        return ""
    where = stages[0] if len(stages) == 1 else "STAGE"
    listed = f"the stage {stages[0]}" if len(stages) == 1 else f"the stages {', '.join(stages)}"
    return f"{flag} is a setting of {listed}; pass it as `--set {where}.{key}={value or 'VALUE'}`"


def _stages_with(key: str) -> Iterator[str]:
    for name, stage in STAGES.items():
        if any(setting.key == key for setting in settings_of(stage.config_class())):
            yield name
