"""A look at the first rows of a run: where nearly all fail with one exception that nobody expects, the fault is ours.

What surprises: rows that fail in ways that odd files explain are not counted. A folder of broken images is a folder of
broken images; a hundred `AttributeError`s are a library of another version, and a million more would help nobody.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from megapairs_hf.core.formatting import one_line

if TYPE_CHECKING:
    from megapairs_hf.core.errors import MegaPairsError

FIRST, MOST = 100, 0.9


class FirstRows:
    """Counts with which unexpected exceptions the first hundred rows fail.

    Args:
        unit: what the rows are, in the plural.
        error: the class of the error that stops the run.
    """

    def __init__(self, unit: str, error: type[MegaPairsError]) -> None:
        self.unit, self.error, self.seen = unit, error, 0
        self.kinds: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, failure: str = "") -> None:
        """Count a row.

        Args:
            failure: `Type: text` of the unexpected exception that it failed with; empty where it did not.

        Raises:
            MegaPairsError: of the class `error`; more than 90 of the first 100 rows failed with one type.
        """
        if self.seen >= FIRST:
            return
        self.seen += 1
        kind = failure.partition(":")[0]
        if kind:
            self.kinds[kind] += 1
            self.examples.setdefault(kind, failure)
        if self.seen == FIRST and self.kinds:
            kind, count = self.kinds.most_common(1)[0]
            if count > MOST * FIRST:
                raise self.error(
                    f"{count} of the first {FIRST} {self.unit} fail alike ({one_line(self.examples[kind])}), so the"
                    " fault is this program's or a library's and not theirs; compare the versions that `megapairs env`"
                    " shows with those of a fresh installation, or report it"
                )
