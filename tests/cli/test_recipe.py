"""A recipe: one file with a key per stage, read by `run` and by each stage."""

import pytest
import yaml
from PIL import Image

from megapairs_hf.cli.commands import STAGES
from megapairs_hf.cli.parser import parse
from megapairs_hf.cli.recipe import DEMO, read_recipe
from megapairs_hf.cli.recipe_words import advise_set, with_key, with_set
from megapairs_hf.cli.stage import RECIPE_KEYS, stage_settings
from megapairs_hf.core.config import build_config
from megapairs_hf.core.errors import ArtifactError, ConfigError, MegaPairsError, StaleArtifactError
from megapairs_hf.core.progress import note, reworded
from tests.small import ROOT

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


def test_the_keys_of_a_recipe_are_the_stages():
    assert set(RECIPE_KEYS) == {"heldout", *STAGES}


def tiny_recipe(tmp_path):
    """A recipe that makes a corpus of a few synthetic scenes."""
    path = tmp_path / "tiny.yaml"
    path.write_text("corpus:\n  source: scenes\n  scenes: {count: 3}\n")
    return path


def test_a_stage_after_a_recipe_names_the_recipe_s_file(tmp_path):
    path, work = tiny_recipe(tmp_path), str(tmp_path / "w")
    assert parse(["run", str(path), "--work", work])() == 0
    alone = ["corpus", "--source", "scenes", "--scenes.count", "4", "--work", work]
    with pytest.raises(StaleArtifactError, match=rf"the recipe {path} made it, so pass --config {path} for its"):
        parse(alone)()
    # with a file, or after the recipe is gone, there is nothing to advise
    for words in ([*alone, "--config", str(path)], alone):
        with pytest.raises(StaleArtifactError) as error:
            parse(words)()
        assert "made it, so" not in str(error.value)
        if path.exists():
            path.rename(tmp_path / "elsewhere.yaml")


def test_a_work_folder_without_held_out_images_says_so(tmp_path):
    work = str(tmp_path / "w")
    parse(["run", str(tiny_recipe(tmp_path)), "--work", work])()
    with pytest.raises(ArtifactError, match=r"has no held-out corpus to measure on.*--heldout.*eval .*model circo"):
        parse(["eval", "--work", work])()


@pytest.mark.parametrize(
    ("stage", "said", "expected"),
    [
        (
            "corpus",
            "with --caption_template, or --captions optional",
            "with {s}caption_template=…, or {s}captions=optional",
        ),
        ("corpus", "name it with --caption_column, or call it", "name it with {s}caption_column=…, or call it"),
        (
            "corpus",
            "--caption_template names fields that are empty: correct it",
            "{s}caption_template=… names fields that are empty: correct it",
        ),
        (
            "describe",
            "`--edits attributes --attributes a b` writes",
            "`{s}edits=attributes --set 'describe.attributes=[a, b]'` writes",
        ),
        ("mine", "pass --overwrite, or another --work", "pass --overwrite, or another --work"),
    ],
)
def test_flags_of_a_stage_are_called_as_run_takes_them(stage, said, expected):
    cls = STAGES[stage].config_class()
    assert with_set(said, stage, cls) == expected.format(s=f"--set {stage}.")


def test_every_setting_that_a_message_advises_can_be_set():
    for stage, change in [("describe", "describe.attributes=[a, b]"), ("corpus", "corpus.captions=optional")]:

        class Options:
            set = (change,)
            seed = None

        recipe = read_recipe(ROOT / "recipes" / "offline.yaml", Options)
        key = change.partition("=")[0].partition(".")[2]
        assert recipe[stage][key] in (["a", "b"], "optional")


def test_a_setting_that_an_error_names_is_told_with_its_flag():
    corpus = STAGES["corpus"].config_class()
    expected = "no folder a; check `path` (--set heldout.path=…) and `split`"
    assert with_key("no folder a; check `path` and `split`", "heldout", corpus) == expected
    assert with_key("run `megapairs corpus` first", "corpus", corpus) == "run `megapairs corpus` first"


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        (
            "--caption-template",
            "--caption-template is a setting of the stage corpus; pass it as `--set corpus.caption_template=VALUE`",
        ),
        ("--steps=9", "`--set STAGE.steps=9`"),
        ("--meta=[a]", "`--set corpus.meta_columns=[a]`"),
        ("--wrk", "there is no flag --wrk; did you mean --work?"),
    ],
)
def test_a_flag_of_a_stage_is_no_misspelt_flag_of_run(word, sentence, capsys):
    with pytest.raises(SystemExit):
        parse(["run", "offline", word])
    assert sentence in capsys.readouterr().err
    assert advise_set(word) == "" or sentence in advise_set(word)


def test_a_recipe_s_error_says_how_run_mends_it(tmp_path, monkeypatch, capsys):
    path, work = tmp_path / "own.yaml", str(tmp_path / "w")
    path.write_text("corpus: {source: image_folder, path: photos, captions: required}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MegaPairsError, match=r"there is no folder photos; check `path` \(--set corpus.path=…\)"):
        parse(["run", str(path), "--work", work])()
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "photos" / "a.png")
    with pytest.raises(
        MegaPairsError, match=r"with --set corpus.caption_template=…, or do without: --set corpus.captions=optional"
    ):
        parse(["run", str(path), "--work", work])()


def test_notes_are_reworded_only_meanwhile(capsys):
    with reworded(str.upper):
        note("inside")
    note("after")
    assert capsys.readouterr().err == "INSIDE\nafter\n"
