"""Does a prepared data set load, the way its users will load it?

The cost is bounded: one row group of each split of each config is read. What surprises: the rows are not read by
`load_dataset(streaming=True)`, only the configs, files and columns are its own: its scanner reads through file objects
of Python, and a thread of Arrow that lets go of one while Python exits aborts the process (status 134,
apache/arrow#45214). Here Arrow opens the files itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
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
    from datasets import load_dataset_builder

    try:
        for part in sorted({name.split("/", 1)[0] for name in names if name.endswith(".parquet")}):
            builder = load_dataset_builder(str(folder), part)
            for files in builder.config.data_files.values():
                _read_row([str(file) for file in files], builder.info.features)
    except MemoryError:
        raise
    except Exception as error:  # datasets raises whatever its readers raise
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        full = storage.is_full(error)
        advice = "free some space and run the same command again" if full else "make the data set again"
        raise HubError(
            f"{folder} does not load ({type(error).__name__}: {reason}), so nothing was uploaded; {advice}"
        ) from error


def _read_row(files: list[str], stated: Any) -> None:
    """Read the first row of a split as `datasets` does, its images decoded.

    Args:
        files: of the split.
        stated: the features that the card states; None for those of the first file.
    """
    import pyarrow.parquet as pq
    from datasets import Features
    from datasets.table import table_cast

    features = stated or Features.from_arrow_schema(pq.read_schema(files[0]))
    for path in files:
        with pq.ParquetFile(path) as file:
            if file.num_row_groups:
                rows = table_cast(file.read_row_group(0).slice(0, 1), features.arrow_schema)
                features.decode_example(rows.to_pylist()[0])
                return
    raise ValueError(f"{files[0]} has no rows")
