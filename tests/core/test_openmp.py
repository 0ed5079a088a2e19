"""Which commands let OpenMP's threads sleep while they wait."""

import os
import subprocess
import sys

import pytest

from megapairs_hf.cli.parser import parse
from megapairs_hf.core.openmp import CHOICES
from tests.small import ROOT

FOLDER = str(ROOT / "recipes" / "folder.yaml")
EMOJI = str(ROOT / "recipes" / "emoji.yaml")
LARGE = str(ROOT / "recipes" / "mmret_clip_base.yaml")


@pytest.fixture
def untouched(monkeypatch):
    for name in CHOICES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("words", "passive"),
    [
        (["pretrain"], True),
        (["embed"], True),
        (["mine"], True),
        (["eval"], True),
        (["train", "--config", FOLDER], True),
        (["train", "--config", EMOJI], True),
        (["run", FOLDER, "--dry-run"], True),
        (["run", EMOJI, "--dry-run"], True),
        (["train", "--model", "clip"], False),
        (["train", "--config", LARGE], False),
        (["run", LARGE, "--dry-run"], False),
    ],
)
def test_all_but_a_large_training_waits_passively(untouched, words, passive):
    call = parse(words)
    if "--dry-run" in words:
        call()
    assert os.environ.get("OMP_WAIT_POLICY") == ("passive" if passive else None)


def test_the_demo_waits_passively(untouched, tmp_path):
    # it is refused before anything is made
    (tmp_path / "work").write_text("a file")
    with pytest.raises(Exception, match="work"):
        parse(["demo", "--work", str(tmp_path / "work")])()
    assert os.environ.get("OMP_WAIT_POLICY") == "passive"


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_of_the_users_stands(untouched, monkeypatch, name):
    monkeypatch.setenv(name, "7")
    parse(["mine"])
    assert {each: os.environ.get(each) for each in CHOICES} == dict.fromkeys(CHOICES) | {name: "7"}


def test_it_stands_before_torch_is_loaded_and_in_child_processes():
    code = """if True:
        import os, subprocess, sys
        class Watch:
            def find_spec(self, name, path=None, target=None):
                if name == "torch":
                    print("torch", os.environ.get("OMP_WAIT_POLICY"))
        sys.meta_path.insert(0, Watch())
        from megapairs_hf.cli import main
        main(["env"])
        ask = "import os; print('child', os.environ.get('OMP_WAIT_POLICY'))"
        print(subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout)
    """
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert "torch passive\n" in done.stdout and "child passive\n" in done.stdout
