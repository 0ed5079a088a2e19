"""What steps that look at all rows at once (`mine`, `split_pairs`, `hard_negatives`) may be given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import ConfigError

if TYPE_CHECKING:
    from datasets import Dataset


def check_dataset(source: Any, step: str) -> Dataset:
    """A `Dataset` without a format, which can be read more than once and in any order.

    Args:
        source: what was given.
        step: the function, for errors.

    Raises:
        ConfigError: it is something else; the message says how to make a `Dataset` of it.
    """
    import datasets

    if isinstance(source, datasets.Dataset):
        return source if source.format["type"] is None else source.with_format(None)
    if isinstance(source, datasets.DatasetDict):
        raise ConfigError(f"{step} takes one split of a data set; take one of {', '.join(map(repr, source))}")
    if isinstance(source, datasets.IterableDataset):
        raise ConfigError(
            f"{step} looks at all rows, so it cannot take a stream; write it with `to_parquet` and load that"
        )
    raise ConfigError(f"{step} takes a datasets.Dataset, not {type(source).__name__}; load one with `load_dataset`")
