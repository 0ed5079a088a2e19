"""YAML as people read it: 010 is ten, 1:10 is a text, 5e-6 is a number, and a key that stands twice is an error.

What surprises: YAML 1.1, which PyYAML reads, has numbers in base 8 and 60 and lets the later of two equal keys win, so
that a recipe of two files merged into one would lose a setting without a word.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

INT = re.compile(r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with numbers in base 10, and without keys that stand twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping; of two equal keys the second is refused."""
        seen: set[str] = set()
        for key, _ in node.value:
            # `<<` may stand for what is overridden
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"`{key.value}` stands twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _int(_: Loader, node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    return int(text, 16) if text.lower().startswith("0x") else int(text)


def _float(_: Loader, node: yaml.ScalarNode) -> float:
    text = node.value.replace("_", "").lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] not in NUMBERS]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(NUMBERS[0], re.compile(f"^(?:{INT.pattern})$"), list("-+0123456789"))
Loader.add_implicit_resolver(NUMBERS[1], re.compile(f"^(?:{FLOAT.pattern})$"), list("-+0123456789."))
Loader.add_constructor(NUMBERS[0], _int)
Loader.add_constructor(NUMBERS[1], _float)


def load_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: it is no YAML, or a key stands twice.
    """
    return yaml.load(text, Loader)  # noqa: S506 - a subclass of the safe one
