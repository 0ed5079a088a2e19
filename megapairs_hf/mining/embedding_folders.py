"""Folders of embeddings that clip-retrieval or NeMo Curator wrote, as rows to mine."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.embedding_folders import TEXTS, read_embedding_folder
from megapairs_hf.artifacts.fingerprints import sha256_of
from megapairs_hf.mining.embedded_rows import EmbeddedRows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.artifacts.storage import PathLike


def open_embedding_folder(path: PathLike, text_columns: Sequence[str] | None = None) -> EmbeddedRows:
    """The rows of a folder that clip-retrieval or NeMo Curator wrote.

    Args:
        path: the folder. Embeddings are named as their folders, `img_emb` and `text_emb`, or `embedding`.
        text_columns: the names of those that are of texts; None for `text_emb`.

    Raises:
        ArtifactError: it is no such folder, files are missing, or rows do not belong together.
    """
    stored = read_embedding_folder(path)
    assert stored.ids is not None
    texts = frozenset(text_columns if text_columns is not None else {TEXTS} & set(stored.embeddings))
    folder = storage.local(path)
    facts = [f"{file.relative_to(folder)} {sha256_of(str(file))}" for file in stored.files] + sorted(texts)
    inputs = {"embeddings": hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]}
    return EmbeddedRows(stored.what, stored.ids, stored.embeddings, texts, inputs)
