"""From words on the command line to a call with settings."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import importlib
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from megapairs_hf.core.config import build_config, parse_value, read_yaml
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from megapairs_hf.cli.stage import Stage

USAGE = """megapairs COMMAND [options]

Composed-image-retrieval data from any captioned image corpus, and retrievers
trained on it.

The whole flow:
  demo       on the embedded corpus, with a report at the end
  run        every stage of a recipe, resuming

One stage at a time, each with --config F.yaml, --work DIR, and its settings
as flags:
  corpus     images and captions from a data set, a folder, tars, or drawn
  pretrain   small encoders, where no weights can be had
  embed      images and captions to embeddings, one set per encoder
  mine       related pairs and hard negatives
  describe   what the two images of a pair share and how they differ
  instruct   three or more search instructions a pair
  verify     whether each instruction leads to its target (optional)
  build      the data set of triplets
  train      an MMRet on the triplets
  eval       composed retrieval on held-out images; eval MODEL BENCHMARK …
             on CIRCO, CIRR, FashionIQ, GeneCIS; eval check-data BENCHMARK

Looking and sharing:
  report     one HTML page of a work folder
  inspect    what an artifact holds
  dataset    import, export, view, remove images from, or tell of a data set
  push       a data set, model or results to the Hub; --dry-run shows what
  env        versions and devices

`megapairs COMMAND --help` shows a command's settings; --debug shows tracebacks.
"""


def parse(words: list[str]) -> Callable[[], int]:
    """Read the command line.

    Args:
        words: without the program's name.

    Returns:
        The call to make; it returns the exit status.

    Raises:
        SystemExit: with status 2 for wrong usage, 0 after `--help` and `--version`.
        ConfigError: a setting is unknown, missing or out of range.
    """
    from megapairs_hf.cli.commands import COMMANDS, STAGES

    if not words or words[0] in {"-h", "--help", "help"}:
        print(USAGE, end="")  # noqa: T201
        raise SystemExit(0 if words else 2)
    if words[0] == "--version":
        print(__version__)  # noqa: T201
        raise SystemExit(0)
    command, rest = words[0], words[1:]
    if command == "eval" and rest and (not rest[0].startswith("-") or rest[0].startswith("--check-submission")):
        from megapairs_hf.cli.eval import eval_command

        return eval_command(rest)
    if command in STAGES:
        return _stage_call(command, STAGES[command], rest)
    if command in COMMANDS:
        module, name = COMMANDS[command].split(":")
        function: Callable[[list[str]], Callable[[], int]] = getattr(importlib.import_module(module), name)
        return function(rest)
    near = difflib.get_close_matches(command, [*STAGES, *COMMANDS], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "see megapairs --help"
    argparse.ArgumentParser("megapairs", add_help=False, usage="megapairs COMMAND [options]").error(
        f"unknown command {command!r}; {hint}"
    )


def stage_parser(command: str, stage: Stage) -> argparse.ArgumentParser:
    """The flags of a stage: its inputs and every field of its settings."""
    cls = stage.config_class()
    parser = argparse.ArgumentParser(
        f"megapairs {command}", description=stage.help, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", metavar="F.yaml", help="settings; flags override them")
    parser.add_argument("--work", default="work", metavar="DIR", help="folder of the whole pipeline (default: work)")
    parser.add_argument("--out", metavar="DIR", help=f"where the result goes (default: WORK/{stage.out})")
    for name in stage.inputs:
        parser.add_argument(f"--{name}", metavar="DIR", help=f"input (default: WORK/{name})")
    parser.add_argument("--overwrite", action="store_true", help="throw away what is there")
    documented, hints = attribute_help(cls), get_type_hints(cls)
    group = parser.add_argument_group("settings (the keys of the YAML file; values as in YAML)")
    for field in dataclasses.fields(cls):
        flags = [f"--{name}" for name in dict.fromkeys((field.name, field.name.replace("_", "-")))]
        told = documented.get(field.name, "") + _shown_default(field)
        group.add_argument(*flags, dest=f"set.{field.name}", metavar="V", help=told)
        inner = next(
            (h for h in (hints[field.name], *get_args(hints[field.name])) if dataclasses.is_dataclass(h)), None
        )
        # a list of such is written in YAML; only a single one has flags for its keys
        if inner is not None and get_origin(hints[field.name]) not in (list, tuple, dict):
            _add_section(group, field.name, inner)
    return parser


def _add_section(group: argparse._ArgumentGroup, name: str, cls: Any) -> None:
    """A flag for each key of a nested mapping."""
    documented = attribute_help(cls)
    for field in dataclasses.fields(cls):
        told = documented.get(field.name, "") + _shown_default(field)
        group.add_argument(f"--{name}.{field.name}", dest=f"nested.{name}.{field.name}", metavar="V", help=told)


def _shown_default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING or dataclasses.is_dataclass(field.default):
        return ""
    shown = str(field.default).replace("%", "%%")
    return f" (default: {shown})" if len(shown) < 50 else ""


def attribute_help(cls: type[Any]) -> dict[str, str]:
    """The `Attributes:` of a class and its bases, by name, as one line each."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, listed = (base.__doc__ or "").partition("Attributes:")
        name = ""
        for line in listed.splitlines():
            if line.startswith(" " * 8) and not line.startswith(" " * 9) and ":" in line:
                name, _, text = line.strip().partition(": ")
                found[name] = text
            elif line.startswith(" " * 12) and name:
                found[name] += " " + line.strip()
    return {name: text.replace("%", "%%") for name, text in found.items()}


def _stage_call(command: str, stage: Stage, words: list[str]) -> Callable[[], int]:
    parser = stage_parser(command, stage)
    given = expand_dotted(words)
    options = vars(parser.parse_args(given.plain))
    hints = get_type_hints(stage.config_class())
    values = stage_settings(options["config"], command) if options["config"] else {}
    where = options["config"] or f"megapairs {command}"
    for key, value in options.items():
        if value is not None and key.startswith("set."):
            literal = hints.get(key[4:]) in (str, str | None) and value != "null"
            values[key[4:]] = value if literal else parse_value(value)
    for path, value in given.dotted.items():
        set_dotted(values, path, value)
    config = build_config(stage.config_class(), values, where)
    inputs = {name: options[name] for name in stage.inputs if options[name]}
    return functools.partial(
        stage.run,
        config,
        work=options["work"],
        out=options["out"],
        inputs=inputs,
        overwrite=options["overwrite"],
    )


def stage_settings(path: str, command: str) -> dict[str, Any]:
    """What a file says about a stage: the stage's own key of a recipe, all of any other file.

    Raises:
        ConfigError: the file is a recipe without that stage.
    """
    from megapairs_hf.cli.commands import RECIPE_KEYS

    values = read_yaml(path)
    if not values or not set(values) <= set(RECIPE_KEYS):
        return values
    if command not in values:
        raise ConfigError(f"{path} is a recipe without `{command}`; it has {', '.join(values)}")
    return dict(values[command] or {})


@dataclasses.dataclass(frozen=True)
class Words:
    """Words of the command line: plain ones, and nested settings such as `--scenes.count 100`."""

    plain: list[str]
    dotted: dict[str, Any]


def expand_dotted(words: list[str]) -> Words:
    """Take nested settings out of the words."""
    plain: list[str] = []
    dotted: dict[str, Any] = {}
    i = 0
    while i < len(words):
        name, equals, value = words[i].partition("=")
        nested = name.startswith("--") and "." in name
        if nested and (equals or i + 1 < len(words)):
            dotted[name[2:].replace("-", "_")] = parse_value(value if equals else words[i + 1])
            i += 1 if equals else 2
        else:
            plain.append(words[i])
            i += 1
    return Words(plain, dotted)


def set_dotted(values: dict[str, Any], path: str, value: Any) -> None:
    """Set `a.b` in nested mappings."""
    *parents, last = path.split(".")
    for name in parents:
        inner = values.get(name)
        values[name] = dict(inner) if isinstance(inner, dict) else {}
        values = values[name]
    values[last] = value
