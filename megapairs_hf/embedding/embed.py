"""Row functions that add embeddings: `EmbedImages` and `EmbedTexts` (paper, section 3.1).

    ds = add_columns(ds, EmbedImages("facebook/dinov2-large", column="dino_image"), batch_size=64)

A row has the same embedding in any batch, in any order, on the command line and in a notebook. What surprises: the
length of the embeddings belongs to the type of the column, so the model is tried once before the rows are looked at,
on the CPU and in one thread, because processes that are forked later would hang or lack their GPU otherwise.
"""

from __future__ import annotations

import contextlib
import os
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Literal

from megapairs_hf.core.config import build_config
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.distributed import device_of_rank
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.row_function import ERROR, RowFunction
from megapairs_hf.core.schema import CAPTION, CAPTIONS, IMAGE, IMAGE_ID, META
from megapairs_hf.embedding.config import Library, ModelSettings
from megapairs_hf.embedding.device_defaults import decoders, device_dtype
from megapairs_hf.embedding.encoders import load_encoder
from megapairs_hf.embedding.loader import Files, ImagePreprocessor, pins, prepared
from megapairs_hf.embedding.sources import encoder_fingerprint, encoder_path, pinned
from megapairs_hf.embedding.stored import StoredEmbeddings
from megapairs_hf.embedding.unit_embeddings import Embedded, dimension_of, embed_images, embed_texts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from datasets import Features

    from megapairs_hf.core.row_function import Rows
    from megapairs_hf.embedding.encoder import Encoder

Pooling = Literal["cls", "mean", "pooler"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


# an embedding there would take an id or a text away
RESERVED = frozenset({IMAGE_ID, IMAGE, CAPTION, CAPTIONS, META, ERROR})


def _settings(
    where: str, column: str, model: str, what: str, encoder: Mapping[str, Any], others: Mapping[str, Any]
) -> ModelSettings:
    """The settings, their types checked as those of a recipe are."""
    values = {"name": column, "model": os.fspath(model), "input": what, **encoder}
    return build_config(ModelSettings, {"model": values, **others}, where)


def _dtype(dtype: Dtype, device: str | None) -> str:
    """The number format, which is a part of what is hashed; the rows may be embedded in other processes."""
    return device_dtype(device) if dtype == "auto" else dtype


class _Embed(RowFunction):
    """What both have in common: the model, and the columns that are added."""

    def __init__(self, column: str, source: str, settings: ModelSettings, device: str | None) -> None:
        if column in RESERVED or column == source:
            raise ConfigError(f"`column` {column!r} would replace the {column!r} of the rows; take another name")
        self.column, self.device = column, device
        self.path = encoder_path(settings.model, ".")
        self.settings = pinned(settings, self.path)
        config = self.settings.model
        # what decides the result besides the settings: weights that are trained again have another fingerprint
        self.fingerprint = encoder_fingerprint(config, self.path)
        self.reset()

    def reset(self) -> None:
        """Forget the loaded model."""
        self._encoder: Encoder | None = None
        self._stored: StoredEmbeddings | None = None
        self._where = ""
        self._dimension: int | None = None

    @property
    def features(self) -> Features:
        """`column`, a float16 list of fixed length, and `error`."""
        from datasets import Features, List, Value

        if self._dimension is None and self.settings.model.library == "file":
            self._dimension = self.stored().dimension
        if self._dimension is None:
            self._dimension = dimension_of(self._encoder) if self._encoder is not None else self._try_out()
        return Features({self.column: List(Value("float16"), length=self._dimension), ERROR: Value("string")})

    def compute(self, rows: Rows, rank: int | None) -> dict[str, Any]:
        """Embeddings [B, D] float16 of length one, zeros where there is an error."""
        if self.settings.model.library == "file":
            embeddings, errors = self.stored().embed_ids(rows.values(IMAGE_ID))
        else:
            embeddings, errors = self.embed(rows, self.encoder(self.device or device_of_rank(rank)))
        self._dimension = embeddings.shape[1]
        return {self.column: embeddings, ERROR: errors}

    @abstractmethod
    def embed(self, rows: Rows, encoder: Encoder) -> Embedded:
        """Embeddings and errors of the rows."""

    def encoder(self, device: str) -> Encoder:
        """The model, loaded when it is first needed.

        Raises:
            ModelError: it cannot be loaded.
        """
        if self._encoder is None or self._where != device:
            require("models", type(self).__name__)
            self._encoder, self._where = load_encoder(self.settings, self.path, device), device
        return self._encoder

    def stored(self) -> StoredEmbeddings:
        """The embeddings in files, of `library: file`, opened when they are first needed."""
        if self._stored is None:
            self._stored = StoredEmbeddings(self.settings.model, self.path)
        return self._stored

    def _try_out(self) -> int:
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return dimension_of(self.encoder("cpu"))
        finally:
            torch.set_num_threads(threads)


class EmbedImages(_Embed):
    """Unit embeddings of images under one encoder.

    Reads `image_column`; adds `column`, a float16 list of fixed length, and `error`: an image that cannot be decoded
    has the reason of `CheckImages`, one whose embedding is of no use `zero_embedding` or `not_finite`; their
    embeddings are zeros. An image file that was replaced since is read again by `add_columns`; a plain `map` needs
    `load_from_cache_file=False` for that.

    Args:
        model: Hub id, folder, or an open_clip architecture.
        column: to add; letters, digits and underscores, and not that of an image's id, caption or other facts.
        image_column: the images: `datasets.Image`, files' bytes, paths, or Pillow images.
        library: `transformers` (CLIP, SigLIP, DINOv2, …), `open_clip` or `timm` (extra `eva`),
            `sentence_transformers`, `onnx`, `python` (`model` is `module:callable`), or `file` (embeddings that are
            there already, looked up by the column `image_id`); docs/encoders.md.
        pretrained: open_clip's or timm's name of the weights, or a file of weights; of `onnx` the graph in the folder.
        revision: on the Hub; it is resolved to its commit.
        pooling: for a vision model without `get_image_features`: `cls`, `mean` (of the patches or of a convolutional
            network's map) or `pooler`.
        source_column: of `file` and `onnx`: the column, array or output of the embeddings; None for the only one.
        source_ids: of `file`: the column, array or file of ids.
        trust_remote_code: run the code that a model's folder or repository brings.
        dtype: number format of the forward pass; `auto` takes `bfloat16` where there is a GPU (`float16` where that
            has none), else `float32`.
        batch_size: images per forward pass, to which every batch is filled up; give `map` a multiple of it.
        draft: decode a JPEG at 1/2, 1/4 or 1/8 of its size where the model's own resize leaves fewer pixels still.
        root: where images lie that the data set holds by reference, as `path` relative to it; None takes a path as
            it is.
        threads: decoding threads per process; None takes two on a CPU, and for a GPU all CPU cores (at most 16).
        device: `cuda:1`, `cpu`, …; None takes that of the process' rank.

    Raises:
        ModelError: there is no such folder.
        ConfigError: a setting is out of its range, or `column` names one that is something else.
    """

    def __init__(
        self,
        model: str,
        column: str = "embedding",
        image_column: str = "image",
        *,
        library: Library = "transformers",
        pretrained: str | None = None,
        revision: str | None = None,
        pooling: Pooling = "cls",
        source_column: str | None = None,
        source_ids: str | None = None,
        trust_remote_code: bool = False,
        dtype: Dtype = "auto",
        batch_size: int = 64,
        draft: bool = True,
        root: str | None = None,
        threads: int | None = None,
        device: str | None = None,
    ) -> None:
        encoder: dict[str, Any] = {
            "library": library,
            "pretrained": pretrained,
            "revision": revision,
            "pooling": pooling,
        }
        encoder |= {"source_column": source_column, "source_ids": source_ids, "trust_remote_code": trust_remote_code}
        others = {"dtype": _dtype(dtype, device), "batch_size": batch_size, "draft": draft}
        settings = _settings("EmbedImages", column, model, "image", encoder, others)
        super().__init__(column, image_column, settings, device)
        self.image_column, self.root, self.threads = image_column, root, threads

    def embed(self, rows: Rows, encoder: Encoder) -> Embedded:
        """Embeddings and errors of the rows."""
        assert encoder.transform is not None
        preparer = ImagePreprocessor({self.column: encoder.transform}, self.root, self.settings.draft, True)
        threads, _ = decoders(self.threads, 0, self._where)
        ahead = prepared(self._files(rows), preparer, threads, 0, pin=pins(self._where))
        with contextlib.closing(ahead) as batches:
            return embed_images(batches, len(rows), {self.column: encoder})[self.column]

    def _files(self, rows: Rows) -> Iterator[Files]:
        cells = rows.values(self.image_column)
        if self.root is None:
            # whoever gives a data set may name any file; a corpus may come from a stranger and has a root
            cells = [_outside_of_a_corpus(cell) for cell in cells]
        for start in range(0, len(cells), self.settings.batch_size):
            yield Files(cells[start : start + self.settings.batch_size], (self.column,))


class EmbedTexts(_Embed):
    """Unit embeddings of texts under one encoder.

    Reads `input`, a text or a list of texts, whose embeddings are averaged (`input="captions"`, as the command does);
    adds `column`, a float16 list of fixed length, and `error`: `no_caption` for an empty text, `zero_embedding` or
    `not_finite` for an embedding of no use; such embeddings are zeros.

    Args:
        model: Hub id, folder, or an open_clip architecture.
        input: the column of texts, or of lists of texts.
        column: to add; letters, digits and underscores, and not that of an image's id, caption or other facts.
        library: `transformers` (the text tower of CLIP, SigLIP, …), `open_clip` (extra `eva`),
            `sentence_transformers` (BGE and other text models), `onnx`, `python` or `file`, as for images.
        pretrained: open_clip's name of the weights, or a file of weights; of `onnx` the graph in the folder.
        revision: on the Hub; it is resolved to its commit.
        pooling: of an `onnx` graph that gives a row per token: `cls` or `mean`.
        source_column: of `file` and `onnx`: the column, array or output of the embeddings; None for the only one.
        source_ids: of `file`: the column, array or file of ids.
        trust_remote_code: run the code that a model's folder or repository brings.
        dtype: number format of the forward pass, as for images.
        batch_size: texts per forward pass, all of about one length; give `map` several times as many.
        device: `cuda:1`, `cpu`, …; None takes that of the process' rank.

    Raises:
        ModelError: there is no such folder.
        ConfigError: a setting is out of its range, or `column` names one that is something else.
    """

    def __init__(
        self,
        model: str,
        input: str = "caption",
        column: str = "embedding",
        *,
        library: Library = "transformers",
        pretrained: str | None = None,
        revision: str | None = None,
        pooling: Pooling = "cls",
        source_column: str | None = None,
        source_ids: str | None = None,
        trust_remote_code: bool = False,
        dtype: Dtype = "auto",
        batch_size: int = 64,
        device: str | None = None,
    ) -> None:
        encoder: dict[str, Any] = {
            "library": library,
            "pretrained": pretrained,
            "revision": revision,
            "pooling": pooling,
        }
        encoder |= {"source_column": source_column, "source_ids": source_ids, "trust_remote_code": trust_remote_code}
        others = {"dtype": _dtype(dtype, device), "batch_size": batch_size}
        settings = _settings("EmbedTexts", column, model, "caption", encoder, others)
        super().__init__(column, input, settings, device)
        self.input = input

    def embed(self, rows: Rows, encoder: Encoder) -> Embedded:
        """Embeddings and errors of the rows."""
        return embed_texts(rows.values(self.input), encoder, self.column)


def _outside_of_a_corpus(cell: Any) -> Any:
    """A path in place of a cell that holds no bytes."""
    return cell.get("path") if isinstance(cell, dict) and cell.get("bytes") is None else cell
