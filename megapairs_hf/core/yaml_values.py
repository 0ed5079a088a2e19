"""YAML 1.2 as people read it: 010 is ten, 1:10 and `no` are texts, 5e-6 a number; a key twice is an error.

What surprises: PyYAML reads YAML 1.1, which has numbers in base 8 and 60, takes `no` for false, and lets the later of
two equal keys win, so that two recipes merged into one would lose a setting without a word. Of 1.1 only the merge key
`<<` is kept. What aliases stand for is counted, since nine lines of them can stand for a billion values.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

TAG = "tag:yaml.org,2002:"
INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
# the core schema, https://yaml.org/spec/1.2.2/#1032-tag-resolution, and the letters that a scalar of it begins with
CORE = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (INT.pattern, list("-+0123456789")),
    "float": (FLOAT.pattern, list("-+0123456789.")),
    "merge": ("<<", ["<"]),
}
MERGE = "<<"
MAX_VALUES = 100_000
MAX_DEPTH = 50
PLAINER = {
    "found character '\\t' that cannot start any token": "a tab where only spaces may indent",
    "but found another document": "a second document (`---`) where one is expected",
}
BREAKS = "\r\n\x85\u2028\u2029"


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the core schema of YAML 1.2, and with bounds."""

    def __init__(self, stream: str | bytes) -> None:
        super().__init__(stream)
        self.depth = 0
        # how many values each node stands for, the node kept so that no other gets its id
        self.sizes: dict[int, tuple[yaml.Node, int]] = {}

    def scan_to_next_token(self) -> None:
        """Skip what lies between tokens; a tab too, where it does not indent."""
        super().scan_to_next_token()
        while self.peek() == "\t" and (self.flow_level or not self.allow_simple_key or self._is_blank_line()):
            self.forward()
            super().scan_to_next_token()

    def _is_blank_line(self) -> bool:
        length = 1
        while self.peek(length) in " \t":
            length += 1
        return self.peek(length) in f"\0#{BREAKS}"

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """A node; what an alias stands for is counted again."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark, is_alias = event.start_mark, isinstance(event, yaml.AliasEvent)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_DEPTH} values inside each other", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if is_alias and id(node) not in self.sizes:
            raise yaml.MarkedYAMLError(problem="an alias stands inside what it is an alias of", problem_mark=mark)
        if node is not None and not is_alias:
            children = node.value if isinstance(node, yaml.CollectionNode) else []
            parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
            size = 1 + sum(self.sizes[id(part)][1] for part in parts)
            if size > MAX_VALUES:
                raise yaml.MarkedYAMLError(problem=f"more than {MAX_VALUES:,} values", problem_mark=mark)
            self.sizes[id(node)] = (node, size)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping with what it merges; of two equal keys the second is refused."""
        node = super().compose_mapping_node(anchor)
        own: dict[Any, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[Any, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if _key(key) in own:
                raise yaml.MarkedYAMLError(problem=f"`{key.value}` stands twice", problem_mark=key.start_mark)
            own[_key(key)] = (key, value)
        if MERGE in own and own[MERGE][0].tag == TAG + "merge":
            _, sources = own.pop(MERGE)
            for source in sources.value if isinstance(sources, yaml.SequenceNode) else [sources]:
                if not isinstance(source, yaml.MappingNode):
                    problem = "`<<` takes a mapping or a list of them"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=sources.start_mark)
                for pair in source.value:
                    # the first of several wins, and what stands here wins over all
                    merged.setdefault(_key(pair[0]), pair)
        node.value = list((merged | own).values())
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """A scalar; what no path and no file of ours can hold is refused."""
        value = super().construct_scalar(node)
        if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
            problem = "a text with a NUL character or half a surrogate pair"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return value


def _key(node: yaml.Node) -> Any:
    return node.value if isinstance(node, yaml.ScalarNode) else id(node)


def _int(loader: Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text[:2] in {"0x", "0o"} else int(text)


def _float(loader: Loader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


Loader.yaml_implicit_resolvers = {}
for _name, (_pattern, _first) in CORE.items():
    Loader.add_implicit_resolver(TAG + _name, re.compile(f"^(?:{_pattern})$"), _first)
# neither dates nor binaries nor sets: no setting is one
Loader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.removeprefix(TAG) in {"null", "bool", "str", "seq", "map"}
}
Loader.add_constructor(TAG + "int", _int)
Loader.add_constructor(TAG + "float", _float)


class Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes what either version of YAML would read as a number."""


Dumper.yaml_implicit_resolvers = {
    first: list(pairs) for first, pairs in yaml.SafeDumper.yaml_implicit_resolvers.items()
}
for _name in ("int", "float"):
    Dumper.add_implicit_resolver(TAG + _name, re.compile(f"^(?:{CORE[_name][0]})$"), CORE[_name][1])


def dump_yaml(value: Any, **layout: Any) -> str:
    """A value as YAML text that `load_yaml` reads as the same, keys in their order.

    Args:
        value: plain values.
        **layout: of `yaml.dump`, such as `width`.
    """
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, **layout)


def check_front_matter(card: str) -> None:
    """Refuse a Markdown text whose metadata stand for too much, before a library without bounds reads them.

    Raises:
        ValueError: as `load_yaml`.
    """
    text = card.lstrip("\ufeff")
    if text.startswith("---"):
        load_yaml(text.removeprefix("---").partition("\n---")[0])


def load_yaml(text: str | bytes) -> Any:
    """The value of a YAML text.

    Args:
        text: bytes are UTF-8, or UTF-16 with a byte order mark.

    Raises:
        ValueError: it is no YAML, a key stands twice, or it stands for too much; one sentence with the line, where the
            text has several.
    """
    try:
        return yaml.load(text, Loader)  # noqa: S506 - a subclass of the safe one
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark, " ".join(str(error.problem or error.context).split())
        where = f"line {mark.line + 1}: " if mark is not None and (mark.line or isinstance(text, bytes)) else ""
        raise ValueError(where + PLAINER.get(problem, problem)) from error
    except yaml.reader.ReaderError as error:
        if error.encoding == "unicode":
            raise ValueError(f"the character {chr(int(error.character))!a} belongs in no YAML file") from error
        raise ValueError(f"{error.reason} at position {error.position}; save it as UTF-8 text") from error
    except (ValueError, KeyError, OverflowError) as error:
        # of an explicit tag (!!int ten), an escape beyond Unicode, a number of thousands of digits
        raise ValueError(f"a value that cannot be read ({error})") from error
