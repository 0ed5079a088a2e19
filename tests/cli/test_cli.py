import contextlib
import io
import re
import subprocess
import sys

import pytest

from megapairs_hf.cli.commands import COMMANDS, STAGES
from megapairs_hf.cli.parser import USAGE, parse
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


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        ([], 2, ""),
        (["mien"], 2, "did you mean 'mine'?"),
        (["corpus", "--color", "red"], 2, "megapairs corpus: there is no flag --color"),
        (["run", "folder", "extra"], 2, "unexpected argument 'extra'"),
        (["eval", "MODEL", "circo", "--dta", "x"], 2, "there is no flag --dta; did you mean --data?"),
        (["mine", "--nieghbors", "3"], 2, "there is no flag --nieghbors; did you mean --neighbors?"),
        (["embed", "--models", "[]"], 2, "`--models` is now `--encoders`"),
        (["mine", "--neighbors", "many"], 1, "megapairs: mine: `neighbors` cannot be 'many'"),
        (["mine", "--similarity_range", "[0.9, 0.1]"], 1, "`similarity_range` is [0.9, 0.1]"),
        (["corpus", "--scenes.cuont", "3"], 2, "there is no flag --scenes.cuont; did you mean --scenes.count?"),
        (["embed", "--work", "nowhere"], 1, "check the path, or run `megapairs corpus` first"),
        (["mine", "--work", "nowhere"], 1, "holds no finished embeddings"),
        (["run", "nowhere"], 1, "no recipe 'nowhere' is shipped"),
        (["run", "./nowhere"], 1, "cannot read the settings nowhere"),
        (["demo", "--set", "train=3"], 1, "must be STAGE.KEY=VALUE"),
        (["corpus", "--source", "scenes", "--work", "/proc/1/x"], 1, "cannot write"),
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


def help_of(*words):
    out = io.StringIO()
    with pytest.raises(SystemExit), contextlib.redirect_stdout(out):
        parse([*words, "--help"])
    return out.getvalue()


def test_the_help_of_a_stage_names_the_keys_of_nested_settings():
    page = " ".join(help_of("describe").split())
    assert "--local.batch_size INT " in page
    assert "--budget.spend FLOAT most money" in page
    assert re.search(r"--endpoint\.\w*retries INT ", page)


PAGES = [[name] for name in (*STAGES, *COMMANDS)] + [["eval", "MODEL"], ["eval", "check-data"], ["dataset", "import"]]


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_help_fits_80_columns(words):
    assert max(map(len, help_of(*words).splitlines())) <= 80


def test_help_of_a_command_by_its_name(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["help", "mine"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == help_of("mine")


def test_completion_knows_every_command_and_its_flags():
    pytest.importorskip("shtab")
    for shell in ("bash", "zsh", "fish"):
        done = megapairs("completion", shell)
        assert done.returncode == 0, done.stderr
        for word in (*STAGES, *COMMANDS, "similarity_range", "dry_run"):
            assert word in done.stdout


def test_the_usage_names_every_command():
    assert sorted(re.findall(r"^  ([\w-]+) +\S", USAGE, re.MULTILINE)) == sorted([*STAGES, *COMMANDS])
