"""Rows from tables in the form of MMEB's training sets: texts, images or both on either side.

Columns: `qry`, `qry_image_path`, `pos_text`, `pos_image_path`, `neg_text`, `neg_image_path`. What surprises: rows of
different kinds (image to text, text to image, …) become pools of their own, so that all rows of a batch are of one
kind and a model cannot recognize a negative by its kind alone.
"""

from __future__ import annotations

import random
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.artifacts.as_dataset import check_card
from megapairs_hf.artifacts.fingerprints import model_path, sha256_of
from megapairs_hf.core.errors import ArtifactError, TrainingError
from megapairs_hf.core.inputs import Input
from megapairs_hf.core.literals import list_of_texts, looks_like_list
from megapairs_hf.core.progress import note
from megapairs_hf.training.data.dataset import Example
from megapairs_hf.training.data.sampler import permutation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.training.config import SourceConfig, TrainConfig
    from megapairs_hf.training.data.dataset import TrainDataset

COLUMNS = ("qry", "qry_image_path", "pos_text", "pos_image_path", "neg_text", "neg_image_path")
SIDES = (("qry", "qry_image_path"), ("pos_text", "pos_image_path"), ("neg_text", "neg_image_path"))
MARK = "<|image_1|>"
FILES = {".parquet": "parquet", ".jsonl": "json", ".json": "json"}


def read_side(row: dict[str, Any], text: str, image: str) -> list[Input]:
    """The inputs of one side of a row; a cell may be a value, a list of them, or the text of such a list.

    Raises:
        TrainingError: an image is named by what looks like a list and is none.
    """
    texts, images = (_cells(row.get(name), name) for name in (text, image))
    inputs = []
    for i in range(max(len(texts), len(images))):
        words = (texts[i] if i < len(texts) else None) or ""
        shown = (images[i] if i < len(images) else None) or None
        cleaned = words.replace(MARK, "").strip() or None
        if cleaned is not None or shown is not None:
            inputs.append(Input(cleaned, shown))
    return inputs


def _cells(value: Any, name: str) -> list[Any]:
    """The values of a cell; a query has one text, so brackets around it are its own."""
    if isinstance(value, list):
        return value
    listed = list_of_texts(value) if looks_like_list(value) and name != "qry" else None
    if listed is None and looks_like_list(value) and name.endswith("image_path"):
        raise TrainingError(f"`{name}` is {value[:100]!r}, no list that can be read; write a list of paths")
    return [value] if listed is None else listed


def positives_of(row: dict[str, Any]) -> tuple[list[Input], list[Input]]:
    """The query of a row, if it has one, and its positives; the query itself is none."""
    queries = read_side(row, "qry", "qry_image_path")
    positives = dict.fromkeys(read_side(row, "pos_text", "pos_image_path"))
    return queries, [item for item in positives if item not in queries]


def example_of(row: dict[str, Any], name: str, config: TrainConfig, rng: random.Random) -> Example:
    """A row with one positive and its negatives sampled."""
    queries, positives = positives_of(row)
    # all rows of a batch are of one kind
    usable = [item for item in positives if item.kind == positives[0].kind]
    positive = rng.choice(usable) if len(usable) > 1 else usable[0]
    negatives = dict.fromkeys(read_side(row, "neg_text", "neg_image_path"))
    others = [item for item in negatives if item not in positives]
    sampled = rng.sample(others, min(config.negatives, len(others)))
    answers = tuple(item for item in positives if item != positive)
    return Example(name, queries[0], (positive, *sampled), (queries[0],), answers)


class TablePool:
    """Rows of one kind of a table.

    Args:
        name: of the table, for messages.
        table: a `datasets.Dataset`.
        chosen: which of its rows.
        images: folder of the images.
        config: the settings.
    """

    def __init__(self, name: str, table: Any, chosen: Sequence[int], images: Path, config: TrainConfig) -> None:
        # `qry` carries its own instruction
        self.prompted = False
        self.name, self.table, self.images, self.config = name, table.select(chosen), images, config
        self.rows = len(chosen)

    def indices(self, batch: int, size: int) -> list[int]:
        """Whole batches of each epoch's own order."""
        epoch, part = divmod(batch, self.rows // size)
        order = permutation(self.rows, self.config.seed, epoch)
        return [int(row) for row in order[part * size : (part + 1) * size]]

    def examples(self, indices: Sequence[int], step: int) -> list[Example]:
        """These rows with the negatives of this step."""
        columns = self.table[list(indices)]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [
            example_of(row, f"{self.name}[{index}]", self.config, random.Random(f"{self.config.seed}/{step}/{index}"))
            for index, row in zip(indices, rows, strict=True)
        ]

    def inputs(self, indices: Sequence[int]) -> list[Input]:
        """Every input that these rows may be sampled to."""
        columns = self.table[list(indices)]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [item for row in rows for names in SIDES for item in read_side(row, *names)]

    def files(self, names: Sequence[str]) -> dict[str, bytes]:
        """The files of images by their paths."""
        return {name: read_image(self.images, name) for name in names}

    def clusters(self, names: Sequence[str]) -> list[str]:
        """The paths; nothing is known of near-duplicates."""
        return list(names)

    def __getstate__(self) -> dict[str, Any]:
        # workers only read images
        return {"name": self.name, "images": self.images}


def read_image(root: Path, name: str) -> bytes:
    """The file of an image below the root.

    Raises:
        ArtifactError: it lies outside, or is not there.
    """
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise ArtifactError(f"the image {name} lies outside {root}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"the image {name} is not in {root}; correct `images`") from error


def open_source(source: SourceConfig, config: TrainConfig, work: str | Path) -> tuple[list[TrainDataset], list[float]]:
    """The pools of one further data set, and the weight of each.

    Args:
        source: where it is.
        config: the settings of the run.
        work: what `./…` is relative to.

    Raises:
        ArtifactError: it cannot be opened.
        TrainingError: it has other columns, or a row without query or positive.
    """
    import datasets

    path = str(Path(work) / source.path[2:]) if source.path.startswith("./") else source.path
    images = Path(model_path(source.images, work))
    reader, options = _reader(Path(path), source)
    check_card(reader)
    try:
        table = datasets.load_dataset(reader, **options)
    except Exception as error:  # datasets raises whatever its reader or connection raises
        message = " ".join(str(error).split())[:300]
        raise ArtifactError(f"cannot open the source {path}: {message}") from error
    known = [name for name in COLUMNS if name in (table.column_names or ())]
    if "qry" not in known or not {"pos_text", "pos_image_path"} & set(known):
        raise TrainingError(f"{path} has no columns qry and pos_text or pos_image_path; rename its columns")
    table = table.select_columns(known)
    name = Path(path).stem
    if source.rows is not None and source.rows < len(table):
        table = table.select(np.sort(np.random.default_rng([config.seed, 37]).permutation(len(table))[: source.rows]))
    kinds: dict[tuple[str, ...], list[int]] = {}
    left_out = 0
    for i, row in enumerate(table):
        queries, positives = positives_of(row)
        if len(queries) > 1:
            raise TrainingError(f"row {i} of {path} has several queries; write a row for each")
        if not queries or not read_side(row, "pos_text", "pos_image_path"):
            raise TrainingError(f"row {i} of {path} has an empty query or positive; take it out")
        if not positives:
            left_out += 1
            continue
        sides = (queries[0], positives[0])
        kinds.setdefault(tuple(side.kind for side in sides), []).append(i)
    if left_out:
        note(f"{path}: {left_out:,} rows are left out, since the positive is the query")
    if not kinds:
        raise TrainingError(f"{path} has no row whose positive is not the query; correct it")
    pools: list[TrainDataset] = [TablePool(name, table, chosen, images, config) for chosen in kinds.values()]
    share = (source.weight or len(table)) / sum(map(len, kinds.values()))
    return pools, [share * len(chosen) for chosen in kinds.values()]


def source_fingerprint(source: SourceConfig, work: str | Path) -> str:
    """What identifies the rows of a source: the bytes of local files, or the revision on the Hub.

    The images are not hashed: there may be a terabyte of them.

    Raises:
        ArtifactError: it cannot be found.
    """
    import datasets

    path = Path(work) / source.path[2:] if source.path.startswith("./") else Path(source.path)
    reader, options = _reader(path, source)
    if "data_files" in options:
        hashes = [f"{Path(file).name} {sha256_of(file)}" for file in options["data_files"]]
        return sha256("\n".join(hashes).encode()).hexdigest()[:16]
    check_card(reader)
    try:
        # the commit that the revision stands for today
        commit = datasets.load_dataset_builder(reader, source.name, revision=source.revision).hash
    except Exception as error:  # datasets raises whatever its connection raises
        message = " ".join(str(error).split())[:300]
        raise ArtifactError(f"cannot open the source {path}: {message}") from error
    return f"{source.path}@{commit}"


def _reader(path: Path, source: SourceConfig) -> tuple[str, dict[str, Any]]:
    """The loader's name for `load_dataset`, and its options."""
    files = sorted(p for p in path.rglob("*") if p.suffix in FILES) if path.is_dir() else [path]
    if path.exists() and files and files[0].suffix in FILES:
        kind = files[0].suffix
        return FILES[kind], {"data_files": [str(file) for file in files if file.suffix == kind], "split": "train"}
    return source.path, {"name": source.name, "split": source.split, "revision": source.revision}
