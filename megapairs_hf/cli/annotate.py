"""The annotating stages as commands: they can also show, measure, and write and read batch files."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.storage import exists
from megapairs_hf.cli.stage import Stage, load
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.progress import note, show

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from megapairs_hf.cli.flags import Prepare

LIMIT = 5


@dataclasses.dataclass(frozen=True)
class Look:
    """What is done instead of the whole stage.

    Attributes:
        limit: how many rows are looked at.
        show: print their prompts and responses.
        dry_run: measure them, and print what all rows would cost.
        requests: write the requests to this file.
        responses: take responses from this file.
    """

    limit: int | None = None
    show: bool = False
    dry_run: bool = False
    requests: str | None = None
    responses: str | None = None

    def __post_init__(self) -> None:
        looks = self.show or self.dry_run
        if self.limit is not None and (not looks or self.limit < 1):
            raise ConfigError("--limit N (from 1) goes with --show or --dry-run; without them all rows are annotated")
        if sum((looks, self.requests is not None, self.responses is not None)) > 1:
            raise ConfigError("--show and --dry-run, --requests and --responses exclude each other; choose one")


@dataclasses.dataclass(frozen=True)
class AnnotateStage(Stage):
    """An annotating stage as a command.

    Attributes:
        step: `module:function` that gives what the stage would do, with the same arguments.
        look: what is done instead.
    """

    step: str = ""
    look: Look = Look()

    def add_flags(self, parser: argparse.ArgumentParser) -> Prepare:
        """Put its inputs, its settings and what may be done instead into a parser."""
        super().add_flags(parser)
        group = parser.add_argument_group("look before you pay (only the journal is written)")
        group.add_argument("--limit", type=int, metavar="N", help=f"rows to look at (default: {LIMIT})")
        group.add_argument("--show", action="store_true", help="print the prompts and responses of the first rows")
        group.add_argument("--dry-run", action="store_true", help="measure the first rows; print tokens, money, hours")
        group = parser.add_argument_group("batch files (OpenAI's form, for vllm run-batch and batch services)")
        group.add_argument("--requests", metavar="FILE", help="write the requests without a response, and stop")
        group.add_argument("--responses", metavar="FILE", help="take responses from a file instead of servers")
        return self.prepare

    def prepare(self, options: argparse.Namespace) -> Callable[[], int]:
        """Read the settings and what is to be done instead of the whole stage."""
        look = Look(options.limit, options.show, options.dry_run, options.requests, options.responses)
        # the stage that runs is this one with the look
        return Stage.prepare(dataclasses.replace(self, look=look), options)

    def check(self, target: str, config: Any) -> None:
        """Refuse to begin without the parser that the rules need; `instruct` takes that of `describe`.

        Raises:
            ConfigError: spaCy has no such model.
        """
        super().check(target, config)
        by_captions = getattr(config, "engine", "") == "rule_based" and config.edits == "captions"
        if by_captions and self.name == "describe" and not exists(target):
            from megapairs_hf.annotation.rule_based.readers import find_parser

            find_parser(config.parser)

    def apply(self, inputs: list[Any], arguments: dict[str, Any]) -> Any:
        """Run the stage, or what is done instead."""
        look = self.look
        if look == Look():
            return super().apply(inputs, arguments)
        from megapairs_hf.annotation.batch_files import annotate_from_file, write_requests
        from megapairs_hf.annotation.preview import estimate_text, preview, preview_text

        step = load(self.step)(*inputs, **arguments)
        if look.requests is not None:
            note(f"{write_requests(step, look.requests):,} requests written to {look.requests}")
            return None
        if look.responses is not None:
            return annotate_from_file(step, look.responses)
        previews = preview(step, look.limit or LIMIT)
        if look.show:
            show(preview_text(previews))
        if look.dry_run:
            show(estimate_text(step, previews))
        return None
