"""YAML and flags become one frozen dataclass.

A key of the YAML file, a field of the dataclass and a flag of the command line are the same word. An unknown key is an
error that names the nearest known one: a setting that is silently ignored is the most expensive kind of typing error.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

import dacite

from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.setting_values import shortened, typed
from megapairs_hf.core.yaml_values import load_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")
# `field(default=2, metadata=RUNTIME_ONLY)` marks a setting that changes no byte of the result and so no hash
RUNTIME_ONLY: dict[str, bool] = {"how": True}

# old name of a setting: its name now, for the error
RENAMED = {
    "band": "similarity_range",
    "band_kind": "range_kind",
    "datasets": "parts",
    "demonstrations": "num_few_shot",
    "licence": "license",
    "max_tokens": "max_new_tokens",
    "meta": "meta_columns",
    "min_fit": "min_pass_rate",
    "models": "encoders",
    "neighbours": "neighbors",
    "pool": "few_shot_file",
    "reply_format": "response_format",
    "retries": "max_retries",
    "wanted": "num_instructions",
}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of settings.

    Args:
        path: the file.

    Returns:
        Its top-level mapping, empty for an empty file.

    Raises:
        ConfigError: the file is absent, is not YAML, or is not a mapping.
    """
    try:
        loaded = load_yaml(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read the settings {path}: {error.strerror}; check the path") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} must hold `key: value` lines, not a {type(loaded).__name__}")
    return loaded


def parse_value(text: str) -> Any:
    """Read the value of a flag as YAML, so that `--similarity_range '[0.8, 0.96]'` and a file mean the same."""
    try:
        return load_yaml(text)
    except ValueError as error:
        raise ConfigError(f"cannot read the value {shortened(text)}: {error}") from error


def given_settings(cls: type[T], config: T | None, settings: Mapping[str, Any], where: str) -> T:
    """The settings of a function that takes them as one object or as keywords.

    Args:
        cls: their dataclass.
        config: the object, or None.
        settings: the keywords.
        where: the function, for errors.

    Raises:
        ConfigError: both are given, or a keyword is unknown or of another type.
    """
    if config is None:
        return build_config(cls, settings, where)
    if settings:
        raise ConfigError(f"{where}: give `config` or single settings ({', '.join(sorted(settings))}), not both")
    return config


def build_config(cls: type[T], values: Mapping[str, Any], where: str = "settings") -> T:
    """Make the dataclass `cls` from plain values.

    Args:
        cls: a frozen dataclass whose fields may be dataclasses, tuples or mappings of them.
        values: plain YAML values.
        where: what the values belong to, for errors.

    Returns:
        The dataclass, checked by its own `__post_init__` too.

    Raises:
        ConfigError: an unknown key (the nearest known one is named), a missing key, or a value of another type.
    """
    values = _completed(cls, values, where)
    settings = dacite.Config(cast=[tuple], strict=True)
    try:
        return dacite.from_dict(cls, values, settings)
    except dacite.MissingValueError as error:
        raise ConfigError(f"{where}: `{error.field_path}` is required; add it") from error
    except dacite.DaciteFieldError as error:
        value = shortened(getattr(error, "value", None))
        raise ConfigError(f"{where}: `{error.field_path}` cannot be {value}") from error


def _completed(cls: type[Any], values: Mapping[str, Any], where: str, prefix: str = "") -> dict[str, Any]:
    """Values of the fields' types; one for a list of one; settings inside settings with the field's own defaults."""
    check_keys(cls, values, f"{where}, {prefix[:-1]}" if prefix else where)
    complete, hints = dict(values), get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name not in complete:
            continue
        value, hint, name = complete[field.name], hints[field.name], prefix + field.name
        if is_list(hint) and not isinstance(value, (list, tuple, NoneType)):
            value = [value]
        inner = settings_class(hint)
        if inner is None:
            complete[field.name] = typed(hint, value, f"{where}: `{name}`")
        elif isinstance(value, (list, tuple)):
            inside = [_completed(inner, v, where, f"{name}.") if isinstance(v, dict) else v for v in value]
            complete[field.name] = tuple(inside)
        elif isinstance(value, dict):
            default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
            own = dataclasses.fields(default) if isinstance(default, inner) else ()
            defaults = {f.name: _as_plain(getattr(default, f.name)) for f in own}
            complete[field.name] = defaults | _completed(inner, value, where, f"{name}.")
    return complete


def settings_class(hint: Any) -> type[Any] | None:
    """The class of settings inside a setting: of itself, of those in its list, or of what may be null; else None."""
    parts = (hint, *get_args(hint))
    return next((each for each in parts if isinstance(each, type) and dataclasses.is_dataclass(each)), None)


def is_list(hint: Any) -> bool:
    """Whether a setting is a list of any length; a range has two values."""
    return get_origin(hint) is tuple and get_args(hint)[-1] is Ellipsis


def _as_plain(value: Any) -> Any:
    """A default as plain values, the settings included that change no result."""
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def check_keys(cls: type[Any], values: Mapping[str, Any], where: str) -> None:
    """Refuse keys that are no field of `cls`, naming the nearest one."""
    known = [field.name for field in dataclasses.fields(cls)]
    if not isinstance(values, dict):
        raise ConfigError(
            f"{where}: {shortened(values)} must be `key: value` settings; known keys: {', '.join(known)}"
        )
    hints = get_type_hints(cls)
    for key, value in values.items():
        if get_origin(hints.get(key)) is tuple and not isinstance(value, (list, tuple)):
            # one value is taken for a list of one, but not for a range of two
            if value is None or not is_list(hints[key]):
                raise ConfigError(f"{where}: `{key}` must be a list in square brackets, not {shortened(value)}")
        if key not in known:
            if RENAMED.get(str(key)) in known:
                raise ConfigError(f"{where}: `{key}` is now `{RENAMED[str(key)]}`")
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {shortened(key)}; {hint}")


def config_dict(config: Any) -> dict[str, Any]:
    """The settings that decide what is made, as plain JSON values, keys in field order."""
    plain: dict[str, Any] = json.loads(json.dumps(_plain(config)))
    return plain


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        what = [f.name for f in dataclasses.fields(value) if not f.metadata.get("how")]
        return {name: _plain(getattr(value, name)) for name in what}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return {key: _plain(part) for key, part in value.items()} if isinstance(value, dict) else value


def config_hash(config: Any) -> str:
    """A hash of the settings that is the same in every process and on every machine."""
    text = json.dumps(config_dict(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raise the `ConfigError` that every `__post_init__` raises: field, value, what is allowed."""
    if not condition:
        raise ConfigError(f"`{field}` is {shortened(value)}, but must be {allowed}")
