"""`megapairs eval --check-submission FILE`: what the server of CIRCO or CIRR would refuse."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def submission(words: list[str]) -> Callable[[], int]:
    """`megapairs eval --check-submission FILE`."""
    parser = argparse.ArgumentParser("megapairs eval", description="What is wrong with a file for a test server.")
    parser.add_argument("--check-submission", required=True, metavar="FILE", dest="file", help="the file")
    parser.add_argument("--data", metavar="DIR", help="the benchmark's annotations, to check keys and references too")
    return functools.partial(check, parser.parse_args(words))


def check(options: argparse.Namespace) -> int:
    """Explain a submission: status 0 where its server will take it, 1 where not."""
    from megapairs_hf.evaluation.doctor import data_folder
    from megapairs_hf.evaluation.reading import read_benchmark
    from megapairs_hf.evaluation.specs import read_spec
    from megapairs_hf.evaluation.submissions import Known, check_submission

    kind, _ = check_submission(options.file)
    known = None
    if options.data and kind.startswith("CIR"):
        name = "circo" if kind == "CIRCO" else "cirr"
        spec = read_spec(name, {"split": "test" if name == "circo" else "test1"})
        known = Known.of(read_benchmark(spec, data_folder(options.data, spec), check=False)[0])
    kind, wrong = check_submission(options.file, known)
    lines = [f"{options.file}: {kind}, " + ("nothing wrong" if not wrong else f"{len(wrong)} things wrong")]
    lines += [f"  - {sentence}" for sentence in wrong]
    if known is None:
        lines.append(
            "  Not checked without --data DIR: which pictures there are, and that no reference is in its list."
        )
    print("\n".join(lines))  # noqa: T201
    return 1 if wrong else 0
