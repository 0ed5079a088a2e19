"""The `megapairs` command: commands, flags that are the YAML keys, exit codes.

Status 0: done; 1: a `MegaPairsError`, one sentence on stderr; 2: wrong usage; 130: interrupted. Data go to stdout,
progress and notes to stderr. What surprises: a command's own flags are made only when that command is called, so
`megapairs --help` loads nothing heavy.
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from typing import TYPE_CHECKING

from megapairs_hf.core.dependencies import explained
from megapairs_hf.core.errors import MegaPairsError
from megapairs_hf.core.progress import STDERR, discard

if TYPE_CHECKING:
    from collections.abc import Sequence

QUIET = {
    # our own progress says what is going on; the libraries' bars would interrupt it
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: of the command line; None for the process' own.

    Returns:
        The exit status.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a terminal or pipe of another encoding gets a question mark, not an exception
        sys.stdout.reconfigure(errors="replace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        return _run([word for word in words if word != "--debug"])
    except MegaPairsError as error:
        if debug:
            traceback.print_exc()
        STDERR.write(f"megapairs: {error}\n")
        return 1
    except KeyboardInterrupt:
        STDERR.write("megapairs: interrupted; the same command resumes from here\n")
        return 130
    except BrokenPipeError:
        discard(sys.stdout)
        return 0


def _run(words: list[str]) -> int:
    from megapairs_hf.cli.parser import parse

    try:
        return parse(words)()
    except ModuleNotFoundError as error:
        # most commands have said before they began which extra they need
        missing = explained(error, words[0])
        if missing is None:
            raise
        raise missing from error
