"""What a settings file and a flag are read as: the core schema of YAML 1.2, and what is refused."""

import codecs
import itertools
import math
import typing

import pytest
import yaml

from megapairs_hf.cli.commands import STAGES
from megapairs_hf.cli.flags import read_flag, settings_of, shown_default
from megapairs_hf.cli.parser import parse
from megapairs_hf.core.config import build_config, config_dict, parse_value, read_yaml
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.yaml_values import dump_yaml
from megapairs_hf.corpus import CorpusConfig
from megapairs_hf.mining import MineConfig
from megapairs_hf.training import TrainConfig
from tests.small import ROOT

# of a file, a flag, and keywords
VALUES = [
    ("010", 10),
    ("-010", -10),
    ("+7", 7),
    ("0", 0),
    ("08", 8),
    ("0x1F", 31),
    ("0o17", 15),
    ("0b11", "0b11"),
    ("1_000", "1_000"),
    ("1:10", "1:10"),
    ("1:10.5", "1:10.5"),
    ("1e5", 1e5),
    ("5e-6", 5e-6),
    ("1E3", 1000.0),
    ("1.5", 1.5),
    (".5", 0.5),
    ("5.", 5.0),
    ("010.5", 10.5),
    ("-.inf", -math.inf),
    ("true", True),
    ("FALSE", False),
    ("no", "no"),
    ("Off", "Off"),
    ("yes", "yes"),
    ("on", "on"),
    ("y", "y"),
    ("null", None),
    ("~", None),
    ("'010'", "010"),
    ("1.2.3", "1.2.3"),
    ("=", "="),
    ("2026-11-28", "2026-11-28"),
    ("2026-11-28T10:00:00Z", "2026-11-28T10:00:00Z"),
    ("[0.8, 010, no]", [0.8, 10, "no"]),
]
SETTINGS = [
    (f"{name} {setting.key}", setting)
    for name, stage in STAGES.items()
    for setting in settings_of(stage.config_class())
    if setting.inner is None and shown_default(setting).startswith("(default: ")
]


@pytest.mark.parametrize(("text", "value"), VALUES)
def test_values_are_those_of_the_core_schema(tmp_path, text, value):
    (tmp_path / "a.yaml").write_text(f"key: {text}\n")
    for read in (parse_value(text), read_yaml(tmp_path / "a.yaml")["key"]):
        assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("limit: 1\na: 2\nlimit: 3\n", "limit", 3),
        ("a: {b: 1, b: 2}\n", "b", 1),
        ("- x: 1\n  x: 1\n", "x", 2),
        ("train:\n  lr: 1\n  'lr': 2\n", "lr", 3),
        ("base: &b {x: 1}\nmine: {<<: *b, <<: *b}\n", "<<", 2),
    ],
)
def test_a_key_that_stands_twice_is_an_error_that_names_it(tmp_path, text, key, line):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"a\.yaml is not valid YAML: line {line}: `{key}` stands twice"):
        read_yaml(tmp_path / "a.yaml")


def test_what_stands_in_a_mapping_wins_over_what_it_merges(tmp_path):
    text = "base: &b {x: 1, y: 2}\nmine: &m {<<: *b, x: 3}\nlast: {x: 4, <<: *m}\ndeep: {a: {<<: *m}}\n"
    (tmp_path / "a.yaml").write_text(text + "two: {<<: [{y: 7}, *m]}\n")
    read = read_yaml(tmp_path / "a.yaml")
    assert (read["mine"], read["last"]) == ({"x": 3, "y": 2}, {"x": 4, "y": 2})
    assert (read["deep"], read["two"]) == ({"a": {"x": 3, "y": 2}}, {"x": 3, "y": 7})
    assert parse_value("{'<<': 1}") == {"<<": 1}


def test_what_is_merged_many_times_is_merged_once():
    lines = [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 30)]
    assert parse_value("\n".join(["a0: &a0 {x: 1}", *lines]))["a29"] == {"x": 1}


GOOD = "source: image_folder\npath: photos\nlimit: 10\nmin_side: 16\n"
SAME = {
    "byte order mark": codecs.BOM_UTF8 + GOOD.encode(),
    "UTF-16": GOOD.encode("utf-16"),
    "UTF-16 of the other order": codecs.BOM_UTF16_BE + GOOD.encode("utf-16-be"),
    "line ends of Windows": GOOD.replace("\n", "\r\n").encode(),
    "line ends of old Macs": GOOD.replace("\n", "\r").encode(),
    "comments": f"# é\n{GOOD}".replace("10\n", "10  # ten: really\n").encode(),
    "a comment behind a tab": GOOD.replace("10\n", "10\t# ten\n").encode(),
    "blanks at the ends of lines": GOOD.replace("\n", "  \n").encode(),
    "tabs at the ends of lines": GOOD.replace("\n", "\t\n").encode(),
    "tabs after colons": GOOD.replace(": ", ":\t").encode(),
    "lines of a tab": GOOD.replace("\n", "\n\t\n").encode(),
    "another order": "".join(reversed(GOOD.splitlines(keepends=True))).encode(),
    "document marks": f"---\n{GOOD}...\n".encode(),
    "quoted keys": GOOD.replace("limit", '"limit"').encode(),
    "one line": b"{source: image_folder, path: photos,\tlimit: 10, min_side: 16}",
    "no line end at the end": GOOD.rstrip().encode(),
    "an alias": GOOD.replace("10", "&n 16").replace("min_side: 16", "min_side: *n").replace("&n 16", "&n 10")
    .replace("*n", "16").encode(),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_what_means_the_same_is_read_as_the_same(tmp_path, name):
    (tmp_path / "a.yaml").write_bytes(SAME[name])
    read = build_config(CorpusConfig, read_yaml(tmp_path / "a.yaml"))
    assert read == CorpusConfig("image_folder", path="photos", limit=10, min_side=16)


def test_an_empty_file_has_no_settings(tmp_path):
    for text in ("", "# nothing\n", "---\n", "\ufeff", "null\n"):
        (tmp_path / "a.yaml").write_text(text, encoding="utf-8")
        assert read_yaml(tmp_path / "a.yaml") == {}


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"a: 1\n\tb: 2\n", "line 2: a tab where only spaces may indent"),
        (b"a: 1\n---\nb: 2\n", "line 2: a second document (`---`)"),
        (b"- a\n- b\n", "must hold `key: value` lines, not a list"),
        (b"limit\n", "must hold `key: value` lines, not a str"),
        (b"path: caf\xe9\n", "invalid continuation byte at position 9; save it as UTF-8"),
        (b"a: 'open\n", "found unexpected end of stream"),
        (b"a: b: c\n", "line 1: mapping values are not allowed here"),
        (b"a: \x01\n", "the character '\\x01' belongs in no YAML file"),
        (b'a: "\\ud800"\n', "line 1: a text with a NUL character or half a surrogate pair"),
        (b'a: "\\0"\n', "line 1: a text with a NUL character or half a surrogate pair"),
        (b'a: "\\UFFFFFFFF"\n', "a value that cannot be read"),
        (b"a: " + b"9" * 5000, "a value that cannot be read"),
        (b"a: !!int ten\n", "a value that cannot be read"),
        (b"a: !!bool ten\n", "a value that cannot be read"),
        (b"a: !!timestamp 2026-11-28\n", "line 1: could not determine a constructor for the tag"),
        (b"a: !!python/name:os.system\n", "line 1: could not determine a constructor for the tag"),
        (b"a: &a [*a]\n", "line 1: an alias stands inside what it is an alias of"),
        (b"a: &a {<<: *a}\n", "line 1: an alias stands inside what it is an alias of"),
        (b"a: *b\n", "line 1: found undefined alias"),
        (b"? [a]\n: 1\n", "line 1: found unhashable key"),
        (LAUGHS.encode(), "more than 100,000 values"),
        (b"a: {<<: 3}\n", "line 1: `<<` takes a mapping or a list of them"),
        (b"a: " + b"[" * 5000, "line 1: more than 50 values inside each other"),
        (b"a: " + b"{a: " * 5000, "line 1: more than 50 values inside each other"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path, text, sentence):
    (tmp_path / "a.yaml").write_bytes(text)
    with pytest.raises(ConfigError) as error:
        read_yaml(tmp_path / "a.yaml")
    assert sentence in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("text", ["[0.8", "{a: 1, a: 2}", "'", "&a [*a]", "!!int ten", "a: b: c", "\x01"])
def test_a_flag_that_cannot_be_read_is_one_sentence(text):
    with pytest.raises(ConfigError, match=r"^cannot read the value ['\"].*['\"]: ") as error:
        parse_value(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("word", ["no", "No", "false", "False", "off"])
@pytest.mark.parametrize("key", ["mixed_precision", "train.mixed_precision"])
def test_false_is_no_where_the_choices_are_texts(tmp_path, word, key):
    (tmp_path / "a.yaml").write_text(f"mixed_precision: {word}\nmodel: clip\n")
    assert build_config(TrainConfig, read_yaml(tmp_path / "a.yaml")) == TrainConfig(model="clip")
    (hint,) = (each.hint for each in settings_of(TrainConfig) if each.key == "mixed_precision")
    assert (
        build_config(TrainConfig, {"mixed_precision": read_flag(hint, word), "model": "clip"}).mixed_precision == "no"
    )
    assert build_config(TrainConfig, {"mixed_precision": False, "model": "clip"}).mixed_precision == "no"


@pytest.mark.parametrize(
    ("word", "value"),
    [*zip(["yes", "Yes", "on", "ON", "true", True], itertools.repeat(True)),
     *zip(["no", "No", "off", "OFF", "false", False], itertools.repeat(False))],
)  # fmt: skip
def test_a_switch_takes_the_words_of_a_switch(word, value):
    values = {"source": "image_folder", "path": "photos"}
    assert build_config(CorpusConfig, {**values, "follow_links": word}).follow_links is value
    shown = str(word).lower()
    call = parse(["corpus", "--source", "image_folder", "--path", "photos", "--follow-links", shown])
    assert call.args[0].follow_links is value
    call = parse(["corpus", "--source", "image_folder", "--path", "photos", f"--follow_links={shown}"])
    assert call.args[0].follow_links is value


CORPUS = {"source": "image_folder", "path": "photos"}


@pytest.mark.parametrize(
    ("cls", "values", "sentence"),
    [
        (CorpusConfig, {**CORPUS, "path": 2026}, "`path` cannot be 2026; a text belongs there: quote it"),
        (CorpusConfig, {**CORPUS, "revision": 1.10}, "`revision` cannot be 1.1; a text belongs there: quote it"),
        (CorpusConfig, {**CORPUS, "split": True}, "`split` cannot be True; a text belongs there: quote it"),
        (CorpusConfig, {**CORPUS, "split": ["a"]}, "`split` cannot be ['a']; a text belongs there"),
        (CorpusConfig, {**CORPUS, "split": None}, "`split` cannot be None; a text belongs there"),
        (CorpusConfig, {**CORPUS, "meta_columns": [7]}, "`meta_columns` cannot be 7; a text belongs there: quote it"),
        (CorpusConfig, {**CORPUS, "limit": True}, "`limit` cannot be True; write a whole number"),
        (CorpusConfig, {**CORPUS, "limit": "1_000"}, "`limit` cannot be '1_000'; write a whole number"),
        (CorpusConfig, {**CORPUS, "limit": "1:10"}, "`limit` cannot be '1:10'; write a whole number"),
        (CorpusConfig, {**CORPUS, "limit": 2.5}, "`limit` cannot be 2.5; write a whole number"),
        (CorpusConfig, {**CORPUS, "limit": 10**30}, "`limit` cannot be 1000000000"),
        (CorpusConfig, {**CORPUS, "limit": math.inf}, "`limit` cannot be inf; write a whole number that is finite"),
        (CorpusConfig, {**CORPUS, "follow_links": "maybe"}, "`follow_links` cannot be 'maybe'; write true or false"),
        (CorpusConfig, {**CORPUS, "follow_links": 1}, "`follow_links` cannot be 1; write true or false"),
        (CorpusConfig, {**CORPUS, "captions": "no"}, "`captions` cannot be 'no'; take one of 'required', 'optional'"),
        (CorpusConfig, {**CORPUS, 1: 2}, "unknown key 1"),
        (CorpusConfig, {**CORPUS, None: 2}, "unknown key None"),
        (
            CorpusConfig,
            {**CORPUS, "scenes": {"count": "many"}},
            "`scenes.count` cannot be 'many'; write a whole number",
        ),
        (CorpusConfig, {**CORPUS, "scenes": 3}, "`scenes` cannot be 3"),
        (TrainConfig, {"lr": math.nan}, "`lr` cannot be nan; write a number that is finite"),
        (TrainConfig, {"lr": -math.inf}, "`lr` cannot be -inf; write a number that is finite"),
        (TrainConfig, {"lr": 1e400}, "`lr` cannot be inf; write a number that is finite"),
        (TrainConfig, {"lr": True}, "`lr` cannot be True; write a number"),
        (MineConfig, {"similarity_range": [0.8]}, "`similarity_range` cannot be [0.8]; write 2 values"),
        (MineConfig, {"similarity_range": [0.8, math.nan]}, "`similarity_range` cannot be nan"),
        (MineConfig, {"relations": [{"name": "a", "query": 1}]}, "`relations.query` cannot be 1; a text belongs"),
        (MineConfig, {"relations": [{"nam": "a"}]}, "relations: unknown key 'nam'; did you mean 'name'?"),
        (MineConfig, {"relations": "x" * 500}, "`relations` cannot be"),
    ],
)
def test_a_value_of_another_kind_is_one_sentence(cls, values, sentence):
    with pytest.raises(ConfigError) as error:
        build_config(cls, values, "a.yaml")
    assert f"a.yaml: {sentence}" in str(error.value).replace("a.yaml, ", "a.yaml: ")
    assert len(str(error.value)) < 320


@pytest.mark.parametrize("word", [".inf", "-.INF", ".nan", "1e999"])
def test_no_flag_takes_what_is_not_finite(word):
    with pytest.raises(ConfigError, match=r"`lr` cannot be (-?inf|nan); write a number that is finite"):
        parse(["train", "--model", "clip", f"--lr={word}"])


@pytest.mark.parametrize(("text", "value"), [("5e-6", 5e-6), ("'5e-6'", 5e-6), ("1e5", 1e5), ("010", 10.0)])
def test_a_number_without_a_dot_is_one(text, value):
    assert build_config(TrainConfig, {"model": "clip", "lr": parse_value(text)}).lr == value


@pytest.mark.parametrize(("text", "value"), [("010", 10), ("1e2", 100), ("0x10", 16), ("16.0", 16)])
def test_flags_and_files_give_the_same_numbers(tmp_path, text, value):
    (tmp_path / "a.yaml").write_text(f"source: image_folder\npath: photos\nlimit: {text}\n")
    from_file = parse(["corpus", "--config", str(tmp_path / "a.yaml")]).args[0]
    from_flag = parse(["corpus", "--source", "image_folder", "--path", "photos", "--limit", text]).args[0]
    assert from_file == from_flag and from_file.limit == value and type(from_file.limit) is int


def test_a_change_of_a_recipe_is_read_as_the_flag(tmp_path, capsys):
    text = "corpus: {source: image_folder, path: photos}\ntrain: {model: clip, mixed_precision: bf16}\n"
    (tmp_path / "a.yaml").write_text(text)
    changes = ["corpus.path=010", "corpus.limit=010", "train.mixed_precision=no", "train.lr=5e-6"]
    words = [part for each in changes for part in ("--set", each)]
    assert parse(["run", f"{tmp_path}/a.yaml", "--dry-run", *words])() == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["corpus"]["path"], shown["corpus"]["limit"]) == ("010", 10)
    assert (shown["train"]["mixed_precision"], shown["train"]["lr"]) == ("no", 5e-6)


@pytest.mark.parametrize(("name", "setting"), SETTINGS, ids=[name for name, _ in SETTINGS])
def test_a_printed_default_can_be_pasted_back(name, setting):
    text = shown_default(setting).removeprefix("(default: ").removesuffix(")").replace("%%", "%")
    for read in (parse_value(text), read_flag(setting.hint, text)):
        is_tuple = typing.get_origin(setting.hint) is tuple
        values = read if isinstance(read, list) or not is_tuple else [read]
        assert (tuple(values) if is_tuple else values) == setting.default, name


@pytest.mark.parametrize(("text", "_"), VALUES)
@pytest.mark.parametrize("more", ["{}", "-{}", "{}0"])
def test_a_text_that_looks_like_a_value_is_written_with_quotes(text, _, more):
    value = {"key": more.format(text), "list": [text]}
    assert parse_value(dump_yaml(value)) == value
    assert yaml.safe_load(dump_yaml(value)) == value


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_what_a_dry_run_prints_gives_the_same_settings(tmp_path, capsys, path):
    assert parse(["run", str(path), "--dry-run"])() == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out)
    for name, values in read_yaml(path).items():
        cls = STAGES["corpus" if name == "heldout" else name].config_class()
        again = build_config(cls, read_yaml(tmp_path / "again.yaml")[name])
        assert config_dict(again) == config_dict(build_config(cls, values or {}))
