import contextlib
import io
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import yaml

from megapairs_hf.cli.commands import COMMANDS, STAGES
from megapairs_hf.cli.flags import Parser, add_settings, attribute_help, nested, selected, settings_of, shown_default
from megapairs_hf.cli.parser import USAGE, parse
from megapairs_hf.cli.recipe import DEMO, read_recipe
from megapairs_hf.cli.stage import RECIPE_KEYS, stage_settings
from megapairs_hf.core.config import build_config
from megapairs_hf.core.errors import ConfigError
from tests.small import ROOT, megapairs


def test_help_is_quick_and_loads_nothing_heavy():
    code = "import sys\nfrom megapairs_hf.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    heavy = ("torch", "transformers", "datasets", "pyarrow", "faiss", "numpy", "PIL", "huggingface_hub", "tokenizers")
    code += f"print([m for m in {heavy} if m in sys.modules], len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    loaded, count = done.stdout.splitlines()[-1].rsplit(" ", 1)
    assert loaded == "[]"
    # torch alone brings more than a thousand
    assert int(count) < 500
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


@pytest.mark.parametrize("command", [*STAGES, *COMMANDS])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        parse([command, "--help"])
    assert stop.value.code == 0
    assert "usage: megapairs" in capsys.readouterr().out


@pytest.mark.parametrize("command", STAGES)
def test_every_setting_is_a_flag_and_is_explained(command):
    stage = STAGES[command]
    names = stage.config_class().__dataclass_fields__
    parser = Parser(command)
    stage.add_flags(parser)
    flags = parser._option_string_actions
    assert all(f"--{name}" in flags for name in names)
    assert set(names) <= set(attribute_help(stage.config_class()))


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        ([], 2, ""),
        (["mien"], 2, "did you mean 'mine'?"),
        (["corpus", "--color", "red"], 2, "megapairs corpus: there is no flag --color"),
        (["mine", "--nieghbors", "3"], 2, "there is no flag --nieghbors; did you mean --neighbors?"),
        (["mine", "--band", "[0.8, 0.9]"], 2, "`--band` is now `--similarity_range`"),
        (["mine", "--neighbors", "many"], 1, "megapairs: mine: `neighbors` cannot be 'many'"),
        (["mine", "--similarity_range", "[0.9, 0.1]"], 1, "`similarity_range` is [0.9, 0.1]"),
        (["corpus", "--scenes.cuont", "3"], 2, "there is no flag --scenes.cuont; did you mean --scenes.count?"),
        (["embed", "--work", "nowhere"], 1, "check the path, or run `megapairs corpus` first"),
        (["mine", "--work", "nowhere"], 1, "holds no finished embeddings"),
        (["run", "nowhere"], 1, "no recipe 'nowhere' is shipped"),
        (["run", "./nowhere"], 1, "cannot read the settings nowhere"),
        (["demo", "--set", "train=3"], 1, "must be STAGE.KEY=VALUE"),
        (["corpus", "--source", "scenes", "--work", "/proc/1/x"], 1, "cannot write"),
    ],
)
def test_wrong_use_is_one_sentence(words, status, sentence):
    done = megapairs(*words)
    assert done.returncode == status
    assert sentence in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback():
    done = megapairs("embed", "--work", "nowhere", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


RECIPES = [DEMO, *sorted((ROOT / "recipes").glob("*.yaml"))]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_valid(path):
    for name, values in yaml.safe_load(path.read_text()).items():
        config = build_config(STAGES["corpus" if name == "heldout" else name].config_class(), values, name)
        # every key of the file stands as itself in the settings
        for key, value in values.items():
            if isinstance(value, (int, float, str)):
                assert getattr(config, key) == value


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_dry_run_prints_a_recipe_with_every_setting(path, tmp_path, capsys):
    assert parse(["run", str(path), "--work", "w", "--dry-run", "--seed", "3"])() == 0
    (tmp_path / "whole.yaml").write_text(capsys.readouterr().out)
    whole = yaml.safe_load((tmp_path / "whole.yaml").read_text())
    assert list(whole) == [name for name in RECIPE_KEYS if name in yaml.safe_load(path.read_text())]
    assert "seed: 3" in (tmp_path / "whole.yaml").read_text()
    assert parse(["run", str(tmp_path / "whole.yaml"), "--work", "w", "--dry-run"])() == 0
    assert yaml.safe_load(capsys.readouterr().out) == whole


def test_a_stage_takes_its_own_key_of_a_recipe(tmp_path):
    recipe, flat = tmp_path / "recipe.yaml", tmp_path / "mine.yaml"
    recipe.write_text("mine: {neighbors: 7}\nbuild:\n")
    flat.write_text("neighbors: 7")
    assert stage_settings(recipe, "mine") == stage_settings(flat, "mine") == {"neighbors": 7}
    assert stage_settings(recipe, "build") == {}
    with pytest.raises(ConfigError, match="is a recipe without `embed`; it has mine, build"):
        stage_settings(recipe, "embed")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("", "it is empty"), ("mien: {}", "`mien` is no stage"), ("mine: 3", "`mine` must hold `key: value` lines")],
)
def test_a_file_that_is_no_recipe(text, sentence, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        parse(["run", str(tmp_path / "a.yaml")])()


def test_seed_and_set_change_the_settings():
    class Options:
        set = ("train.steps=70", "pretrain.clip.steps=9")
        seed = 5

    recipe = read_recipe(DEMO, Options)
    assert recipe["train"]["steps"] == 70
    assert recipe["pretrain"]["clip"]["steps"] == 9
    assert recipe["pretrain"]["dino"]["seed"] == recipe["mine"]["seed"] == 5
    assert build_config(STAGES["train"].config_class(), recipe["train"]).seed == 5


def help_of(*words):
    out = io.StringIO()
    with pytest.raises(SystemExit), contextlib.redirect_stdout(out):
        parse([*words, "--help"])
    return out.getvalue()


def test_the_help_of_a_stage_names_the_keys_of_nested_settings():
    page = " ".join(help_of("describe").split())
    assert "--local.batch_size INT " in page
    assert "--budget.spend FLOAT most money" in page
    assert re.search(r"--endpoint\.\w*retries INT ", page)


PAGES = [[name] for name in (*STAGES, *COMMANDS)] + [["eval", "MODEL"], ["eval", "check-data"], ["dataset", "import"]]


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_help_fits_80_columns(words):
    assert max(map(len, help_of(*words).splitlines())) <= 80


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
    assert read("--name", "a", "--inner", "{size: 4}").inner == Inner(4)


@pytest.mark.parametrize("words", [["--no-fast"], ["--fast", "false"], ["--fast=false"], ["--fast", "--no-fast"]])
def test_a_switch_is_turned_off(words):
    assert not read("--name", "a", *words).fast
    assert read("--name", "a", "--fast", "true").fast


def test_help_of_a_command_by_its_name(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["help", "mine"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == help_of("mine")


def test_the_keys_of_a_recipe_are_the_stages():
    assert set(RECIPE_KEYS) == {"heldout", *STAGES}


def test_completion_knows_every_command_and_its_flags():
    pytest.importorskip("shtab")
    for shell in ("bash", "zsh", "fish"):
        done = megapairs("completion", shell)
        assert done.returncode == 0, done.stderr
        for word in (*STAGES, *COMMANDS, "similarity_range", "dry_run"):
            assert word in done.stdout


def test_the_usage_names_every_command():
    assert sorted(re.findall(r"^  (\w+) +\S", USAGE, re.MULTILINE)) == sorted([*STAGES, *COMMANDS])
