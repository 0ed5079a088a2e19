"""The `megapairs` command: commands, flags that are the YAML keys, exit codes.

Status 0: done; 1: a `MegaPairsError`, one sentence on stderr; 2: wrong usage; 130 and 143: ended by
Ctrl-C and SIGTERM, resumable. Data go to stdout,
progress and notes to stderr. What surprises: a command's own flags are made only when that command is called, so
`megapairs --help` loads nothing heavy.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
import traceback
from typing import TYPE_CHECKING

from megapairs_hf.core.dependencies import explained, in_the_way
from megapairs_hf.core.errors import MegaPairsError
from megapairs_hf.core.formatting import printable, printable_lines
from megapairs_hf.core.progress import STDERR, show

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

QUIET = {
    # our own progress says what is going on; the libraries' bars would interrupt it
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}

# bytes of a file's name that are no text, as Python keeps them
LOST = re.compile("[\udc80-\udcff]")


class Terminated(KeyboardInterrupt):
    """SIGTERM, which Slurm, Docker and Kubernetes send: what holds for Ctrl-C holds for it."""


def end_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does; its workers, which are ended by SIGTERM, end at once."""
    own = os.getpid()

    def terminated(*_: object) -> None:
        # a second one, while the first is being carried out, ends the process
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != own:
            os.kill(os.getpid(), signal.SIGTERM)
        raise Terminated

    signal.signal(signal.SIGTERM, terminated)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: of the command line; None for the process' own.

    Returns:
        The exit status.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if arguments is None and threading.current_thread() is threading.main_thread():
        end_on_sigterm()
    words = list(sys.argv[1:] if arguments is None else arguments)
    return guarded(lambda: _run([word for word in words if word != "--debug"]), debug="--debug" in words)


def guarded(call: Callable[[], int], *, debug: bool = False) -> int:
    """Make a call whose output goes to any terminal, pipe or file, and end it with one sentence where it fails.

    Args:
        call: returns the exit status.
        debug: show the traceback of an error of ours too.

    Returns:
        The exit status. A reader that goes away (`… | head`) is no failure.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # what the encoding of a terminal or pipe lacks is escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = call()
    except MegaPairsError as error:
        if debug:
            traceback.print_exc()
        STDERR.write(f"megapairs: {printable_lines(str(error))}\n")
        status = 1
    except KeyboardInterrupt as error:
        STDERR.write("megapairs: interrupted; the same command resumes from here\n")
        status = 143 if isinstance(error, Terminated) else 130
    except UnicodeEncodeError as error:
        if not LOST.search(str(error.object)):
            raise
        name, encoding = printable(str(error.object)), sys.getfilesystemencoding()
        STDERR.write(
            f"megapairs: {name} is no {encoding} text, as file names are here; set PYTHONUTF8=1, or rename it\n"
        )
        status = 1
    finally:
        # what argparse wrote
        show("", end="")
    return status


def _run(words: list[str]) -> int:
    from megapairs_hf.cli.parser import parse

    try:
        return parse(words)()
    except (ImportError, AttributeError) as error:
        # most commands have said before they began which extra they need
        reason = in_the_way() or (explained(error, words[0]) if isinstance(error, ModuleNotFoundError) else None)
        if reason is None:
            raise
        raise reason from error
