"""What a corpus takes of a table's columns: the same for parquet, the samples of tars, and data sets of the Hub.

Settings that name a column are checked when the source is opened. What surprises: an id that is null, NaN or empty is
none, so that two rows of unknown id are not taken for one image called "None".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.corpus.captions import NO_CAPTION, Captions, caption_columns, fill_template, read_captions
from megapairs_hf.corpus.sources.base import RawRow, has_captions, missing_column, no_id
from megapairs_hf.corpus.sources.cells import KEY, URL, cell_id, own_id, read_cell
from megapairs_hf.corpus.sources.meta import meta_columns, stored_row, stored_type

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from megapairs_hf.corpus.config import CorpusConfig

TEXT = "txt"


class Columns:
    """The columns of a table by their uses.

    Args:
        config: the settings.
        kinds: the table's columns and their types.
        images: those of which each row has its image in one.
        labels: the names of the classes of columns that hold numbers for them.
        captioned: whether captions stand in no column of their own; None where that cannot be.

    Attributes:
        meta: the type of the extra columns; None where none is kept.
        captioned: whether the table has captions at all.

    Raises:
        CorpusError: a column that the settings name is not there, or captions seem to have another name.
    """

    def __init__(
        self,
        config: CorpusConfig,
        kinds: Mapping[str, pa.DataType],
        images: Sequence[str],
        labels: Mapping[str, Any] | None = None,
        captioned: bool = False,
    ) -> None:
        self.config, self.images, self.labels = config, tuple(images), dict(labels or {})
        self.known = tuple(kinds)
        self._check()
        self.captioned = has_captions(config, self.known, str(config.path), captioned)
        self.captions = caption_columns(config, self.known)
        self.meta = self._meta(dict(kinds))

    def _check(self) -> None:
        named = [(name, "caption_template") for name in self.config.template_columns()]
        named += [(name, "meta_columns") for name in self.config.meta_columns or ()]
        named += [(self.config.id_column, "id_column")] if self.config.id_column else []
        for name, setting in named:
            if name not in self.known:
                raise missing_column(name, setting, self.known)

    def _meta(self, kinds: dict[str, pa.DataType]) -> pa.StructType | None:
        kinds |= {name: pa.string() for name in self.labels if name in kinds}
        captions = (*self.config.caption_columns(), *self.captions) if self.config.caption_template is None else ()
        # a tar's path is no fact about its images, and the key is in their ids
        sample = (KEY, URL, TEXT) if KEY in kinds else ()
        used = (*self.images, *captions, self.config.id_column, *sample)
        names = meta_columns(kinds, used, self.config.meta_columns)
        return pa.struct([(name, stored_type(kinds[name])) for name in names]) if names else None

    @property
    def used(self) -> list[str]:
        """All columns but those of images that a corpus takes something of."""
        meta = [field.name for field in self.meta or ()]
        names = [*self.captions, *self.config.template_columns(), *meta, self.config.id_column, KEY, URL]
        return [name for name in dict.fromkeys(names) if name in self.known]

    def named(self, name: str, value: Any) -> Any:
        """The name of a class label instead of its number."""
        if name not in self.labels or not isinstance(value, int):
            return value
        # -1 stands for an unknown label
        names = self.labels[name]
        return names[value] if 0 <= value < len(names) else None

    def row_captions(self, row: Mapping[str, Any]) -> Captions:
        """All captions of a row; of a sample of a tar its text where the default column is not there."""
        encoding = self.config.caption_encoding
        if self.config.caption_template is not None:
            return fill_template(self.config.caption_template, self.config.template_columns(), row)
        # samples differ in the fields of their JSON
        columns = caption_columns(self.config, row) if KEY in self.known else self.captions
        captions = read_captions([row.get(name) for name in columns], encoding)
        if captions.texts or not self.reads_text:
            return captions
        return read_captions([row.get(TEXT)], encoding) if row.get(TEXT) is not None else captions

    @property
    def reads_text(self) -> bool:
        """Whether the text of a tar's sample is its caption where no column is: for the default column alone."""
        default = type(self.config).caption_column
        return KEY in self.known and self.config.caption_template is None and self.config.caption_column == default

    def raw(
        self,
        row: Mapping[str, Any],
        number: int,
        root: Path | None,
        roots: Sequence[Path],
        reference: str | None = None,
    ) -> RawRow:
        """A row as the stage takes it.

        Args:
            row: its values by column.
            number: of the row in its source.
            root: the folder that ids and paths are relative to.
            roots: the folders from which files that cells name are read.
            reference: where its image is below the source.
        """
        row = {name: self.named(name, value) for name, value in row.items()} if self.labels else row
        cell = next((row[name] for name in self.images if row.get(name) is not None), None)
        content, problem = read_cell(cell, root, roots)
        key = cell_id(cell, root, row.get(KEY), row.get(URL))
        if self.config.id_column:
            key = own_id(row.get(self.config.id_column))
            problem = problem or (None if key else no_id(self.config.id_column))
        captions = self.row_captions(row)
        # whether a row may be without a caption, the stage knows
        if captions.problem is not None and captions.problem[0] != NO_CAPTION:
            problem = problem or captions.problem
        return RawRow(key, content, captions.texts, stored_row(row, self.meta), problem, reference, number)
