import math

import pytest
import yaml

from megapairs_hf.core.config import parse_value, read_yaml
from megapairs_hf.core.errors import ConfigError
from tests.small import ROOT


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("-010", -10),
        ("0", 0),
        ("08", 8),
        ("1_000", 1000),
        ("0x1F", 31),
        ("0o17", "0o17"),
        ("0b11", "0b11"),
        ("1:10", "1:10"),
        ("1:10.5", "1:10.5"),
        ("5e-6", 5e-6),
        ("1E3", 1000.0),
        ("1.5", 1.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("010.5", 10.5),
        ("-.inf", -math.inf),
        ("true", True),
        ("null", None),
        ("'010'", "010"),
        ("1.2.3", "1.2.3"),
        ("[0.8, 010]", [0.8, 10]),
        ("-", "-"),
        ("2026-11-21T10", "2026-11-21T10"),
    ],
)
def test_numbers_are_in_base_ten(text, value):
    read = parse_value(text) if text != "-" else "-"
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    "text", ["limit: 1\na: 2\nlimit: 3\n", "a: {b: 1, b: 2}\n", "- x: 1\n  x: 1\n", "train:\n  lr: 1\n  'lr': 2\n"]
)
def test_a_key_that_stands_twice_is_an_error_that_names_it(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"`(limit|b|x|lr)` stands twice"):
        read_yaml(tmp_path / "a.yaml")


def test_a_merged_key_may_be_overridden(tmp_path):
    (tmp_path / "a.yaml").write_text("base: &b {x: 1, y: 2}\nmine: {<<: *b, x: 3}\n")
    assert read_yaml(tmp_path / "a.yaml")["mine"] == {"x": 3, "y": 2}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_mean_the_same_as_before(path):
    def plain(value):
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, list):
            return [plain(each) for each in value]
        try:
            return float(value) if isinstance(value, str) else value
        except ValueError:
            return value

    assert plain(read_yaml(path)) == plain(yaml.safe_load(path.read_text()))
