"""Text of others wherever it is printed: control characters and marks of direction come out as escapes, everywhere."""

import ast
import json
import shutil

import pytest

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.artifacts.workspace import open_work
from megapairs_hf.cli import guarded, main
from megapairs_hf.core.errors import MegaPairsError
from megapairs_hf.core.progress import Progress, note, show
from megapairs_hf.report.config import ReportConfig
from megapairs_hf.report.page import render
from tests.making import make_work
from tests.small import ROOT

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\u2066\r\x00\x7f\u2028"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A work folder in whose manifests a stranger wrote, and in whose captions."""
    made = make_work(tmp_path_factory.mktemp("printed") / "work", captions={0: f"a {HOSTILE} caption"})
    for file in made.rglob("manifest.json"):
        manifest = json.loads(file.read_text())
        manifest["rejected"] = {**manifest.get("rejected", {}), HOSTILE: 1}
        manifest["stats"] = {**manifest.get("stats", {}), "warnings": [HOSTILE], HOSTILE: HOSTILE}
        manifest["config"] = {**manifest["config"], "note": HOSTILE}
        file.write_text(json.dumps(manifest))
    return made


def fail():
    raise MegaPairsError(HOSTILE)


def progress():
    with Progress("embed", 2, "images") as bar:
        bar.advance(2, HOSTILE)
        note(bar.line(HOSTILE))


PRINTERS = {
    "note": lambda _: note(HOSTILE),
    "show": lambda _: show(HOSTILE),
    "error": lambda _: guarded(fail),
    "error with a traceback": lambda _: guarded(fail, debug=False),
    "progress": lambda _: progress(),
    "inspect a corpus": lambda work: main(["inspect", str(work / "corpus")]),
    "inspect pairs": lambda work: main(["inspect", str(work / "pairs")]),
    "inspect a model": lambda work: main(["inspect", str(work / "model")]),
    "a path that is not there": lambda work: main(["inspect", str(work / HOSTILE.replace("\x00", ""))]),
    "a setting": lambda _: main(["mine", "--neighbors", HOSTILE.replace("\x00", "")]),
    "verify-files": lambda work: main(["verify-files", str(work)]),
    "repr": lambda work: show("\n".join(map(repr, open_work(work).artifacts.values()))),
    "push": lambda work: main(
        ["push", "dataset", str(work / "triplets"), "me/x", "--license", "mit", "--dry-run", "--out", f"{work}-out"]
    ),
}


def test_a_command_that_there_is_not(capsys):
    with pytest.raises(SystemExit):
        main([HOSTILE])
    assert capsys.readouterr().err.rstrip("\n").isprintable()


@pytest.mark.parametrize("printer", PRINTERS)
def test_nothing_reaches_the_terminal_but_letters(work, printer, capsys):
    PRINTERS[printer](work)
    shown = "".join(capsys.readouterr())
    assert shown.strip()
    # the classes are spelled here a second time, by Unicode's own numbers
    wrong = {c for c in shown if c not in "\n\t" and (ord(c) < 32 or 127 <= ord(c) < 160)}
    wrong |= {c for c in shown if 0x202A <= ord(c) <= 0x202E or 0x2066 <= ord(c) <= 0x2069 or c in "\u2028\u2029"}
    assert not wrong


def test_what_is_said_of_an_artifact_is_printable(work):
    for artifact in open_work(work).artifacts.values():
        assert all(line.isprintable() for line in repr(artifact).split("\n"))
        assert "\x1b" not in artifact._repr_html_()


def test_a_report_has_no_letter_that_is_none(work):
    assert all(line.isprintable() for line in render(open_work(work), ReportConfig()).replace("\t", "").split("\n"))


def test_a_manifest_that_is_read_again_says_it_plainly(work, tmp_path, capsys):
    shutil.copytree(work / "pairs", tmp_path / "pairs")
    file = tmp_path / "pairs" / "manifest.json"
    manifest = json.loads(file.read_text())
    for key in ("kind", "version"):
        file.write_text(json.dumps(manifest | {key: HOSTILE, "shards": [{"file": HOSTILE, "rows": 0, "sha256": ""}]}))
        with pytest.raises(MegaPairsError) as caught:
            open_artifact(tmp_path / "pairs")
        assert str(caught.value).isprintable()


# where text goes to the terminal: through `core/progress`, as JSON or a path of the user's own, or not at all
WRITERS = {
    "megapairs_hf/core/progress.py",
    "megapairs_hf/cli/__init__.py",
    "megapairs_hf/cli/flags.py",
    "megapairs_hf/cli/search.py",
    "megapairs_hf/cli/share.py",
}


def test_nothing_else_writes_to_the_terminal():
    writers = set()
    for path in sorted((ROOT / "megapairs_hf").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            is_stream = (
                isinstance(node, ast.Attribute)
                and node.attr in {"stdout", "stderr"}
                and isinstance(node.value, ast.Name)
                and node.value.id == "sys"
            )
            if is_print or is_stream:
                writers.add(path.relative_to(ROOT).as_posix())
    assert writers <= WRITERS
