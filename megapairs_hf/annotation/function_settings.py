"""The settings of a row function from keywords, those of its endpoint among the others."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from megapairs_hf.annotation.client.endpoint import Endpoint
from megapairs_hf.core.config import build_config
from megapairs_hf.core.errors import ConfigError


def build_settings(cls: type[Any], settings: dict[str, Any], name: str) -> Any:
    """The settings of a row function, those of the endpoint among the others or together as `endpoint`."""
    values, endpoint = dict(settings), [field.name for field in dataclasses.fields(Endpoint)]
    known = sorted({*endpoint, *(field.name for field in dataclasses.fields(cls))})
    for key in sorted(values.keys() - known):
        # the endpoint's names stand among the others
        near = difflib.get_close_matches(key, known, n=1)
        if near and near[0] in endpoint:
            raise ConfigError(f"{name}: unknown key {key!r}; did you mean {near[0]!r}?")
    flat = values.keys() & endpoint
    if flat:
        values["endpoint"] = {**dict(values.get("endpoint") or {}), **{key: values.pop(key) for key in flat}}
    return build_config(cls, values, name)
