"""Output in any encoding, closed or full; text of others on a terminal; modules of the user's called as packages."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from megapairs_hf.cli import main
from megapairs_hf.core.formatting import printable, printable_lines, table_cell
from megapairs_hf.core.progress import note, show
from tests.small import ROOT

NASTY = "café, 日本 τ \x1b[31mred\x07 \u202eevil \u200fmark 👩‍💻"
ENCODINGS = ("ascii", "latin-1", "cp1252", "shift_jis", "utf-8")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("surroundings")
    (folder / "photos").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"é{number}.png")
        (folder / "photos" / f"é{number}.txt").write_text(f"{NASTY} {number}", encoding="utf-8")
    assert main(["corpus", "--source", "image_folder", "--path", f"{folder}/photos", "--work", str(folder)]) == 0
    (folder / "recipe.yaml").write_text("corpus: {source: image_folder, path: 日本é}\n", encoding="utf-8")
    return folder


def commands(folder):
    return {
        "help": ["--help"],
        "help of a command": ["help", "train"],
        "version": ["--version"],
        "inspect": ["inspect", f"{folder}/corpus"],
        "report": ["report", str(folder), "--title", NASTY],
        "dry run": ["run", f"{folder}/recipe.yaml", "--dry-run"],
        "check-data": ["eval", "check-data", "circo", "--data", f"{folder}/日本"],
        "check-submission": ["eval", "--check-submission", f"{folder}/日本.json"],
        "completion": ["completion", "zsh"],
        "error": ["inspect", f"{folder}/日本"],
        "usage error": ["mine", "--日本", "3"],
        "environment": ["env"],
    }


def test_a_page_shows_what_is_no_letter(work):
    assert main(["report", str(work), "--title", NASTY]) == 0
    page = (work / "report.html").read_text(encoding="utf-8")
    assert r"café, 日本 τ \x1b[31mred\x07 \u202eevil" in page
    assert not {"\x1b", "\x07", "\u202e", "\u200f"} & set(page)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", commands(""))
def test_output_in_any_encoding_is_escaped(work, monkeypatch, name, encoding):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, errors="strict") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    try:
        status = main(commands(work)[name])
    except SystemExit as stop:
        status = stop.code
    assert status == {"error": 1, "usage error": 2, "check-submission": 1, "check-data": 1}.get(name, 0)
    out.flush()
    err.flush()
    written = (out.buffer.getvalue() + err.buffer.getvalue()).decode(encoding)
    assert written
    # what is ours goes out as it is; no command of a terminal does
    assert not {"\x1b", "\x07", "\u202e", "\u200f"} & set(written)
    if encoding == "utf-8" and name in {"inspect", "dry run", "error", "usage error"}:
        assert "日本" in written
    if encoding == "ascii" and name == "inspect":
        assert r"caf\xe9, \u65e5\u672c" in written


LOCALES = [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "C"},
    {"PYTHONIOENCODING": "ascii:strict"},
    {"PYTHONIOENCODING": "cp1252"},
]


def child(words, folder, **environment):
    return subprocess.run(
        [sys.executable, *map(str, words)],
        check=False,
        capture_output=True,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.mark.parametrize("environment", LOCALES, ids=" ".join)
def test_a_locale_without_these_letters_ends_nothing(work, tmp_path, environment):
    arguments = ["--source", "image_folder", "--path", work / "photos", "--work", tmp_path / "w"]
    made = child(["-m", "megapairs_hf", "corpus", *arguments], tmp_path, **environment)
    assert (made.returncode, made.stderr.count(b"4 rows")) == (0, 1), made.stderr
    shown = child(["-m", "megapairs_hf", "inspect", tmp_path / "w" / "corpus"], tmp_path, **environment)
    assert shown.returncode == 0 and b"rows: 4" in shown.stdout and b"\x1b" not in shown.stdout


def test_a_path_that_is_no_text_is_one_sentence(work, tmp_path):
    arguments = ["--source", "image_folder", "--path", work / "photos", "--work", "日本"]
    made = child(["-m", "megapairs_hf", "corpus", *arguments], tmp_path, **LOCALES[0])
    assert made.returncode in {0, 1} and b"Traceback" not in made.stderr
    assert made.returncode == 0 or b"is no ascii text, as file names are here; set PYTHONUTF8=1" in made.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["help", "mine"], ["completion", "bash"], ["inspect", "CORPUS"]])
def test_a_reader_that_goes_away_is_no_failure(work, words, unbuffered):
    words = [str(work / "corpus") if word == "CORPUS" else word for word in words]
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "megapairs_hf", *words],
            check=False,
            stdout=write,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered, "PYTHONPATH": str(ROOT)},
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")  # noqa: PTH110
def test_a_full_disk_is_one_sentence(work):
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        words = [sys.executable, "-m", "megapairs_hf", "inspect", str(work / "corpus")]
        done = subprocess.run(words, check=False, stdout=full, stderr=subprocess.PIPE, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == b"megapairs: cannot write to standard output: No space left on device\n"


NAMES = ("datasets", "evaluate", "torch", "numpy", "queue", "json", "random", "logging", "wandb", "tokenize", "yaml")


def test_modules_of_the_users_are_not_loaded(work, tmp_path):
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text('train = ["my own lists"]\n')
    arguments = ["corpus", "--source", "image_folder", "--path", work / "photos", "--work", "w"]
    done = child(["-m", "megapairs_hf", *arguments], tmp_path)
    assert done.returncode == 0 and b"4 rows" in done.stderr, done.stderr


def test_several_processes_load_no_module_of_the_users(work, tmp_path):
    for name in NAMES:
        (tmp_path / f"{name}.py").write_text('train = ["my own lists"]\n')
    # as the script `torchrun` does, whose own folder is first on the path instead of the current one
    code = "import sys; sys.path.pop(0); from torch.distributed.run import main; main()"
    launcher = ["-c", code, "--nproc_per_node", "2", "--master_addr", "127.0.0.1", "--rdzv_backend", "c10d"]
    arguments = ["corpus", "--source", "image_folder", "--path", work / "photos", "--work", "w"]
    words = [*launcher, "--rdzv_endpoint", "127.0.0.1:0", "-m", "megapairs_hf", *arguments]
    done = child(words, tmp_path, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    assert done.returncode == 0 and b"4 rows" in done.stderr, done.stderr


@pytest.mark.parametrize("name", ["datasets", "pyarrow", "queue"])
def test_a_module_in_the_place_of_a_package_is_named(work, tmp_path, name):
    (tmp_path / f"{name}.py").write_text('train = ["my own lists"]\n')
    arguments = ["corpus", "--source", "image_folder", "--path", work / "photos", "--work", "w"]
    # PYTHONPATH puts the folder before all packages
    done = child(["-m", "megapairs_hf", *arguments], tmp_path, PYTHONPATH=f"{tmp_path}:{ROOT}")
    sentence = f"{tmp_path}/{name}.py is loaded in the place of the package {name}; rename it".encode()
    assert done.returncode == 1 and sentence in done.stderr and b"Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("un été à 18 h 日本 τ Ω", "un été à 18 h 日本 τ Ω"),
        ("a\nb", r"a\nb"),
        ("a\tb", r"a\tb"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("\x9b31m", r"\x9b31m"),
        ("a\x00b\x07\x7f", r"a\x00b\x07\x7f"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\u2066a\u2069 \u200e\u200f\u061c", r"\u2066a\u2069 \u200e\u200f\u061c"),
        ("half \ud83d", r"half \ud83d"),
        ("line\u2028next\x85", r"line\u2028next\x85"),
        ("bien\u00a0! 日本\u3000語", "bien\u00a0! 日本\u3000語"),
        ("👩\u200d💻 نمی\u200cخواهم", "👩\u200d💻 نمی\u200cخواهم"),
    ],
)
def test_what_is_no_letter_is_made_visible(text, shown):
    assert printable(text) == shown
    assert printable(shown) == shown
    shown.encode()


def test_lines_stay_lines(capsys):
    assert printable_lines("a\tb\n\x1b[1mc\n") == "a\tb\n\\x1b[1mc\n"
    show("\x1b[1mresult")
    note("\x1b[1mnote")
    assert capsys.readouterr() == ("\\x1b[1mresult\n", "\\x1b[1mnote\n")
    assert table_cell("a\n|b|\x1b") == r"a \|b\|\\x1b"
