import subprocess
import sys

import pytest
import yaml

from megapairs_hf.cli.commands import COMMANDS, RECIPE_KEYS, STAGES
from megapairs_hf.cli.parser import attribute_help, parse, stage_parser, stage_settings
from megapairs_hf.cli.recipe import DEMO, read_recipe
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
    flags = stage_parser(command, stage)._option_string_actions
    assert all(f"--{name}" in flags for name in names)
    assert set(names) <= set(attribute_help(stage.config_class()))


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        ([], 2, ""),
        (["mien"], 2, "did you mean 'mine'?"),
        (["corpus", "--color", "red"], 2, "unrecognized arguments"),
        (["mine", "--similarity_range", "[0.9, 0.1]"], 1, "`similarity_range` is [0.9, 0.1]"),
        (["corpus", "--scenes.cuont", "3"], 1, "cuont"),
        (["embed", "--work", "nowhere"], 1, "check the path, or run `megapairs corpus` first"),
        (["mine", "--work", "nowhere"], 1, "holds no finished embeddings"),
        (["run", "nowhere"], 1, "no recipe 'nowhere' is shipped"),
        (["run", "./nowhere"], 1, "cannot read the settings nowhere"),
        (["demo", "--set", "train=3"], 1, "must be STAGE.KEY=VALUE"),
        (["corpus", "--work", "/proc/1/x"], 1, "cannot write"),
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


def test_the_help_of_a_stage_names_the_keys_of_nested_settings(capsys):
    with pytest.raises(SystemExit):
        parse(["describe", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "--local.batch_size V questions that are answered together" in told
    assert "--budget.spend V most money" in told
    assert "--endpoint.retries V how often" in told
