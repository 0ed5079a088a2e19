"""WebDataset tars as a source, read by member and copied nowhere.

Each sample stands for itself: it may lack members that others have, and a member that cannot be read costs its sample
alone. What surprises: fields of the members `json` are columns too, but all of them are read beforehand only where a
setting names one of them; else `meta` has the JSON as a text.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.core.errors import ImageRejectedError
from megapairs_hf.core.image_paths import safe_name
from megapairs_hf.corpus.captions import caption_columns, decode_text, wrong_encoding
from megapairs_hf.corpus.sources.base import RawRow, missing_column, short_hash
from megapairs_hf.corpus.sources.cells import KEY, URL, WEBDATASET_IMAGES, cell_id, choose_image_columns
from megapairs_hf.corpus.sources.columns import TEXT, Columns
from megapairs_hf.corpus.sources.files import (
    UNREADABLE,
    DataFile,
    RowIndex,
    data_files,
    file_states,
    listed,
    none_readable,
    source_root,
    why,
    why_closed,
)
from megapairs_hf.corpus.sources.meta import kind_of, type_of
from megapairs_hf.corpus.sources.tars import Sample, TarReader, contents, is_zipped
from megapairs_hf.images.locate import MARK, tar_reference

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from megapairs_hf.corpus.config import CorpusConfig
    from megapairs_hf.corpus.file_list import FileList

JSON = ("json", "jsn")
# as WebDataset decodes them
TEXTS = (TEXT, "text", "transcript")
NUMBERS = ("cls", "cls2", "class", "count", "index", "inx")


class TarSource:
    """A folder of tars, a tar, or tars that a pattern names.

    Raises:
        CorpusError: no tar can be read, or a column is missing.
    """

    def __init__(self, config: CorpusConfig) -> None:
        self.config = config
        paths = data_files(config)
        self.root = source_root(config)
        self.reader = TarReader()
        suffixes: dict[str, None] = {}
        self.tables = [_open(path, name, why_closed(path, config), suffixes) for path, name in paths]
        if all(file.problem is not None and not file.rows for file in self.tables):
            raise none_readable(config, self.tables)
        self.index = RowIndex(self.tables)
        self.members = tuple(suffixes)
        self.fields = self._named_fields()
        kinds = {KEY: pa.string(), URL: pa.string()} | {name: member_type(name) for name in self.members}
        images = self._images(list(kinds))
        kinds |= {name: kind for name, kind in self.fields.items() if name not in kinds}
        self.columns = Columns(config, kinds, images, captioned=is_default(config) and TEXT in self.members)
        self.captioned, self.meta = self.columns.captioned, self.columns.meta
        if config.meta_columns is None and self.meta is not None:
            # the JSON has all of them
            columns = [field for field in self.meta if field.name in self.members]
            self.columns.meta = self.meta = pa.struct(columns) if columns else None
        self.fingerprint = short_hash("webdataset", file_states(paths))
        self.origin: Sequence[int] = range(self.index.rows)
        self.rows = len(self.origin)

    def _images(self, known: list[str]) -> list[str]:
        if self.config.image_column is not None:
            if self.config.image_column not in self.members:
                raise missing_column(self.config.image_column, "image_column", self.members)
            return [self.config.image_column]
        return choose_image_columns([n for n in WEBDATASET_IMAGES if n in self.members], known, str(self.config.path))

    def _named_fields(self) -> dict[str, pa.DataType]:
        """The fields of the JSON that settings may mean, with the types of all values of those that `meta` keeps."""
        config = self.config
        if not set(JSON) & set(self.members):
            return {}
        named = {*config.template_columns(), *(config.meta_columns or ()), config.id_column, config.group_column}
        named -= {None, "row", KEY, URL, *self.members}
        typed = named & set(config.meta_columns or ())
        fields: dict[str, set[str]] = {}
        for sample in self._samples():
            # that there are captions is known by the first; types only when all values have been seen
            if not typed and named <= set(fields) and self._has_captions(fields):
                break
            for name, value in self._fields(*sample).items():
                kinds = fields.setdefault(name, set())
                if value is not None and name in typed:
                    kinds.add(kind_of(value))
        return {name: type_of(kinds) for name, kinds in fields.items()}

    def _has_captions(self, fields: Iterable[str]) -> bool:
        named = self.config.caption_template is not None or caption_columns(self.config, [*self.members, *fields])
        return bool(named) or (is_default(self.config) and TEXT in self.members)

    def _samples(self) -> Iterator[tuple[DataFile, Sample]]:
        for file in self.tables:
            if file.rows:
                for sample in contents(file.path).samples:
                    yield file, sample

    def _fields(self, file: DataFile, sample: Sample) -> dict[str, Any]:
        """The fields of a sample's JSON; none where it cannot be read, which is told when its row is."""
        try:
            return next((v for n in JSON if isinstance(v := self._member(file, sample, n), dict)), {})
        except ImageRejectedError:
            return {}

    def _member(self, file: DataFile, sample: Sample, name: str) -> Any:
        """A member's value as its suffix has it; None where the sample has no such member.

        Raises:
            ImageRejectedError: it cannot be read.
        """
        member = sample.members.get(name)
        if member is None:
            return None
        content = self.reader.read(file.path, file.shown, member)
        kind = member_type(name)
        if kind == pa.binary() and name not in caption_columns(self.config, self.members):
            return content
        place = f"{file.shown}: {safe_name(member.name)}"
        encoding = None if name in JSON else self.config.caption_encoding
        text = decode_text(content, encoding)
        if text is None:
            raise ImageRejectedError(*wrong_encoding(place, encoding))
        try:
            return json.loads(text) if name in JSON else int(text) if kind == pa.int64() else text
        except (ValueError, RecursionError) as error:
            what = "valid JSON" if name in JSON else "a whole number"
            raise ImageRejectedError(UNREADABLE, f"{place} is not {what}: {why(error)}") from error

    def read(self, start: int, stop: int) -> Iterator[RawRow]:
        """Samples of the tars."""
        for number in self.origin[start:stop]:
            at, row = self.index.find(number)
            file = self.tables[at]
            if row == file.rows:
                yield file.lost(number)
            else:
                yield self._read(file, row, number)

    def _read(self, file: DataFile, row: int, number: int) -> RawRow:
        inside = contents(file.path)
        sample = inside.samples[row]
        values: dict[str, Any] = {KEY: safe_name(sample.key), URL: file.path}
        image = next((name for name in self.columns.images if name in sample.members), None)
        try:
            for name in self.columns.used:
                if name in sample.members:
                    values[name] = self._member(file, sample, name)
            values = self._with_fields(file, sample, values)
            if self.columns.reads_text and not self.columns.row_captions(values).texts:
                values[TEXT] = self._member(file, sample, TEXT)
            if image is None:
                there = ", ".join(map(safe_name, sample.members))
                raise ImageRejectedError("no_image", f"{file.shown}: the sample has only {there}")
            member = sample.members[image]
            values[image] = self.reader.read(file.path, file.shown, member)
        except ImageRejectedError as error:
            key = cell_id(None, self.root, values[KEY], file.path)
            return RawRow(key, None, (), problem=(error.reason, error.detail), row=number)
        plain = safe_name(member.name) == member.name and MARK not in member.name and file.referable
        named = plain and member.name not in inside.repeated and not is_zipped(file.path)
        reference = tar_reference(file.name, member.name) if named else None
        return self.columns.raw(values, number, self.root, (self.root,), reference)

    def _with_fields(self, file: DataFile, sample: Sample, values: dict[str, Any]) -> dict[str, Any]:
        """The values with the fields of the JSON that a setting names; no field hides a member."""
        inside: dict[str, Any] = {}
        for name in JSON:
            value = values[name] if name in values else self._member(file, sample, name)
            inside |= value if isinstance(value, dict) else {}
        names = {*self.columns.used, *caption_columns(self.config, inside)}
        return {name: value for name, value in inside.items() if name in names} | values

    def groups(self, column: str) -> list[str]:
        """The value of a member or of a field of the JSON for every sample; `row` stands for its id."""
        if column == "row" and self.config.id_column:
            column = self.config.id_column
        if column not in {"row", KEY, URL, *self.members, *self.fields}:
            raise missing_column(column, "group_column", [*self.members, *self.fields])
        values = []
        for number in self.origin:
            at, row = self.index.find(number)
            file = self.tables[at]
            values.append(
                file.shown if row == file.rows else self._group(file, contents(file.path).samples[row], column)
            )
        return values

    def _group(self, file: DataFile, sample: Sample, column: str) -> str:
        key = safe_name(sample.key)
        if column in {"row", KEY, URL}:
            whole = str(cell_id(None, self.root, key, file.path))
            return {"row": whole, KEY: key, URL: file.path}[column]
        try:
            member = self._member(file, sample, column)
        except ImageRejectedError:
            member = None
        return str(self._fields(file, sample).get(column) if member is None else member)

    def files(self) -> FileList:
        """The tars."""
        return listed(self.config, self.tables)

    def items(self) -> pa.Table:
        """What each row is: a file, and the number of the row in it."""
        return self.index.items(self.tables, self.origin)

    def select(self, indices: Sequence[int]) -> TarSource:
        """Only these samples."""
        part = TarSource.__new__(TarSource)
        part.__dict__.update(self.__dict__)
        part.origin = [self.origin[i] for i in indices]
        part.rows = len(part.origin)
        return part


def _open(path: str, name: str, closed: str | None, suffixes: dict[str, None]) -> DataFile:
    """A tar with the number of its samples; the suffixes of their members are added to those of all."""
    if closed is not None:
        return DataFile(path, name, 0, closed)
    inside = contents(path)
    for sample in inside.samples:
        suffixes.update(dict.fromkeys(sample.members))
    return DataFile(path, name, len(inside.samples), inside.problem)


def is_default(config: CorpusConfig) -> bool:
    """Whether no column is named for captions, so that the texts of samples are read as such."""
    return config.caption_column == type(config).caption_column


def member_type(name: str) -> pa.DataType:
    """The type of a member by its suffix; bytes where the suffix tells nothing."""
    if name in TEXTS or name in JSON:
        return pa.string()
    return pa.int64() if name in NUMBERS else pa.binary()
