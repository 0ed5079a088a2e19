"""Child processes that die as by `kill -9`, at a moment that is counted and not timed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
COMMAND = """
import sys
from tests.killing import die_before

die_before(int(sys.argv[1]), sys.argv[2])
from megapairs_hf.cli import main

sys.exit(main(sys.argv[3:]))
"""


def die_before(number: int, pattern: str = "*") -> None:
    """Kill this process before its n-th renaming (from 1) of a file or folder to a path that fits the pattern.

    What outlives a process gets its name by a renaming: what is written then is whole, and not in its place.
    """
    left = number

    def counted(move: Any) -> Any:
        def moved(self: Path, target: Any) -> Any:
            nonlocal left
            left -= Path(target).match(pattern)
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return move(self, target)

        return moved

    Path.rename, Path.replace = counted(Path.rename), counted(Path.replace)  # type: ignore[method-assign]


def killed_megapairs(number: int, pattern: str, *words: str | Path) -> None:
    """The command as a user runs it, killed before its n-th renaming."""
    command = [sys.executable, "-c", COMMAND, str(number), pattern, *map(str, words)]
    done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
