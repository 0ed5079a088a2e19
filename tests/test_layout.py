"""Where things are: no public name is a file too, the tests mirror the package, CONTRIBUTING.md names what exists."""

import ast
import importlib
import pkgutil
import re
from types import ModuleType

import pytest

import megapairs_hf
from tests.small import ROOT

PACKAGE = ROOT / "megapairs_hf"
# tests of a folder's own that no folder of the package has
ELSEWHERE = {"open_clip"}


def modules():
    """Every module but the one that runs the command when it is imported."""
    for found in pkgutil.walk_packages(megapairs_hf.__path__, "megapairs_hf."):
        if not found.name.endswith("__main__"):
            yield found.name


@pytest.fixture(scope="module")
def imported():
    return {"megapairs_hf": megapairs_hf} | {name: importlib.import_module(name) for name in modules()}


def test_public_names_are_callable_when_everything_is_imported(imported):
    # importing a submodule puts it beside the names of its folder, over one that is called alike
    assert all(callable(getattr(megapairs_hf, name)) for name in megapairs_hf.__all__)


def test_no_public_name_of_a_folder_is_one_of_its_files(imported):
    for name, module in imported.items():
        for public in getattr(module, "__all__", []):
            assert not isinstance(getattr(module, public), ModuleType), f"{name}.{public} is a file"
            assert f"{name}.{public}" not in imported, f"{name} has a name and a file {public}"


def test_every_folder_of_tests_is_one_of_the_package():
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("*.py")}
    assert [str(f) for f in folders if str(f) not in ELSEWHERE and not (PACKAGE / f / "__init__.py").is_file()] == []


def test_every_folder_of_the_package_has_a_door_with_a_docstring():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    for folder in folders:
        assert (folder / "__init__.py").read_text(encoding="utf-8").startswith('"""'), folder


def test_what_contributing_names_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    top = {path.name for path in ROOT.iterdir()}
    # a file in a folder of the repository; `embed.yaml` alone is some recipe's
    paths = [p for p in re.findall(r"`([\w.*/-]+)`", text) if "/" in p and p.split("/")[0] in top]
    assert len(paths) > 10
    assert [path for path in paths if not list(ROOT.glob(path.rstrip("/")))] == []


def test_no_class_is_defined_twice():
    places = {}
    for path in sorted((ROOT / "megapairs_hf").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
