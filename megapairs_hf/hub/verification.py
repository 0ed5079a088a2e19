"""Does a prepared data set load, the way its users will load it?

The cost is bounded: it is opened as a stream, for one row of each split of each config.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megapairs_hf.core.errors import HubError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def check_loads(folder: Path, names: Iterable[str]) -> None:
    """Read one row of every split, so that a data set which does not load is never uploaded.

    Args:
        folder: the prepared folder.
        names: its files.

    Raises:
        HubError: it does not load.
    """
    from datasets import load_dataset

    try:
        for part in sorted({name.split("/", 1)[0] for name in names if name.endswith(".parquet")}):
            for split in load_dataset(str(folder), part, streaming=True).values():
                # of one row group: Arrow's threads that read further groups ahead abort a process that exits
                # meanwhile (apache/arrow#45214)
                next(iter(split.shard(split.num_shards, 0).reshard()))
    except Exception as error:  # datasets raises whatever its readers raise
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise HubError(
            f"{folder} does not load ({reason}), so nothing was uploaded; make the data set again"
        ) from error
