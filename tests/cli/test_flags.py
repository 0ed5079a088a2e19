"""Flags made from settings classes: headings, types, defaults, and the way back to settings."""

import json
import re
from dataclasses import dataclass, field, fields
from typing import ClassVar

import pytest

from megapairs_hf.cli.commands import STAGES
from megapairs_hf.cli.flags import Parser, add_settings, attribute_help, nested, selected, settings_of, shown_default
from megapairs_hf.core.config import build_config
from tests.cli.test_cli import help_of


@pytest.mark.parametrize("command", STAGES)
def test_every_setting_is_a_flag_and_is_explained(command):
    stage = STAGES[command]
    names = [each.name for each in fields(stage.config_class())]
    parser = Parser(command)
    stage.add_flags(parser)
    flags = parser._option_string_actions
    assert all(f"--{name}" in flags for name in names)
    assert set(names) <= set(attribute_help(stage.config_class()))


def test_help_has_headings_types_and_defaults_that_can_be_pasted_back():
    page = help_of("mine")
    assert "--similarity_range [LOW, HIGH]\n" in page
    assert "(default: [0.8, 0.96])" in page
    assert "--range_kind {absolute,quantile}\n" in page
    assert "--neighbors INT " in page
    pretrain = help_of("pretrain")
    assert "\nclip:\n" in pretrain
    # the field's own default, not the class's
    assert re.search(r"--clip.steps INT .*\(default: 1000\)", pretrain)


@pytest.mark.parametrize("command", STAGES)
def test_every_default_that_is_shown_is_accepted(command):
    cls = STAGES[command].config_class()
    for setting in settings_of(cls):
        text = re.fullmatch(r"\(default: (.*)\)", shown_default(setting).replace("%%", "%"))
        if text is None or setting.inner:
            continue
        parser = Parser(command)
        STAGES[command].add_flags(parser)
        (read,) = selected(parser.parse_args([f"--{setting.key}={text[1]}"]), cls).values()
        # YAML reads 5e-06 as a text, which `build_config` takes for the number
        assert json.dumps(float(read) if setting.hint is float else read) == json.dumps(setting.default)


@dataclass(frozen=True)
class Inner:
    """Attributes:
    size: how large.
    """

    size: int = 3


@dataclass(frozen=True)
class Settings:
    """Settings of a test.

    Attributes:
        name: what it is called.
        share: 50 % or less.
        fast: whether to hurry.
        tags: any number.
        inner: settings inside.
    """

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {"what": ("tags", "name"), "how": ("fast",)}

    name: str
    fast: bool = True
    share: float = 0.5
    tags: tuple[str, ...] = ()
    inner: Inner = field(default=Inner(2))


def read(*words):
    parser = Parser("test")
    add_settings(parser, Settings)
    return build_config(Settings, nested(selected(parser.parse_args(words), Settings)))


def test_settings_become_flags_under_their_headings():
    parser = Parser("test")
    add_settings(parser, Settings, skip=("tags",))
    page = parser.format_help()
    assert [line for line in page.splitlines() if line.endswith(":") and not line.startswith(" ")] == [
        "options:", "what:", "how:", "other settings:", "inner:"
    ]  # fmt: skip
    assert "--name TEXT             what it is called (required)" in page
    assert "--share FLOAT           50 % or less (default: 0.5)" in page
    assert "--[no-]fast" in page
    assert "--inner.size INT" in page
    assert "--tags" not in page


def test_flags_become_settings():
    assert read("--name", "a") == Settings("a")
    assert read("--name", "[1]", "--inner.size", "5", "--tags", "b").inner == Inner(5)
    assert read("--name=[1]").name == "[1]"
    assert read("--name", "a", "--tags", "b").tags == ("b",)
    assert (
        read("--name", "a", "--tags", "b", "no").tags == read("--name", "a", "--tags", "[b, 'no']").tags == ("b", "no")
    )
    assert read("--name", "a", "--inner", "{size: 4}").inner == Inner(4)


@pytest.mark.parametrize("words", [["--no-fast"], ["--fast", "false"], ["--fast=false"], ["--fast", "--no-fast"]])
def test_a_switch_is_turned_off(words):
    assert not read("--name", "a", *words).fast
    assert read("--name", "a", "--fast", "true").fast
