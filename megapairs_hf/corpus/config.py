"""Settings of the corpus stage."""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megapairs_hf.core.config import RUNTIME_ONLY, require
from megapairs_hf.corpus.synthetic.scenes import ScenesConfig
from megapairs_hf.images.decode import PIXEL_LIMIT


@dataclass(frozen=True)
class CorpusConfig:
    """Where the images come from and which are accepted.

    The paper (section 3.1) takes 20 M captioned images of Recap-DataComp-1B; the limits and defaults here are ours.

    Attributes:
        source: required: `scenes` (synthetic scenes), `dataset` (a Hub id or anything `datasets.load_dataset` reads),
            `image_folder`, `parquet` (a folder of parquet files) or `webdataset` (a folder of tars, `.tar.gz` too).
        path: Hub id, folder, file or glob; not used by `scenes`.
        name: configuration of the data set; like `split` and `revision` for source `dataset` only.
        split: split of the data set.
        revision: revision of the data set on the Hub.
        image_column: the column with the images; None takes the only one there is. Not for an image folder.
        caption_column: the column with the captions (for an image folder: of its metadata file), texts or lists of
            texts; beside `caption`, `captions` is read too, and where there is neither, `caption_0`, `caption_1`, ….
        caption_template: a caption made of columns, such as `a photo of a {label}`; for an image folder `{folder}` and
            `{stem}` are known too. Used instead of `caption_column`.
        caption_file: image folders only: a file of captions anywhere, whose rows name the images: COCO's
            `captions_*.json`, Karpathy's `dataset_*.json`, a JSON, CSV or parquet file with a row per caption; None
            reads the tables in the folder, and such a `captions_*.json` or `dataset_*.json` in it or beside it.
        caption_encoding: encoding of captions that are bytes: side-car texts, members of tars, binary columns; None
            reads UTF-8, and UTF-16 with a byte order mark, and rejects any other.
        id_column: the column with unique ids; None takes what names the image wherever its row is: its path below
            `path`, `shard/__key__` of a WebDataset, or else the first 16 hex digits of the hash of its pixels.
        captions: `required` rejects rows without a caption, `optional` keeps them with an empty one; None requires
            them where the source has captions at all.
        meta_columns: extra columns, or fields of the JSON of tars, to keep under `meta`; None keeps every column but
            images, files and embeddings.
        group_column: column whose values are kept together when part of the corpus is held out; `row` for each row
            by itself (data sets: by its id where that stands in the row, else by its number), `folder` for the images
            of a folder (image folders), `family` (synthetic scenes).
        held_out: share of the groups that `part: held_out` selects and `part: train` leaves.
        part: `all`, `train` or `held_out`.
        limit: use only the first so many rows.
        max_pixels: more pixels than this and the image is rejected before it is decoded.
        min_side: images with a shorter side are rejected.
        max_side: images with a longer side are reduced; None keeps all pixels.
        images: `embedded` copies the images' files into the corpus; `by_reference` keeps only where they are (an
            `image_folder`, `parquet` or `webdataset` source on a disk that stays), so that nothing is copied.
        follow_links: read what links lead to that leave the folder; links inside it, and those of a Hub cache to the
            files of the same repository, are followed anyway.
        shard_rows: source rows a shard.
        threads: decoding threads of a process.
        scenes: settings of the synthetic scenes.
    """

    source: Literal["scenes", "dataset", "image_folder", "parquet", "webdataset"]
    path: str | None = None
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    image_column: str | None = None
    caption_column: str = "caption"
    caption_template: str | None = None
    caption_file: str | None = None
    caption_encoding: str | None = None
    id_column: str | None = None
    captions: Literal["required", "optional"] | None = None
    meta_columns: tuple[str, ...] | None = None
    group_column: str | None = None
    held_out: float = 0.0
    part: Literal["all", "train", "held_out"] = "all"
    limit: int | None = None
    max_pixels: int = 100_000_000
    min_side: int = 16
    max_side: int | None = None
    images: Literal["embedded", "by_reference"] = "embedded"
    follow_links: bool = False
    shard_rows: int = 1000
    threads: int = field(default=2, metadata=RUNTIME_ONLY)
    scenes: ScenesConfig = field(default_factory=ScenesConfig)

    def __post_init__(self) -> None:
        if self.path is not None and "://" not in self.path:
            # `photos/` and `./photos` are `photos`, also for what was made of them
            plain = self.path.rstrip("/") if self.source == "dataset" else str(Path(self.path))
            object.__setattr__(self, "path", plain if self.path.strip("/") else self.path)
        require(self.source == "scenes" or bool(self.path), "path", self.path, f"given for source {self.source!r}")
        require(0 <= self.held_out < 1, "held_out", self.held_out, "a share from 0 up to, not including, 1")
        if self.part != "all":
            require(bool(self.group_column), "group_column", self.group_column, f"given for part {self.part!r}")
            require(self.held_out > 0, "held_out", self.held_out, f"above 0 for part {self.part!r}")
        require(self.limit is None or self.limit > 0, "limit", self.limit, "a positive number of rows, or left out")
        require(0 < self.max_pixels <= PIXEL_LIMIT, "max_pixels", self.max_pixels, f"1 to {PIXEL_LIMIT:,}")
        require(self.min_side >= 1, "min_side", self.min_side, "at least 1 pixel")
        require(
            self.max_side is None or self.max_side >= self.min_side,
            "max_side",
            self.max_side,
            "at least min_side, or left out",
        )
        if self.caption_file is not None:
            folder = self.source == "image_folder" and self.caption_template is None
            require(folder, "caption_file", self.caption_file, "left out but for an image folder without a template")
        if self.caption_encoding is not None:
            known = is_text_encoding(self.caption_encoding)
            require(known, "caption_encoding", self.caption_encoding, "an encoding that Python knows, such as cp1252")
        if self.images == "by_reference":
            on_disk = {"image_folder", "parquet", "webdataset"}
            require(self.source in on_disk, "images", self.images, f"embedded for source {self.source!r}")
            require(self.max_side is None, "max_side", self.max_side, "left out for images by reference")
            # a reader of the corpus, who may be another, follows no link out of the folder
            require(not self.follow_links, "follow_links", self.follow_links, "left out for images by reference")
        require(self.shard_rows > 0, "shard_rows", self.shard_rows, "a positive number of rows")
        require(self.threads > 0, "threads", self.threads, "a positive number of threads")
        if self.caption_template is not None:
            require(
                bool(self.template_columns()), "caption_template", self.caption_template, "a text with {column} slots"
            )

    def caption_columns(self) -> tuple[str, ...]:
        """The columns that hold captions, where there is no template."""
        # the schema brings pyarrow, which no help text needs
        from megapairs_hf.core.schema import CAPTION, CAPTIONS

        return (CAPTION, CAPTIONS) if self.caption_column == CAPTION else (self.caption_column,)

    def template_columns(self) -> list[str]:
        """The columns that the caption template names."""
        parsed = string.Formatter().parse(self.caption_template or "")
        return [name for _, name, _, _ in parsed if name]


def is_text_encoding(name: str) -> bool:
    """Whether Python has a codec of texts by this name."""
    try:
        b"    ".decode(name)
    except UnicodeError:
        return True
    # an unknown name, or a codec of bytes, such as base64
    except (LookupError, ValueError):
        return False
    return True
