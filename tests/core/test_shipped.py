from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from megapairs_hf.cli.parser import parse
from megapairs_hf.core import shipped
from megapairs_hf.core.errors import ConfigError, EvaluationError
from megapairs_hf.evaluation.benchmarks.spec import spec_file
from tests.small import ROOT


@pytest.mark.parametrize("name", ["folder", "offline", "emoji", "mmret_clip_base", "annotate"])
def test_a_bare_name_is_a_shipped_recipe_from_anywhere(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert parse(["run", name, "--dry-run"])() == 0
    assert f"runs/{name}/" in capsys.readouterr().out


def test_a_name_with_a_separator_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").write_text("")
    with pytest.raises(ConfigError, match="it is empty"):
        parse(["run", "./folder", "--dry-run"])()
    with pytest.raises(ConfigError, match="cannot read the settings recipes/folder"):
        parse(["run", "recipes/folder", "--dry-run"])()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("foldr", "did you mean 'folder'"),
        ("emoji.yaml", "did you mean 'emoji'"),
        ("zzz", "shipped are annotate, emoji, folder"),
        ("mine", r"write \./mine"),
    ],
)
def test_what_is_not_shipped_is_named(name, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match=said):
        parse(["run", name, "--dry-run"])


def test_benchmarks_are_found_from_anywhere_and_no_folder_of_the_user_shadows_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "circo.yaml").write_text("broken: true")
    assert spec_file("circo") == ROOT / "eval" / "circo.yaml"
    assert spec_file("eval/circo.yaml") == Path("eval/circo.yaml")
    with pytest.raises(EvaluationError, match=r"no file other/circo\.yaml; give the name alone \(circo\)"):
        spec_file("other/circo.yaml")


def test_cards_are_shipped_by_name():
    assert {"megapairs", "mmret-base"} <= set(shipped.card_templates())


def test_an_installed_wheel_reads_its_own_copy(tmp_path, monkeypatch):
    folder = tmp_path / "megapairs_hf" / "_shipped" / "recipes"
    (folder / "slurm").mkdir(parents=True)
    (folder / "one.yaml").write_text("")
    monkeypatch.setattr(shipped.resources, "files", lambda package: tmp_path / package)
    assert shipped.recipes() == {"one": folder / "one.yaml"}


def requirements(text):
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            yield Requirement(line)


def test_the_lock_names_what_setup_cfg_asks_for():
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    locked = {}
    for requirement in requirements((ROOT / "lock.txt").read_text(encoding="utf-8")):
        locked.setdefault(canonicalize_name(requirement.name), []).append(next(iter(requirement.specifier)).version)
    extras = setup["options.extras_require"]
    groups = [setup["options"]["install_requires"], *(text for name, text in extras.items() if name not in OPTIONAL)]
    asked = [each for group in groups for each in requirements(group) if each.name != "megapairs-hf"]
    assert len(asked) > 30
    for requirement in asked:
        versions = locked[canonicalize_name(requirement.name)]
        assert all(requirement.specifier.contains(version) for version in versions), requirement
    for requirement in requirements((ROOT / "lock.in").read_text(encoding="utf-8")):
        assert all(requirement.specifier.contains(v) for v in locked[canonicalize_name(requirement.name)])


# alternatives of what the lock has, and what needs torchvision: environments of their own
OPTIONAL = {"eva", "gpu", "wandb"}


def test_what_is_shipped_is_named_where_it_is_built():
    build = (ROOT / "setup.py").read_text(encoding="utf-8")
    manifest = (ROOT / "MANIFEST.in").read_text(encoding="utf-8").splitlines()
    for name in shipped.SHIPPED:
        assert shipped.shipped(name).is_dir()
        assert f'"{name}"' in build
        assert f"graft {name}" in manifest
    assert (ROOT / "megapairs_hf" / "py.typed").is_file()
