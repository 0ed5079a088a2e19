import subprocess
import sys

import pytest
import yaml

from megapairs_hf.cli.commands import COMMANDS, STAGES
from megapairs_hf.cli.parser import attribute_help, parse, stage_parser
from megapairs_hf.cli.recipe import DEMO, ORDER, read_recipe
from megapairs_hf.core.config import build_config
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
        (["run", "./nowhere"], 1, "there is no recipe folder nowhere"),
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


def recipes():
    folders = {path.parent for path in (ROOT / "recipes").glob("*/*.yaml")}
    return [DEMO, *sorted(folder for folder in folders if folder.name != "accelerate")]


@pytest.mark.parametrize("folder", recipes(), ids=lambda path: path.name)
def test_every_recipe_is_valid(folder):
    for path in sorted(folder.glob("*.yaml")):
        assert path.stem in ORDER
        stage = STAGES["corpus" if path.stem == "heldout" else path.stem]
        config = build_config(stage.config_class(), yaml.safe_load(path.read_text()), path.name)
        # every key of the file stands as itself in the settings
        for key, value in yaml.safe_load(path.read_text()).items():
            if isinstance(value, (int, float, str)):
                assert getattr(config, key) == value
    done = megapairs("run", folder, "--dry-run", "--seed", "3")
    assert done.returncode == 0, done.stderr
    assert "seed=3" in done.stdout


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
    assert "--local.batch_size V requests that are sampled together" in told
    assert "--budget.spend V most money" in told
    assert "--endpoint.max_retries V how often" in told
