"""Row functions: what `datasets.map` calls with a batch of rows, and what a stage applies to its shards.

A row function is constructed with settings and called with a batch; it adds columns and never raises for a bad row.
`error` is empty for a good row and `reason: detail` for a bad one; every later function passes such a row over and
keeps its error. What surprises: no column is ever None, because a column that begins with None ends a `map` when the
first value comes; numbers are 0, texts empty, embeddings zeros.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from megapairs_hf.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from datasets import Features

ERROR = "error"


def format_error(reason: str, detail: str = "") -> str:
    """The value of `error` for a bad row: `reason: detail`."""
    return f"{reason}: {detail}" if detail else reason


def reason_of(error: str) -> str:
    """The reason in an `error`, empty for a good row."""
    return error.split(":", 1)[0]


class Rows:
    """Some rows of a batch, their values as they are stored: no image is decoded.

    Args:
        batch: what `Dataset.map`, `IterableDataset.map` or Ray Data's `map_batches` gives: columns by name.
        chosen: the rows; None for all.
    """

    def __init__(self, batch: Mapping[str, Any], chosen: Sequence[int] | None = None) -> None:
        # a batch of `Dataset.map` decodes a column when it is touched; its table does not
        self.table = getattr(batch, "pa_table", None)
        self.batch = batch
        self.names: list[str] = list(batch.keys()) if self.table is None else list(self.table.column_names)
        self.size = self._size()
        self.chosen = list(range(self.size)) if chosen is None else list(chosen)

    def _size(self) -> int:
        if self.table is not None:
            return int(self.table.num_rows)
        return len(self.batch[self.names[0]]) if self.names else 0

    def __len__(self) -> int:
        return len(self.chosen)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def values(self, name: str) -> list[Any]:
        """A column of these rows as Python values.

        Raises:
            ConfigError: there is no such column.
        """
        if name not in self.names:
            raise ConfigError(f"there is no column {name!r}; columns: {', '.join(self.names)}")
        if self.table is not None:
            column = self.table.column(name)
            values: list[Any] = (column if len(self) == self.size else column.take(self.chosen)).to_pylist()
            return values
        column = self.batch[name]
        # numpy's numbers and strings become Python's; arrays of objects hold Python's already
        plain = column.tolist() if hasattr(column, "tolist") else column
        return [plain[i] for i in self.chosen]

    def rows(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """The named columns, row by row."""
        columns = [self.values(name) for name in names]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


class RowFunction(ABC):
    """A function of a batch of rows, for `datasets.map(batched=True)` and for a stage.

    Instances hold settings; what is loaded lazily (a model, a client) is kept in attributes whose names begin with an
    underscore, which no pickle and no fingerprint holds. `VERSION` goes up when the same settings give other results,
    so that `datasets` does not take an old result from its cache.
    """

    VERSION: ClassVar[int] = 1

    @property
    @abstractmethod
    def features(self) -> Features:
        """The columns that it adds, `error` among them."""

    @abstractmethod
    def compute(self, rows: Rows, rank: int | None) -> dict[str, Any]:
        """The added columns of rows without an error, each as long as `rows`.

        Args:
            rows: at least one row.
            rank: of the process, from `with_rank=True`; None where there is one process.
        """

    def __call__(self, batch: Mapping[str, Any], indices: Any = None, rank: int | None = None) -> dict[str, Any]:
        """The added columns of every row of a batch.

        Raises:
            ConfigError: a single row is given, as by `map` without `batched=True`, or a column is missing.
        """
        if is_single(batch):
            raise ConfigError(f"{type(self).__name__} takes batches; give `map` the argument batched=True")
        # `with_rank=True` alone gives the rank as the second argument
        if rank is None and isinstance(indices, int):
            rank = indices
        rows = Rows(batch)
        before = rows.values(ERROR) if ERROR in rows else [""] * rows.size
        good = [i for i, error in enumerate(before) if not error]
        added = self.compute(Rows(batch, good), rank) if good else {}
        # also a batch without a good row has the right types: the first batch decides those of a plain `map`
        columns = {
            name: spread(added[name] if good else [], good, rows.size, blank_value(feature))
            for name, feature in self.features.items()
        }
        if rows.table is not None:
            columns = {name: typed_lists(columns[name], feature) for name, feature in self.features.items()}
        return {**columns, ERROR: [old or new for old, new in zip(before, columns[ERROR], strict=True)]}

    def one(self, **values: Any) -> dict[str, Any]:
        """The added columns of a single row: numbers as Python's own, embeddings as arrays.

        Args:
            **values: the row.

        Raises:
            ConfigError: there is none.
        """
        import numpy as np

        if not values:
            raise ConfigError(f"{type(self).__name__}: `one` needs a row; name its columns, or give what it reads")
        columns = self({name: [value] for name, value in values.items()})
        firsts = {name: column[0] for name, column in columns.items()}
        return {name: value.item() if isinstance(value, np.generic) else value for name, value in firsts.items()}

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {**state, "VERSION": self.VERSION}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: value for name, value in state.items() if name != "VERSION"})
        self.reset()

    def reset(self) -> None:  # noqa: B027
        """Set what is loaded lazily to nothing; called after unpickling."""


def is_single(batch: Mapping[str, Any]) -> bool:
    """Whether this is a row in place of a batch of rows."""
    from datasets.formatting.formatting import LazyRow

    if getattr(batch, "pa_table", None) is not None:
        return isinstance(batch, LazyRow)
    columns = (batch[name] for name in batch)
    return not all(isinstance(column, list) or hasattr(column, "tolist") for column in columns)


def spread(values: Any, good: Sequence[int], size: int, blank: Any) -> Any:
    """The values of the good rows, and a blank for every other row.

    Args:
        values: one per good row.
        good: the rows that have values.
        size: of the whole column.
        blank: the value of the others; an array [D], or [] for a number, makes an array [size, D] of its type.
    """
    import numpy as np

    if isinstance(blank, np.ndarray):
        values = np.asarray(values, blank.dtype)
        if len(values) == size:
            return values.reshape(size, *blank.shape)
        array = np.zeros((size, *blank.shape), blank.dtype)
        if len(values):
            array[list(good)] = values
        return array
    column = [blank] * size
    for i, value in zip(good, values, strict=True):
        column[i] = value
    return column


def typed_lists(values: Any, feature: Any) -> Any:
    """A column on its way to Arrow: empty lists say of what type, where they are alone or among arrays.

    Lists of structs cannot say it; where a first batch may have none, pass `features=` or use `add_columns`.
    """
    import numpy as np
    from datasets import List, Value

    depth = 0
    while isinstance(feature, List) and feature.length < 0:
        feature, depth = feature.feature, depth + 1
    plain = depth > 0 and isinstance(feature, Value)
    # beside an array of float32 an empty list would be one of float64, which Arrow does not join
    if not plain or any(len(value) and not isinstance(value, np.ndarray) for value in values):
        return values
    kind = feature.dtype
    empty = np.empty((0,) * depth, str if kind in {"string", "large_string"} else kind)
    return [value if len(value) else empty for value in values]


def blank_value(feature: Any) -> Any:
    """What a column of this type holds for a bad row: zeros of its type, an empty text, an empty list."""
    import numpy as np
    from datasets import LargeList, List, Value

    if isinstance(feature, dict):
        inner = {name: blank_value(kind) for name, kind in feature.items()}
        # inside a struct there are no columns, so a number is Python's own
        return {name: value.item() if getattr(value, "shape", None) == () else value for name, value in inner.items()}
    if isinstance(feature, List) and feature.length >= 0:
        return np.zeros(feature.length, feature.feature.dtype)
    if isinstance(feature, (List, LargeList)):
        return []
    if isinstance(feature, Value):
        if feature.dtype in {"string", "large_string"}:
            return ""
        return np.zeros((), feature.dtype)
    raise TypeError(f"a row function cannot add a column of type {feature}")
