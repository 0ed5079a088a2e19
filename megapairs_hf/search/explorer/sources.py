"""What `megapairs explore SOURCE` shows: an artifact, a work folder, a published data set here or on the Hub, a file.

Nothing is copied and nothing but manifests and footers is read at first. What surprises: a triplet that was rejected
names images that the data set does not publish, so images are looked for in the corpus beside it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import MANIFEST, PLAN, REJECTED_FILES, Artifact, open_artifact
from megapairs_hf.artifacts.conform import REQUIRED
from megapairs_hf.artifacts.sources import as_artifact
from megapairs_hf.artifacts.storage import HUB_ID, join
from megapairs_hf.artifacts.table_files import suffix
from megapairs_hf.artifacts.workspace import STAGES
from megapairs_hf.core.errors import ArtifactError, SchemaMismatchError
from megapairs_hf.core.schema import IMAGE, IMAGE_ID, RELATION
from megapairs_hf.images.locate import ROOT
from megapairs_hf.search.explorer.image_store import ImageStore
from megapairs_hf.search.explorer.stored_rows import ParquetRows, StoredRows, TableRows, open_rows
from megapairs_hf.search.explorer.table import ExplorerTable

if TYPE_CHECKING:
    from collections.abc import Sequence

KINDS = ("triplets", "instructions", "descriptions", "pairs", "captions", "corpus")
# of a data set, in the order of a page
IMAGES, TRIPLETS, REJECTED = "images", "triplets", "rejected"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Explored:
    """What is explored.

    Attributes:
        name: of it.
        tables: the first is shown first.
        images: where images are looked for, in this order.
        home: the local folder that marks go to; empty for the working directory.
    """

    name: str
    tables: list[ExplorerTable]
    images: list[ImageStore]
    home: str = ""


def open_source(source: str, corpus: str | None = None) -> Explored:
    """Open what shall be explored.

    Args:
        source: an artifact's folder, a work folder, a published data set (its folder, or its id on the Hub), or a
            file of rows.
        corpus: where images are; None for beside the source.

    Raises:
        ArtifactError: there is nothing that can be shown.
    """
    extra = _stores(corpus) if corpus else []
    if any(storage.exists(join(source, name)) for name in (MANIFEST, PLAN)):
        explored = _of_artifact(open_artifact(source), storage.parent(source))
    elif storage.exists(source) and not storage.is_folder(source):
        explored = _of_file(source)
    elif any(storage.exists(join(source, name, MANIFEST)) for name in STAGES):
        explored = _of_work(source)
    else:
        explored = _of_published(source)
    if not any(table.rows.count for table in explored.tables):
        raise ArtifactError(f"{source} has no rows to explore; name another artifact")
    return Explored(explored.name, explored.tables, [*extra, *explored.images], explored.home)


def _name(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _of_artifact(artifact: Artifact, work: str) -> Explored:
    stores = _stores(artifact.path) if artifact.manifest.kind in {"corpus", TRIPLETS} else []
    if artifact.manifest.kind != "corpus":
        stores += _beside(artifact, work)
    home = work if storage.is_local(work) else ""
    return Explored(_name(artifact.path), _tables(artifact, ""), stores, home)


def _of_work(work: str) -> Explored:
    artifacts = {name: open_artifact(join(work, name)) for name in reversed(STAGES) if _finished(work, name)}
    shown = {name: one for name, one in artifacts.items() if one.manifest.kind in KINDS}
    tables = [table for name, one in shown.items() for table in _tables(one, name)]
    stores = [store for name in ("corpus", "heldout") if name in shown for store in _stores(shown[name].path)]
    if not stores and TRIPLETS in shown:
        stores = _stores(shown[TRIPLETS].path)
    return Explored(_name(work), tables, stores, work if storage.is_local(work) else "")


def _finished(work: str, name: str) -> bool:
    return storage.exists(join(work, name, MANIFEST))


def _tables(artifact: Artifact, name: str) -> list[ExplorerTable]:
    """The rows of an artifact, and those that were left out."""
    kind = artifact.manifest.kind
    if kind not in KINDS:
        raise ArtifactError(f"{artifact.path} holds {kind}, which has no rows to explore; name {', '.join(KINDS)}")
    prefix = f"{TRIPLETS}/" if kind == TRIPLETS else ""
    files = [str(s["file"]) for s in artifact.manifest.shards if s["rows"] and str(s["file"]).startswith(prefix)]
    relations = tuple(artifact.manifest.stats.get("relations") or ())
    tables = [_table(name or kind, kind, artifact.path, files, relations)] if files else []
    for file in REJECTED_FILES:
        path = join(artifact.path, file)
        if artifact.manifest.rejected and storage.exists(path):
            reasons = dict(sorted(artifact.manifest.rejected.items()))
            tables.append(ExplorerTable(f"{name or kind}, {REJECTED}", REJECTED, open_rows([path]), reasons=reasons))
    return tables


def _table(name: str, kind: str, folder: str, files: Sequence[str], relations: Sequence[str] = ()) -> ExplorerTable:
    rows = open_rows([join(folder, file) for file in files])
    splits: dict[str, list[tuple[int, int]]] = {}
    if kind == TRIPLETS and isinstance(rows, ParquetRows):
        for file, limits in zip(files, rows.ranges(), strict=True):
            splits.setdefault(_name(file).partition("-")[0], []).append(limits)
    return ExplorerTable(name, kind, rows, tuple(relations) or _relations(rows), splits=splits)


def _relations(rows: StoredRows) -> tuple[str, ...]:
    """The relations of the first rows, where no manifest counts them."""
    if RELATION not in rows.schema.names or not rows.count:
        return ()
    some = rows.take(range(min(rows.count, 1000)), [RELATION])
    return tuple(sorted({name for row in some for name in row[RELATION] or ()}))


def _beside(artifact: Artifact, work: str) -> list[ImageStore]:
    """The images of the corpus that an artifact was made of, where that lies beside it."""
    for name in ("corpus", "heldout"):
        if _finished(work, name):
            corpus = open_artifact(join(work, name))
            expected = artifact.manifest.inputs.get("corpus", corpus.fingerprint)
            if corpus.fingerprint == expected and corpus.manifest.kind == "corpus":
                return _stores(corpus.path)
    published = join(work, TRIPLETS)
    return _stores(published) if _finished(work, TRIPLETS) and artifact.path != published else []


def _stores(path: str) -> list[ImageStore]:
    """The images of a corpus or of a published data set."""
    root: str | None = None
    if storage.exists(join(path, MANIFEST)):
        artifact = open_artifact(path)
        prefix = f"{IMAGES}/" if artifact.manifest.kind == TRIPLETS else ""
        files = [str(s["file"]) for s in artifact.manifest.shards if s["rows"] and str(s["file"]).startswith(prefix)]
        root = artifact.manifest.stats.get(ROOT)
    else:
        path = _published_path(path)
        files = [name for name in storage.list_files(path) if name.startswith(f"{IMAGES}/")]
    files = [file for file in files if file.endswith(".parquet")]
    if not files:
        return []
    rows = ParquetRows([join(path, file) for file in files])
    lacking = [name for name in (IMAGE_ID, IMAGE) if name not in rows.schema.names]
    if lacking:
        raise ArtifactError(f"{path} has no column {lacking[0]!r}, so it holds no images; name a corpus")
    return [ImageStore(rows, root)]


def _published_path(path: str) -> str:
    """The folder of a published data set; one that is not here is on the Hub."""
    on_hub = HUB_ID.fullmatch(path) is not None and not storage.exists(path)
    return f"hf://datasets/{path}" if on_hub else path


def _of_published(source: str) -> Explored:
    path = _published_path(source)
    try:
        files = [name for name in storage.list_files(path) if name.endswith(".parquet")]
    except Exception as error:  # huggingface_hub and file systems raise whatever their connection raises
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if path != source:
            raise ArtifactError(
                f"there is no folder {source} here, and on the Hub no data set of that name can be opened ({reason});"
                " check the path, or name a data set"
            ) from error
        raise ArtifactError(f"cannot open {source}: {reason}; name an artifact or a data set") from error
    shown = sorted(
        (name for name in files if name.startswith(f"{TRIPLETS}/")),
        key=lambda name: [not name.startswith(f"{TRIPLETS}/{split}-") for split in SPLITS],
    )
    tables = [_table(TRIPLETS, TRIPLETS, path, shown)] if shown else []
    images = [name for name in files if name.startswith(f"{IMAGES}/")]
    if images:
        tables.append(_table(IMAGES, "corpus", path, images))
    if not tables:
        raise ArtifactError(
            f"{source} holds neither an artifact nor a data set of triplets (triplets/*.parquet); check the path, or"
            " name one of its folders"
        )
    return Explored(_name(source), tables, _stores(source))


def _of_file(path: str) -> Explored:
    """Rows of a file of one's own, by its columns."""
    home = storage.parent(path) if storage.is_local(path) else ""
    if suffix(path) == ".parquet":
        rows: StoredRows = ParquetRows([path])
        kind = _kind_of(rows.schema.names, path)
    else:
        kind, rows = _of_text(path)
    stores = [ImageStore(rows)] if kind == "corpus" and isinstance(rows, ParquetRows) else []
    work = home if any(_finished(home, name) for name in STAGES) else ""
    stores += [store for name in ("corpus", TRIPLETS) if work and _finished(work, name)
               for store in _stores(join(work, name))][:1]  # fmt: skip
    return Explored(_name(path), [ExplorerTable(kind, kind, rows, _relations(rows))], stores, home)


def _of_text(path: str) -> tuple[str, StoredRows]:
    reasons: list[str] = []
    for kind in KINDS:
        try:
            artifact = as_artifact(path, kind)
        except SchemaMismatchError as error:
            reasons.append(str(error))
            continue
        return kind, TableRows(artifact.dataset().with_format("arrow")[:])
    raise ArtifactError(reasons[-1])


def _kind_of(names: Sequence[str], path: str) -> str:
    kinds: list[Any] = [kind for kind in KINDS if set(REQUIRED[kind]) <= set(names)]
    if not kinds:
        needed = "; ".join(f"{kind}: {', '.join(REQUIRED[kind])}" for kind in KINDS)
        raise ArtifactError(f"{path} has the columns of no kind of rows ({needed}); rename its columns")
    return str(kinds[0])
