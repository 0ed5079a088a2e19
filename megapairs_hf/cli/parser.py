"""From words on the command line to a call with settings."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from megapairs_hf.cli.commands import COMMANDS, STAGES
from megapairs_hf.cli.flags import Parser
from megapairs_hf.cli.stage import load
from megapairs_hf.core.openmp import wait_passively
from megapairs_hf.core.progress import show
from megapairs_hf.core.version import __version__

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from megapairs_hf.cli.flags import Prepare

# what trains a large model has a machine to itself; with a recipe for small machines it has not, see `SMALL`
ON_ITS_OWN = {"train", "run"}
USAGE = """megapairs COMMAND [options]

Composed-image-retrieval data from any captioned image corpus, and retrievers
trained on it.

The whole flow:
  demo       on the embedded corpus, with a report at the end
  run        every stage of a recipe, resuming

One stage at a time, each with --config F.yaml, --work DIR, and its settings
as flags:
  corpus     images and captions from a data set, a folder, tars, or synthetic
  caption    a caption for each image (optional)
  pretrain   small encoders from scratch, for runs without downloads
  align      an image and a text encoder in one space, by small heads trained
             on the captions
  embed      images and captions to embeddings, one set per encoder
  mine       related pairs and hard negatives
  describe   what the two images of a pair share and how they differ
  instruct   three or more search instructions per pair
  verify     whether each instruction leads to its target (optional)
  build      the data set of triplets
  train      an MMRet on the triplets
  eval       composed retrieval on held-out images; eval MODEL BENCHMARK …
             on CIRCO, CIRR, FashionIQ, GeneCIS, MMEB; eval check-data BENCHMARK
             and eval parity MODEL --endpoint URL

Looking and sharing:
  report     one HTML page of a work folder
  inspect    what an artifact holds
  verify-files  compare every file with what was written: bit rot, cut copies
  search     an index of images, and what is found by an image, a text, or both
  explore    rows of an artifact or data set on a page, to filter and mark
  dataset    import and export the released format
  push       a data set, model or results to the Hub; --dry-run shows what
  env        versions, devices, shipped files; --servers: models served here
  completion a script that completes commands and flags in bash, zsh or fish

`megapairs help COMMAND` shows a command's settings; --debug shows tracebacks.
"""


def parse(words: list[str]) -> Callable[[], int]:
    """Read the command line.

    Args:
        words: without the program's name.

    Returns:
        The call to make; it returns the exit status.

    Raises:
        SystemExit: with status 2 for wrong usage, 0 after `--help` and `--version`.
        ConfigError: a setting is unknown, missing or out of range.
    """
    if words[:1] == ["help"] and len(words) > 1:
        words = [*words[1:], "--help"]
    if not words or words[0] in {"-h", "--help", "help"}:
        show(USAGE, end="")
        raise SystemExit(0 if words else 2)
    if words[0] == "--version":
        show(__version__)
        raise SystemExit(0)
    command, rest = words[0], words[1:]
    if command not in ON_ITS_OWN:
        wait_passively()
    if command == "eval" and rest and (not rest[0].startswith("-") or rest[0].startswith("--check-submission")):
        from megapairs_hf.cli.eval import eval_command

        return eval_command(rest)
    if command not in (*STAGES, *COMMANDS):
        near = difflib.get_close_matches(command, [*STAGES, *COMMANDS], n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see `megapairs --help`"
        Parser("megapairs", add_help=False).error(f"there is no command {command!r}; {hint}")
    parser = Parser(f"megapairs {command}")
    return add_command(parser, command)(parser.parse_args(rest))


def add_command(parser: argparse.ArgumentParser, command: str) -> Prepare:
    """Put the flags of a command into a parser, and return what reads them."""
    if command in STAGES:
        return STAGES[command].add_flags(parser)
    add: Callable[[argparse.ArgumentParser], Prepare] = load(COMMANDS[command])
    return add(parser)


def command_tree() -> argparse.ArgumentParser:
    """All commands with all flags in one parser, for completion."""
    tree = Parser("megapairs")
    commands = tree.add_subparsers()
    for command, summary in re.findall(r"^  ([\w-]+) +(\S.*)$", USAGE, re.MULTILINE):
        add_command(commands.add_parser(command, help=summary), command)
    return tree
