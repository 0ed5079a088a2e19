"""Flags made from settings classes: one for each field, named like its YAML key, explained by its `Attributes:` line.

What surprises: `--batch-size` is taken for `--batch_size`, and `--private true` for `--private`, so that a line of a
YAML file can be typed as a flag; the help shows one spelling.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import sys
import textwrap
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from megapairs_hf.core.config import RENAMED, is_list, parse_value, settings_class
from megapairs_hf.core.formatting import printable_lines
from megapairs_hf.core.progress import STDERR
from megapairs_hf.core.setting_values import as_switch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    # reads the options and checks the settings; what it returns does the work and gives the exit status
    Prepare = Callable[[argparse.Namespace], Callable[[], int]]

SETTING = "set."
# a longer default says less than the line that explains it
LONGEST_DEFAULT = 60
METAVARS = {bool: "BOOL", int: "INT", float: "FLOAT", str: "TEXT"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field of a settings class, or of settings inside it.

    Attributes:
        key: its name in the YAML file, dotted where it is inside another: `clip.steps`.
        hint: its type.
        default: `dataclasses.MISSING` where there is none.
        help: its line of the class's `Attributes:`.
    """

    key: str
    hint: Any
    default: Any
    help: str

    @property
    def inner(self) -> type[Any] | None:
        """The class of settings that it holds; None for a value, and for a list of settings."""
        return None if get_origin(self.hint) in (tuple, list, dict) else settings_class(self.hint)


class HelpPage(argparse.HelpFormatter):
    """Help in 80 columns: one spelling for each flag, texts of several lines as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=80)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)

    def _split_lines(self, text: str, width: int) -> list[str]:
        # a model's name is not broken at its hyphens
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        if isinstance(action, argparse.BooleanOptionalAction):
            return f"--[no-]{action.option_strings[0][2:]}"
        spellings = {name.lstrip("-").replace("-", "_"): name for name in reversed(action.option_strings)}
        shown = ", ".join(reversed(spellings.values()))
        value = self._format_args(action, action.dest.rpartition(".")[2].upper())
        return f"{shown} {value}".strip()


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence with the nearest flag, and whose help is a `HelpPage`."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, formatter_class=HelpPage, allow_abbrev=False, **settings)
        # what to pass in place of a flag that there is not; empty where that is not known
        self.advise: Callable[[str], str] = lambda _: ""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and refuse what is not known, here rather than in the parser above a sub-command's."""
        words = list(self._without_values(list(sys.argv[1:] if args is None else args)))
        if self._subparsers is None:
            # a misspelt flag is named before one that is missing
            for word in words:
                name = word.partition("=")[0]
                if name.startswith("--") and name not in {"--", *self._option_string_actions} and " " not in name:
                    self.error(self._explain(word))
        options, unknown = super().parse_known_args(words, namespace)
        if unknown:
            self.error(self._explain(unknown[0]))
        return options, unknown

    def format_usage(self) -> str:
        """The positional words alone: the flags are listed below, one by one."""
        self._shorten_usage()
        return super().format_usage()

    def format_help(self) -> str:
        """The help page."""
        self._shorten_usage()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one sentence."""
        more = "" if message.endswith(("?", "`")) else f"; see `{self.prog} --help`"
        self.exit(2, f"{self.prog}: {message}{more}\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End, with words of the user's as letters only; nothing is raised where nobody reads."""
        STDERR.write(printable_lines(message or ""))
        raise SystemExit(status)

    def _shorten_usage(self) -> None:
        words = [self._get_formatter()._format_args(action, action.dest) for action in self._get_positional_actions()]
        self.usage = self.usage or " ".join([self.prog, *words, "[--FLAG VALUE ...]"]).replace("%", "%%")

    def _without_values(self, words: list[str]) -> Iterator[str]:
        """`--private true` as `--private`, `--private=false` as `--no-private`."""
        words = list(reversed(words))
        while words:
            word = words.pop()
            name, equals, value = word.partition("=")
            switch = isinstance(self._option_string_actions.get(name), argparse.BooleanOptionalAction)
            if switch and not equals and words and isinstance(as_switch(words[-1]), bool):
                value = words.pop()
            if switch and isinstance(as_switch(value), bool):
                word = name if as_switch(value) else f"--no-{name[2:]}"
            yield word

    def _explain(self, word: str) -> str:
        if not word.startswith("-"):
            return f"unexpected argument {word!r}"
        whole, word = word, word.partition("=")[0]
        flags = [name for name in self._option_string_actions if name.startswith("--")]
        renamed = RENAMED.get(word[2:].replace("-", "_"))
        if f"--{renamed}" in flags:
            return f"`{word}` is now `--{renamed}`"
        near, advice = difflib.get_close_matches(word, flags, n=1), self.advise(whole)
        if advice:
            return advice
        return f"there is no flag {word}" + (f"; did you mean {near[0]}?" if near else "")


def add_settings(
    parser: argparse.ArgumentParser, cls: type[Any], skip: Collection[str] = (), defaults: Any = None
) -> None:
    """Add a flag for each field of a settings class, under the headings of its `GROUPS`, if it has them.

    Args:
        parser: gets the flags.
        cls: a dataclass; settings inside settings get a heading and flags of their own, such as `--clip.steps`.
        skip: fields that are no flags.
        defaults: an instance that has them, where they are not the class's own.
    """
    headings = {name: heading for heading, names in getattr(cls, "GROUPS", {}).items() for name in names}
    rest = "other settings" if headings else "settings"
    titled = {title: parser.add_argument_group(title) for title in (*dict.fromkeys(headings.values()), rest)}
    inside: dict[str, argparse._ArgumentGroup] = {}
    for setting in settings_of(cls, instance=defaults):
        top = setting.key.partition(".")[0]
        if top in skip:
            continue
        if setting.inner is not None and top == setting.key:
            inside[top] = parser.add_argument_group(top)
        _add_flag(inside.get(top) or titled[headings.get(top, rest)], setting)


def _add_flag(group: argparse._ArgumentGroup, setting: Setting) -> None:
    flags = [f"--{name}" for name in dict.fromkeys((setting.key, setting.key.replace("_", "-")))]
    text = f"{setting.help.removesuffix('.')} {shown_default(setting)}".strip()
    kind: dict[str, Any] = {"metavar": metavar(setting.hint)}
    if setting.hint is bool:
        kind = {"action": argparse.BooleanOptionalAction, "default": None}
    elif is_list(setting.hint):
        kind = {"nargs": "+", "metavar": metavar(get_args(setting.hint)[0])}
    group.add_argument(*flags, dest=SETTING + setting.key, help=text, **kind)


def settings_of(cls: type[Any], prefix: str = "", instance: Any = None) -> Iterator[Setting]:
    """The fields of a settings class, those of settings inside it after each.

    Args:
        cls: a dataclass.
        prefix: of the keys.
        instance: has the defaults, where another class's field sets them.
    """
    documented, hints = attribute_help(cls), get_type_hints(cls)
    for field in dataclasses.fields(cls):
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        value = default if instance is None else getattr(instance, field.name)
        setting = Setting(f"{prefix}{field.name}", hints[field.name], value, documented.get(field.name, ""))
        yield setting
        if setting.inner is not None:
            inner = value if isinstance(value, setting.inner) else None
            yield from settings_of(setting.inner, f"{setting.key}.", inner)


def selected(options: argparse.Namespace, cls: type[Any]) -> dict[str, Any]:
    """The settings that the flags give, by dotted key."""
    hints = {setting.key: setting.hint for setting in settings_of(cls)}
    values = {}
    for name, value in vars(options).items():
        if value is not None and name.startswith(SETTING):
            key = name.removeprefix(SETTING)
            values[key] = read_flag(hints[key], value)
    return values


def read_flag(hint: Any, value: Any) -> Any:
    """The value of a flag: a text as it is, words of a list one by one or as a list in YAML, all else as YAML."""
    if isinstance(value, list):
        in_brackets = len(value) == 1 and value[0].lstrip().startswith("[")
        return parse_value(value[0]) if in_brackets else [read_flag(get_args(hint)[0], each) for each in value]
    literal = not isinstance(value, str) or (_is_text(hint) and value != "null")
    return value if literal else parse_value(value)


def _is_text(hint: Any) -> bool:
    """Whether a setting is a text, which may be `no` or `[1]` as well."""
    parts = [each for each in get_args(hint) if each is not NoneType]
    if get_origin(hint) is Literal:
        return all(isinstance(each, str) for each in parts)
    return hint is str or (get_origin(hint) in (Union, UnionType) and all(map(_is_text, parts)))


def set_dotted(values: dict[str, Any], path: str, value: Any) -> None:
    """Set `a.b` in nested mappings."""
    *parents, last = path.split(".")
    for name in parents:
        inner = values.get(name)
        values[name] = dict(inner) if isinstance(inner, dict) else {}
        values = values[name]
    values[last] = value


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys as mappings in mappings."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        set_dotted(tree, key, value)
    return tree


def metavar(hint: Any) -> str:
    """What kind of value a flag takes, in the syntax in which it is written."""
    args = [each for each in get_args(hint) if each is not NoneType]
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return "|".join(metavar(each) for each in args)
    if origin is Literal:
        return "{" + ",".join(map(str, args)) + "}"
    if origin is tuple and args[-1] is not Ellipsis:
        return "[LOW, HIGH]" if len(args) == 2 else f"[{', '.join(map(metavar, args))}]"
    if origin is tuple:
        return f"[{metavar(args[0])}, ...]"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "{KEY: VALUE, ...}"
    return METAVARS.get(hint, "VALUE")


def shown_default(setting: Setting) -> str:
    """`(default: …)` in the syntax that the flag takes; nothing for settings inside settings, and for what is long."""
    value = setting.default
    if value is dataclasses.MISSING:
        return "(required)"
    if value == "":
        return ""
    try:
        text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    except TypeError:
        return ""
    return f"(default: {text})".replace("%", "%%") if len(text) <= LONGEST_DEFAULT else ""


def attribute_help(cls: type[Any]) -> dict[str, str]:
    """The `Attributes:` of a class and its bases, by name, as one line each."""
    lines: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, listed = (base.__doc__ or "").partition("Attributes:")
        name = ""
        for line in listed.splitlines():
            if line.startswith(" " * 8) and not line.startswith(" " * 9) and ":" in line:
                name, _, text = line.strip().partition(": ")
                lines[name] = text
            elif line.startswith(" " * 12) and name:
                lines[name] += " " + line.strip()
    return {name: text.replace("%", "%%") for name, text in lines.items()}
