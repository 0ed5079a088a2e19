"""Seeded mutations of what users hand in, in numbers: `python -m tests.fuzz images --count 2000 --seed 0`.

A part is a function of a count and a seed that raises AssertionError with the seed's own number of the input at fault.
A short run of each stands among the long tests.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from megapairs_hf.core.errors import ImageRejectedError
from megapairs_hf.images.decode import decode_image
from tests.fuzz_checkpoints import fuzz_checkpoints
from tests.fuzz_evaluation import fuzz_annotations, fuzz_submissions
from tests.fuzz_settings import fuzz_settings
from tests.fuzz_tables import fuzz_tables
from tests.images.mutations import damaged, with_other_metadata
from tests.images.seeds import rich_files, seed_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# a decoder that is inside C hears no signal: the process ends, with where it was
HANGS_S = 60.0
ERRORS = os.dup(2)
SLOW_S = 5.0


def fuzz_images(count: int, seed: int) -> Counter[str]:
    """Decode mutated image files: each is decoded or rejected, none raises, hangs or prints.

    Args:
        count: mutations of files of all formats; as many again change metadata or what follows the end alone.
        seed: of the mutations.

    Returns:
        How many were decoded and how many rejected, by reason.
    """
    seeds, rich = seed_files(), rich_files()
    for name, content in [*seeds.items(), *rich.items()]:
        assert outcome(content) == "decoded", f"{name} as it was written"
    results: Counter[str] = Counter()
    with quiet():
        for i in range(count):
            dice = random.Random(f"{seed} {i}")
            name = list(seeds)[i % len(seeds)]
            results[outcome(damaged(seeds[name], dice))] += 1
            kind = dice.choice([*rich, name])
            same = with_other_metadata(rich.get(kind) or seeds[kind], dice)
            result = outcome(same)
            assert result == "decoded", f"number {i} of seed {seed}, {kind}: {result} for its metadata"
    assert sum(results.values()) == count
    return results


def outcome(content: bytes) -> str:
    """`decoded`, or the reason of the rejection; everything else is raised."""
    faulthandler.dump_traceback_later(HANGS_S, exit=True, file=ERRORS)
    start = time.monotonic()
    try:
        image = decode_image(content).image
        assert image.mode == "RGB"
        return "decoded"
    except ImageRejectedError as error:
        assert error.detail.isprintable()
        return error.reason
    finally:
        faulthandler.cancel_dump_traceback_later()
        assert time.monotonic() - start < SLOW_S


@contextmanager
def quiet() -> Iterator[None]:
    """What is written to standard error meanwhile, by C too, is an error."""
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            written = file.read().decode("utf-8", "replace")
    assert not written, written[:2000]


PARTS: dict[str, Callable[[int, int], Counter[str]]] = {
    "images": fuzz_images,
    "settings": fuzz_settings,
    "tables": fuzz_tables,
    "annotations": fuzz_annotations,
    "submissions": fuzz_submissions,
    "checkpoints": fuzz_checkpoints,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="mutate inputs and see what becomes of them")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--count", type=int, default=2000, help="mutations (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations (%(default)s)")
    words = parser.parse_args()
    for result, count in PARTS[words.part](words.count, words.seed).most_common():
        print(f"{count:6,} {result}")


if __name__ == "__main__":
    main()
