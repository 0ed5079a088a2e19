"""Mutated settings files, read by the commands themselves: `python -m tests.fuzz settings --count 500`.

Each is read or refused in one sentence; what comes of it is finite. Mutations of what YAML ignores alone are read as
the file before them.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import math
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.cli import main
from megapairs_hf.cli.recipe import DEMO
from megapairs_hf.core.yaml_values import load_yaml
from tests.small import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

SLOW_S, LONGEST = 20.0, 2000
RECIPES = [*sorted((ROOT / "recipes").glob("*.yaml")), DEMO]
SPECS = sorted((ROOT / "eval").glob("*.yaml"))
VALUES = (
    *("010", "0x10", "0o17", "1_000", "1:10", "1e5", "5e-6", "1e999", ".inf", "-.Inf", ".nan", "9" * 400, "-0", "+5"),
    *("no", "off", "yes", "On", "y", "true", "null", "~", "", "=", "<<", "2026-11-28", "2026-11-28T10:00:00Z"),
    *("[]", "{}", "[1, [2, [3]]]", "{a: 1, a: 2}", "*gone", "&a [*a]", "&b {<<: *b}", "[" * 300, "{a: " * 300),
    *("!!int ten", "!!binary aGk=", "!x y", "!!python/object/apply:os.system [ls]", "!!set {a}", "'open", "|\n  text"),
    *('"\\ud800"', '"\\0"', '"\\UFFFFFFFF"', ">-", "\u202e", "caf\u00e9", "\U0001f600", "\u2028"),
    *("- a", "? b", "a: b: c", "@at", "`tick", "%d"),
)


def replaced_value(text: str, dice: random.Random) -> str:
    """A value of some line, or of a mapping in it, in the place of which another stands."""
    places = [i for i in range(len(text)) if text.startswith(": ", i)] or [0]
    at = dice.choice(places) + 2
    end = min((text.find(mark, at) for mark in ("\n", ",", "}") if text.find(mark, at) >= 0), default=len(text))
    return text[:at] + dice.choice(VALUES) + text[end:]


def changed_lines(text: str, dice: random.Random) -> str:
    """A line that stands twice, stands elsewhere, is gone, or is indented otherwise."""
    lines = text.splitlines(keepends=True)
    if not lines:
        return text
    at, to = dice.randrange(len(lines)), dice.randrange(len(lines))
    ways = (
        [*lines[:to], lines[at], *lines[to:]],
        [*lines[:at], *lines[at + 1 :]],
        [*lines[:at], dice.choice((" ", "\t", "  ", "- ", "? ")) + lines[at], *lines[at + 1 :]],
        [*lines[:at], dice.choice(("---\n", "...\n", "%YAML 1.1\n", "%TAG ! x\n", "\x00\n", "\ufeff\n")), *lines[at:]],
        lines[:at],
    )
    return "".join(dice.choice(ways))


def changed_letters(text: str, dice: random.Random) -> str:
    """Some letters that are others, gone, or more."""
    letters = list(text)
    for _ in range(dice.choice((1, 1, 2, 8))):
        at = dice.randrange(len(letters) + 1)
        letters[at : at + dice.randint(0, 2)] = dice.choice("\t\n :,-{}[]&*!|>'\"%@`#?=~.0aZé\x00\x07\x85\ufeff")
    return "".join(letters)


def changed_bytes(content: bytes, dice: random.Random) -> bytes:
    """Another encoding, or bytes that are none."""
    at = dice.randrange(len(content) + 1)
    text = content.decode()
    return dice.choice((
        content[:at],
        content[:at] + bytes([dice.randrange(256)]) + content[at:],
        text.encode("utf-16-le"),
        text.encode("utf-32"),
        codecs.BOM_UTF16_BE + content,
        content.replace(b"a", b"\xe9", 1),
        bytes(dice.randrange(256) for _ in range(dice.randint(0, 300))),
    ))  # fmt: skip


def ignored(text: str, dice: random.Random) -> bytes:
    """The same settings with other comments, blanks, line ends, quotes around keys, order or encoding."""
    lines = text.splitlines()
    for i, line in enumerate(lines):
        kind = dice.randrange(8)
        if kind == 0:
            lines[i] = line + dice.choice((" ", "   ", "\t", " \t ", "  # why: [not]", "\t# {"))
        elif kind == 1:
            lines[i] = line + dice.choice(("\n", "\n\n", "\n# a: 1", "\n      # - b", "\n   ", "\n\t"))
    # the blocks of a recipe in any order, but for those with an anchor
    blocks = "\n".join(lines).split("\n\n")
    if "&" not in text and dice.randrange(2):
        tops = [i for i, block in enumerate(blocks) if block[:1].isalpha()]
        if all(block[:1].isalpha() for block in blocks[1:]):
            order = tops[:]
            dice.shuffle(order)
            blocks = [blocks[order[tops.index(i)]] if i in tops else block for i, block in enumerate(blocks)]
    same = "\n\n".join(blocks) + dice.choice(("", "\n", "\n\n", "\n...\n"))
    same = dice.choice(("", "# first\n", "---\n", "\n")) + same
    same = same.replace("\n", dice.choice(("\n", "\n", "\r\n", "\r")))
    mark = "\ufeff" if dice.randrange(3) == 0 else ""
    return dice.choice(((mark + same).encode(), same.encode("utf-16")))


def fuzz_settings(count: int, seed: int) -> Counter[str]:
    """Read mutated recipes and protocols of benchmarks.

    Args:
        count: mutations; as many again change only what YAML ignores.
        seed: of the mutations.

    Returns:
        How many were read and how many refused.
    """
    results: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        before = {path: outcome(path, folder) for path in (*RECIPES, *SPECS)}
        assert all(status == 0 for status, _ in before.values()), before
        for i in range(count):
            dice = random.Random(f"{seed} {i}")
            path = (*RECIPES, *SPECS)[i % len(before)]
            other = folder / path.name
            other.write_bytes(mutated(path.read_text(encoding="utf-8"), dice))
            try:
                status, _ = outcome(other, folder)
                results["read" if status == 0 else "refused"] += 1
                other.write_bytes(ignored(path.read_text(encoding="utf-8"), dice))
                assert outcome(other, folder) == before[path], "what is ignored was not"
            except BaseException as error:
                raise AssertionError(f"number {i} of seed {seed}, {path.name}: {other.read_bytes()!r}") from error
    assert sum(results.values()) == count
    return results


def mutated(text: str, dice: random.Random) -> bytes:
    """One to three mutations."""
    ways: tuple[Callable[[str, random.Random], str], ...] = (
        replaced_value,
        replaced_value,
        changed_lines,
        changed_letters,
    )
    for _ in range(dice.randint(1, 3)):
        text = dice.choice(ways)(text, dice) or " "
        if " : " not in text and ": " not in text:
            break
    content = text.encode("utf-8", "surrogatepass")
    return changed_bytes(content, dice) if dice.randrange(6) == 0 else content


def outcome(path: Path, folder: Path) -> tuple[int, Any]:
    """The exit status of the command that reads a file (0 where it read it), and the settings that it read."""
    is_recipe = path.name in {each.name for each in RECIPES}
    check = ["eval", "check-data", str(path), "--data", str(folder / "data"), "--quick"]
    out, err, start = io.StringIO(), io.StringIO(), time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["run", str(path), "--work", str(folder / "work"), "--dry-run"] if is_recipe else check)
    assert time.monotonic() - start < SLOW_S
    # the data are not there, which the check says with status 1 once it has read the settings
    if status == 0 or (not is_recipe and out.getvalue()):
        shown = out.getvalue()
        settings = load_yaml(shown) if is_recipe else shown
        assert all(map(math.isfinite, numbers(settings)))
        return 0, settings
    sentence = err.getvalue()
    assert status == 1 and sentence.startswith("megapairs: ") and sentence.count("\n") == 1, sentence
    assert len(sentence) < LONGEST and "Traceback" not in sentence, sentence
    return status, None


def numbers(value: Any) -> list[float]:
    """All numbers in plain settings."""
    if isinstance(value, dict | list):
        return [each for part in (value.values() if isinstance(value, dict) else value) for each in numbers(part)]
    return [value] if isinstance(value, int | float) else []
