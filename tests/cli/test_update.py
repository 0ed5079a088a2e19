"""`--update` on the command line: a folder that has grown, and what is stale behind it."""

import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from megapairs_hf.artifacts.workspace import Work
from megapairs_hf.cli import main
from tests.small import files_of

NAMES = ["cat", "dog", "fox", "owl", "pig", "rat", "ape", "emu", "hen", "bee", "ant", "cow"]
STAGES = ["corpus", "embeddings", "pairs", "descriptions", "instructions", "triplets"]


def draw(root, numbers):
    root.mkdir(exist_ok=True)
    for number in numbers:
        name, base = f"{NAMES[number % 12]}{number}", np.random.default_rng(number // 2)
        pixels = base.integers(0, 240, (24, 24, 3)) + np.random.default_rng(number).integers(0, 9, (24, 24, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{name}.png")
        (root / f"{name}.txt").write_text(f"a {['red', 'blue'][number % 2]} {NAMES[number // 2]} in a room")


@pytest.fixture
def recipe(tmp_path, models):
    draw(tmp_path / "photos", range(16))
    work = tmp_path / "w"
    shutil.copytree(f"{models}/clip", work / "clip")
    encoder = {"name": "clip_image", "model": "./clip", "input": "image"}
    stages = {
        "corpus": {"source": "image_folder", "path": str(tmp_path / "photos"), "shard_rows": 6},
        "embed": {"encoders": [encoder], "batch_size": 16, "device": "cpu"},
        "mine": {"neighbors": 4, "similarity_range": [0.1, 0.99], "range_kind": "quantile", "negatives": 2},
        "describe": {"engine": "rule_based"},
        "instruct": {"engine": "rule_based"},
        "build": {},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(stages))
    return path, work


def test_a_recipe_takes_in_what_is_new(recipe, tmp_path, capfd):
    path, work = recipe
    words = ["run", str(path), "--work", str(work)]
    assert main(words) == 0
    before = Work(str(work)).everything
    draw(tmp_path / "photos", range(16, 19))
    capfd.readouterr()
    assert main(words) == 1
    message = capfd.readouterr().err
    assert "3 new, 0 changed, 0 gone" in message and "--update" in message
    assert main([*words, "--update"]) == 0
    now = Work(str(work))
    assert now.everything["corpus"].rows == 19
    assert now.everything["embeddings/clip_image"].rows == 19
    assert set(now.everything) == set(before)
    # nothing is left that was made of anything earlier
    assert now.made_of({artifact.fingerprint for artifact in before.values()}) == []
    there = {name: files_of(work / name) for name in STAGES}
    assert main([*words, "--update"]) == 0 and main(words) == 0
    assert {name: files_of(work / name) for name in STAGES} == there


def test_what_is_stale_is_named(recipe, tmp_path, capfd):
    path, work = recipe
    assert main(["run", str(path), "--work", str(work)]) == 0
    stage = ["--config", str(path), "--work", str(work)]
    for command in ("corpus", "embed"):
        assert main([command, *stage, "--update"]) == 0
    assert "stale now" not in capfd.readouterr().err
    draw(tmp_path / "photos", range(16, 19))
    assert main(["corpus", *stage, "--update"]) == 0
    message = capfd.readouterr().err
    behind = "embeddings/clip_image, pairs, descriptions, instructions, triplets"
    assert f"stale now, as made of the earlier corpus: {behind};" in message
    assert main(["embed", *stage]) == 1
    assert "pass --update to embed only what is new" in capfd.readouterr().err
    assert main(["embed", *stage, "--update"]) == 0
    message = capfd.readouterr().err
    assert "earlier embeddings: pairs, descriptions, instructions, triplets;" in message


def test_an_update_makes_no_other_settings(recipe, capfd):
    path, work = recipe
    words = ["run", str(path), "--work", str(work)]
    assert main(words) == 0
    assert main([*words, "--update", "--set", "mine.neighbors=3"]) == 1
    assert "config.neighbors" in capfd.readouterr().err
