"""Images to embeddings for an index: read and decoded ahead of the model, each distinct file once.

What surprises: a file whose bytes are known, because it was renamed or embedded before the program was killed, is
hashed and never decoded; and every 512 embeddings are kept in a small file at once, so that a killed run loses little.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from megapairs_hf.artifacts import storage
from megapairs_hf.core.errors import ArtifactError, ImageRejectedError
from megapairs_hf.images.decode import shrink
from megapairs_hf.images.inputs import open_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from PIL import Image

    from megapairs_hf.search.config import SearchConfig
    from megapairs_hf.search.images import Content, Images

AHEAD = 4  # batches of images that are decoded ahead
PART_ROWS = 512
QUALITY = 85


@dataclass
class IndexedFile:
    """One file.

    Attributes:
        sha256: of its bytes.
        num_bytes: of the file.
        width: of the image, upright.
        height: of the image, upright.
        preview: a small copy as a WebP file; empty where none is kept.
        embedding: [D] float16, of length one; None while it is not known.
        problem: why it cannot be used: a reason and its detail.
    """

    sha256: str
    num_bytes: int = 0
    width: int = 0
    height: int = 0
    preview: bytes = b""
    embedding: np.ndarray | None = None
    problem: tuple[str, str] | None = None


class EmbeddedFiles:
    """What a run that was cut off had embedded, by sha256; a folder of small Arrow files.

    Args:
        folder: where they are.
        plan: what decides an embedding; files of another plan are removed.
    """

    def __init__(self, folder: Path, plan: dict[str, Any]) -> None:
        self.folder, self.waiting, self.count = folder, list[IndexedFile](), 0
        self.known: dict[str, IndexedFile] = {}
        self.plan, self.mark = json.dumps(plan, sort_keys=True).encode(), folder / "plan.json"
        if not self.mark.is_file() or self.mark.read_bytes() != self.plan:
            storage.remove(str(folder))
        for path in sorted(folder.glob("*.arrow")):
            self.count = int(path.stem) + 1
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            rows = pa.ipc.open_stream(path.read_bytes()).read_all().to_pylist()
            files = [IndexedFile(**{**row, "embedding": np.array(row["embedding"], np.float16)}) for row in rows]
        except (pa.ArrowInvalid, OSError, KeyError, TypeError):
            path.unlink(missing_ok=True)  # it is embedded again
            return
        self.known |= {file.sha256: file for file in files}

    def add(self, file: IndexedFile) -> None:
        """Keep a file."""
        self.known[file.sha256] = file
        self.waiting.append(file)
        if len(self.waiting) >= PART_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self.mark.is_file():
            storage.write_bytes(self.mark, self.plan)
        names = ("sha256", "num_bytes", "width", "height", "preview")
        columns: dict[str, Any] = {name: [getattr(file, name) for file in self.waiting] for name in names}
        columns["embedding"] = pa.array([file.embedding for file in self.waiting], pa.list_(pa.float16()))
        table = pa.table(columns)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        storage.write_bytes(self.folder / f"{self.count:06d}.arrow", sink.getvalue().to_pybytes())
        self.count, self.waiting = self.count + 1, []


class _ImageReader:
    """Reads, hashes and decodes one image; what runs in a thread."""

    def __init__(self, known: Callable[[str], bool], config: SearchConfig) -> None:
        self.known, self.config = known, config

    def __call__(self, load: Callable[[], Content]) -> tuple[IndexedFile, Image.Image | None]:
        content, problem = load()
        if content is None:
            return IndexedFile("", problem=problem or ("unreadable_file", "")), None
        digest = hashlib.sha256(content).hexdigest()
        if self.known(digest):
            return IndexedFile(digest, len(content)), None
        try:
            image = open_image(content, max_pixels=self.config.max_pixels)
        except ImageRejectedError as error:
            return IndexedFile(digest, len(content), problem=(error.reason, error.detail)), None
        file = IndexedFile(digest, len(content), image.width, image.height)
        if self.config.preview_side:
            sink = io.BytesIO()
            shrink(image, self.config.preview_side).save(sink, "WEBP", quality=QUALITY, method=2)
            file.preview = sink.getvalue()
        return file, image


def embed_files(
    model: Any,
    images: Images,
    rows: Sequence[int],
    store: EmbeddedFiles,
    is_indexed: Callable[[str], bool],
    config: SearchConfig,
) -> Iterator[tuple[int, IndexedFile]]:
    """Row by row what is known of each file.

    Args:
        model: anything with `encode`.
        images: to read.
        rows: of them.
        store: what is embedded already; new files are added.
        is_indexed: whether an index has the embedding of a sha256; such a file is returned without one.
        config: the settings.

    Raises:
        ArtifactError: the disk is full.
    """
    reader = _ImageReader(lambda digest: digest in store.known or is_indexed(digest), config)
    group: list[tuple[int, IndexedFile, Image.Image | None]] = []
    size = AHEAD * config.batch_size
    with ThreadPoolExecutor(config.threads) as pool:
        waiting: deque[tuple[int, Future[Any]]] = deque()
        try:
            for row, load in images.contents(rows):
                waiting.append((row, pool.submit(reader, load)))
                if len(waiting) > size:
                    number, future = waiting.popleft()
                    group.append((number, *future.result()))
                if len(group) >= size:
                    yield from _embed(model, group, store, config.batch_size)
                    group = []
            group += [(number, *future.result()) for number, future in waiting]
            yield from _embed(model, group, store, config.batch_size)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _embed(
    model: Any,
    group: Sequence[tuple[int, IndexedFile, Image.Image | None]],
    store: EmbeddedFiles,
    batch_size: int,
) -> Iterator[tuple[int, IndexedFile]]:
    """Embed the images of a group that have no embedding yet; each distinct file once."""
    new = {file.sha256: (file, image) for _, file, image in group if image is not None}
    new = {digest: pair for digest, pair in new.items() if digest not in store.known}
    if new:
        embeddings = np.asarray(
            model.encode([image for _, image in new.values()], batch_size=batch_size, show_progress_bar=False),
            np.float32,
        )
        if embeddings.ndim != 2 or len(embeddings) != len(new):
            raise ArtifactError(f"the model gives {embeddings.shape} for {len(new)} images; it must give [B, D]")
        problems = {}
        for (file, _), embedding in zip(new.values(), embeddings, strict=True):
            norm = float(np.linalg.norm(embedding))
            if np.isfinite(norm) and norm > 0:
                file.embedding = (embedding / norm).astype(np.float16)
                store.add(file)
            else:
                problems[file.sha256] = ("zero_embedding" if norm == 0 else "not_finite", "the model gives it")
        for _, file, _ in group:
            file.problem = file.problem or problems.get(file.sha256)
    for row, file, _ in group:
        yield row, file if file.problem is not None else store.known.get(file.sha256, file)
