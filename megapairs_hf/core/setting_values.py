"""One value of a setting as its type wants it, or one sentence that names the setting.

What surprises: false is `no` where the choices are texts with `no` among them, and `no` is false where a switch
belongs, because files for YAML 1.1 and keywords of Python mix the two up. NaN and infinity are refused by name: they
pass most comparisons with a range.
"""

from __future__ import annotations

import itertools
import math
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.yaml_values import FLOAT

SWITCHES = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}
# what manifests (Arrow, JSON of other programs) and random generators hold
LARGEST = 2**63 - 1
LONGEST = 100


def shortened(value: object) -> str:
    """The `repr` of a value, short enough for a sentence."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def as_switch(value: object) -> object:
    """True or False for `yes`, `on`, `No`, …; anything else as it is."""
    return SWITCHES.get(value.lower(), value) if isinstance(value, str) else value


def typed(hint: Any, value: Any, name: str) -> Any:
    """A single value, or a list or mapping of such, as a type wants it.

    Args:
        hint: the type of the setting; what is no number, text, switch or choice is left to the caller.
        value: as YAML, a flag or a keyword has it.
        name: of file and setting, for the error.

    Raises:
        ConfigError: the value is of another type, or no finite number.
    """
    args, origin = [each for each in get_args(hint) if each is not NoneType], get_origin(hint)
    if origin in (Union, UnionType):
        return value if value is None or len(args) > 1 else typed(args[0], value, name)
    if origin is tuple and isinstance(value, list | tuple):
        hints = itertools.repeat(args[0]) if args[-1] is Ellipsis else args
        if args[-1] is not Ellipsis and len(value) != len(args):
            _refuse(name, value, f"write {len(args)} values in square brackets")
        return tuple(typed(each, part, name) for each, part in zip(hints, value, strict=False))
    if origin is dict and isinstance(value, dict):
        return {typed(args[0], key, name): typed(args[1], part, name) for key, part in value.items()}
    return _single(hint, value, name)


def _single(hint: Any, value: Any, name: str) -> Any:
    if get_origin(hint) is Literal:
        return _choice(get_args(hint), value, name)
    if hint is bool:
        switch = as_switch(value)
        return switch if isinstance(switch, bool) else _refuse(name, value, "write true or false")
    if hint in (int, float):
        return _number(hint, value, name)
    if hint is str and not isinstance(value, str):
        advice = ": quote it" if isinstance(value, bool | int | float) else ""
        _refuse(name, value, f"a text belongs there{advice}")
    return value


def _choice(choices: tuple[Any, ...], value: Any, name: str) -> Any:
    if value not in choices or isinstance(value, bool):
        switch = as_switch(value)
        for choice in choices:
            if isinstance(switch, bool) and as_switch(choice) is switch:
                return choice
        _refuse(name, value, f"take one of {', '.join(map(repr, choices))}")
    return value


def _number(kind: type[int | float], value: Any, name: str) -> Any:
    if kind is float and isinstance(value, str) and FLOAT.fullmatch(value):
        # other loaders read YAML 1.1, where 5e-6 is a text
        value = float(value.lower().replace(".inf", "inf").replace(".nan", "nan"))
    kinds = "a whole number" if kind is int else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float):
        _refuse(name, value, f"write {kinds}")
    if not math.isfinite(value):
        _refuse(name, value, f"write {kinds} that is finite")
    if abs(value) > LARGEST or (kind is int and value != int(value)):
        _refuse(name, value, f"write {kinds} up to 2^63")
    return kind(value)


def _refuse(name: str, value: object, advice: str) -> NoReturn:
    raise ConfigError(f"{name} cannot be {shortened(value)}; {advice}")
