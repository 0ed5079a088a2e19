"""Row functions that add embeddings: `EmbedImages` and `EmbedTexts` (paper, section 3.1).

    ds = add_columns(ds, EmbedImages("facebook/dinov2-large", column="dino_image"), batch_size=64)

A row has the same embedding in any batch, in any order, on the command line and in a notebook. What surprises: the
length of the embeddings belongs to the type of the column, so the model is tried once before the rows are looked at,
on the CPU and in one thread, because processes that are forked later would hang or lack their GPU otherwise.
"""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from megapairs_hf.artifacts.fingerprints import commit_of, model_path, weights_fingerprint
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.distributed import device_of_rank
from megapairs_hf.core.row_function import ERROR, RowFunction
from megapairs_hf.embedding.config import EncoderConfig, ModelSettings
from megapairs_hf.embedding.encoders import load_encoder
from megapairs_hf.embedding.loader import Files, ImagePreprocessor, prepared
from megapairs_hf.embedding.unit_embeddings import Embedded, dimension_of, embed_images, embed_texts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from datasets import Features

    from megapairs_hf.core.row_function import Rows
    from megapairs_hf.embedding.encoders import Encoder

Library = Literal["transformers", "open_clip", "sentence_transformers"]
Pooling = Literal["cls", "mean", "pooler"]
Precision = Literal["float32", "bfloat16", "float16"]


class _Embed(RowFunction):
    """What both have in common: the model, and the columns that are added."""

    def __init__(self, column: str, settings: ModelSettings, device: str | None) -> None:
        self.column, self.device = column, device
        self.path = model_path(settings.model.model, ".")
        self.settings = pinned(settings, self.path)
        config = self.settings.model
        # what decides the result besides the settings: weights that are trained again have another fingerprint
        self.fingerprint = weights_fingerprint(self.path, config.revision, config.pretrained)
        self.reset()

    def reset(self) -> None:
        """Forget the loaded model."""
        self._encoder: Encoder | None = None
        self._where = ""
        self._dimension: int | None = None

    @property
    def features(self) -> Features:
        """`column`, a float16 list of fixed length, and `error`."""
        from datasets import Features, List, Value

        if self._dimension is None:
            self._dimension = dimension_of(self._encoder) if self._encoder is not None else self._try_out()
        return Features({self.column: List(Value("float16"), length=self._dimension), ERROR: Value("string")})

    def compute(self, rows: Rows, rank: int | None) -> dict[str, Any]:
        """Embeddings [B, D] float16 of length one, zeros where there is an error."""
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
    embeddings are zeros.

    Args:
        model: Hub id, folder, or an open_clip architecture.
        column: to add; letters, digits and underscores.
        image_column: the images: `datasets.Image`, files' bytes, paths, or Pillow images.
        library: `transformers` (CLIP, SigLIP, DINOv2, …), `open_clip` (extra `eva`) or `sentence_transformers`.
        pretrained: open_clip's name of the weights, or a file of weights.
        revision: on the Hub; it is resolved to its commit.
        pooling: for a vision model without `get_image_features`: `cls`, `mean` (of the patches) or `pooler`.
        dtype: number format of the forward pass.
        batch_size: images per forward pass, to which every batch is filled up; give `map` a multiple of it.
        draft: decode a JPEG at 1/2, 1/4 or 1/8 of its size where the model's own resize leaves fewer pixels still.
        root: where images lie that the data set holds by reference, as `path` relative to it; None takes a path as
            it is.
        threads: decoding threads per process.
        device: `cuda:1`, `cpu`, …; None takes that of the process' rank.

    Raises:
        ModelError: there is no such folder.
        ConfigError: a setting is out of its range.
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
        dtype: Precision = "float32",
        batch_size: int = 64,
        draft: bool = True,
        root: str | None = None,
        threads: int = 2,
        device: str | None = None,
    ) -> None:
        encoder = EncoderConfig(column, model, "image", library, pretrained, revision, pooling)
        super().__init__(column, ModelSettings(encoder, dtype, batch_size, draft), device)
        self.image_column, self.root, self.threads = image_column, root, threads

    def embed(self, rows: Rows, encoder: Encoder) -> Embedded:
        """Embeddings and errors of the rows."""
        assert encoder.transform is not None
        preparer = ImagePreprocessor({self.column: encoder.transform}, self.root, self.settings.draft, True)
        with contextlib.closing(prepared(self._files(rows), preparer, self.threads, 0)) as batches:
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
        column: to add; letters, digits and underscores.
        library: `transformers` (the text tower of CLIP, SigLIP, …), `open_clip` (extra `eva`) or
            `sentence_transformers` (BGE and other text models).
        pretrained: open_clip's name of the weights, or a file of weights.
        revision: on the Hub; it is resolved to its commit.
        dtype: number format of the forward pass.
        batch_size: texts per forward pass, all of about one length; give `map` several times as many.
        device: `cuda:1`, `cpu`, …; None takes that of the process' rank.

    Raises:
        ModelError: there is no such folder.
        ConfigError: a setting is out of its range.
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
        dtype: Precision = "float32",
        batch_size: int = 64,
        device: str | None = None,
    ) -> None:
        encoder = EncoderConfig(column, model, "caption", library, pretrained, revision)
        super().__init__(column, ModelSettings(encoder, dtype, batch_size), device)
        self.input = input

    def embed(self, rows: Rows, encoder: Encoder) -> Embedded:
        """Embeddings and errors of the rows."""
        return embed_texts(rows.values(self.input), encoder, self.column)


def pinned(settings: ModelSettings, path: str) -> ModelSettings:
    """The settings with the model's revision on the Hub resolved to its commit, so that what is hashed is loaded."""
    if settings.model.library == "open_clip":
        return settings
    return replace(settings, model=replace(settings.model, revision=commit_of(path, settings.model.revision)))


def _outside_of_a_corpus(cell: Any) -> Any:
    """A path in place of a cell that holds no bytes."""
    return cell.get("path") if isinstance(cell, dict) and cell.get("bytes") is None else cell
