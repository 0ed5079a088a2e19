"""What an update leaves stale behind it, in one sentence."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from megapairs_hf.cli.remembered import remembered_recipe
from megapairs_hf.core.progress import note

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def naming_stale(work: str, name: str) -> Iterator[None]:
    """Say what was made of artifacts that an update replaces meanwhile.

    Args:
        work: the work folder.
        name: of the folder in it that is updated.
    """
    from megapairs_hf.artifacts.workspace import Work

    before = Work(work).fingerprints(name)
    yield
    now = Work(work)
    stale = now.made_of(before - now.fingerprints(name))
    if stale:
        embed = "`megapairs embed --update` adds what is new to the embeddings; " if name == "corpus" else ""
        recipe = remembered_recipe(work) or "RECIPE"
        note(
            f"stale now, as made of the earlier {name}: {', '.join(stale)}; {embed}`megapairs run {recipe} --update`"
            " brings all up to date, or run each of the others with --overwrite"
        )
