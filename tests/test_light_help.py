"""Importing the package and asking any command for its help loads no package that is not needed for it.

There is no clock in here: what is slow is importing, so what is checked is what was imported.
"""

import importlib
import subprocess
import sys

import pytest

from megapairs_hf.cli.commands import COMMANDS, STAGES
from megapairs_hf.core import lazy
from tests.small import ROOT

# settings are read by these two; a YAML parser and a dataclass builder cost a few milliseconds
LIGHT = {"yaml", "_yaml", "dacite", "megapairs_hf"}
PACKAGES = ("annotation", "corpus", "dataset", "embedding", "evaluation", "mining", "models", "training")
HELPS = [
    ["--help"],
    ["help"],
    ["help", "mine"],
    ["--version"],
    *([name, "--help"] for name in (*STAGES, *COMMANDS)),
    ["eval", "MODEL", "--help"],
    ["eval", "check-data", "--help"],
    ["eval", "--check-submission", "FILE", "--help"],
    *(["dataset", name, "--help"] for name in ("import", "export")),
]
PROBE = """
import sys
before = set(sys.modules)
{body}
loaded = {{name.partition(".")[0] for name in set(sys.modules) - before}} - set(sys.stdlib_module_names)
print("LOADED", *sorted(loaded))
"""


def loaded(body):
    """The packages beside Python's own that a script imports."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(body=body)], check=True, capture_output=True, text=True, cwd=ROOT
    )
    names = done.stdout.rsplit("LOADED", 1)[1].split()
    # what a compiled YAML parser registers of the compiler that made it
    return {name for name in names if "cython" not in name}


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_help_imports_nothing_that_is_slow(words):
    body = f"from megapairs_hf.cli import main\ntry: main({words!r})\nexcept SystemExit as end: assert not end.code"
    assert loaded(body) <= LIGHT


def test_importing_is_free():
    names = ["megapairs_hf", *(f"megapairs_hf.{name}" for name in PACKAGES)]
    assert loaded("\n".join(f"import {name}" for name in names)) == {"megapairs_hf"}


@pytest.mark.parametrize("name", ["megapairs_hf", *(f"megapairs_hf.{name}" for name in PACKAGES)])
def test_every_exported_name_is_listed_and_there(name):
    package = importlib.import_module(name)
    assert set(package.__all__) <= set(dir(package))
    for shown in package.__all__:
        made = getattr(package, shown)
        assert made.__name__ == shown
        assert made.__module__.startswith("megapairs_hf.")
    assert not hasattr(package, "no_such_name")


def test_a_name_is_looked_up_when_it_is_used(tmp_path, monkeypatch):
    (tmp_path / "parcel").mkdir()
    (tmp_path / "parcel" / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "parcel" / "inner.py").write_text("value = 3\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    import parcel

    find, listed = lazy.exports("parcel", {"inner": ["value"]})
    assert "parcel.inner" not in sys.modules
    assert "value" in listed()
    assert "parcel.inner" not in sys.modules
    assert find("value") == 3
    with pytest.raises(AttributeError, match="module 'parcel' has no attribute 'valeu'"):
        find("valeu")
    assert parcel.inner.value == 3
