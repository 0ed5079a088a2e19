"""Making an artifact: atomic shards, resume, staleness, one run at a time.

A stage calls `create_artifact`, writes the shards that are missing, and calls `finish`. Whatever happens in between
(`kill -9`, a full disk, a lost machine), the next run continues with the missing shards, and the finished folder is
byte for byte the one that an uninterrupted run makes: no times, no host names, nothing that depends on the number of
processes. What surprises: a shard is finished when its record under `.parts/` is there, not when its data file is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import (
    MANIFEST,
    README,
    REJECTED_NAME,
    Artifact,
    file_bytes,
    json_bytes,
    open_artifact,
    table_bytes,
)
from megapairs_hf.artifacts.integrity import sha256_of
from megapairs_hf.artifacts.lock import acquire, release
from megapairs_hf.artifacts.manifest import Manifest
from megapairs_hf.artifacts.prepare import prepare_folder, tidy
from megapairs_hf.artifacts.readme import artifact_readme
from megapairs_hf.artifacts.replace import (
    drop_old,
    recover,
)
from megapairs_hf.artifacts.shard_records import (
    Rejection,
    add_counts,
    finished_shard,
    is_finished,
    part_file,
    rejection_table,
)
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.artifacts.tables import is_arrow
from megapairs_hf.core import distributed
from megapairs_hf.core.config import config_dict, config_hash
from megapairs_hf.core.schema import SCHEMA_VERSION
from megapairs_hf.core.version import __version__

__all__ = ["ArtifactWriter", "Rejection", "add_counts", "create_artifact", "file_bytes", "rejection_table"]

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from filelock import FileLock


class ArtifactWriter:
    """Writes the shards of one artifact. Made by `create_artifact`; use it as a context."""

    def __init__(self, path: str, plan: dict[str, Any], names: Sequence[str], lock: FileLock | None) -> None:
        self.path, self.plan, self.names, self.lock = path, plan, list(names), lock

    def done(self, index: int) -> bool:
        """Whether this shard was finished by this or an earlier run; one whose files are damaged was not."""
        return is_finished(self.path, self.names[index], index)

    def stats(self, index: int) -> dict[str, Any]:
        """The counters of a finished shard."""
        stats: dict[str, Any] = finished_shard(self.path, self.names[index], index)[0]["stats"]
        return stats

    def mine(self) -> list[int]:
        """The unfinished shards of this process."""
        return [i for i in distributed.my_shards(len(self.names)) if not self.done(i)]

    def rows(self, index: int) -> int:
        """Rows of a finished shard."""
        return int(finished_shard(self.path, self.names[index], index)[0]["rows"])

    def reasons(self, index: int) -> Counter[str]:
        """How many rows of a finished shard were left out, by reason."""
        return Counter(finished_shard(self.path, self.names[index], index)[1]["reason"].to_pylist())

    def write(
        self,
        index: int,
        data: pa.Table,
        rejected: Sequence[Rejection] = (),
        stats: Mapping[str, Any] | None = None,
    ) -> None:
        """Finish one shard.

        Args:
            index: its number.
            data: its rows.
            rejected: (key, reason, detail) of every row that was left out.
            stats: nested counters; those of all shards are added up in the manifest.
        """
        content = file_bytes(self.names[index], data)
        digest = storage.write_bytes(join(self.path, self.names[index]), content)
        self._record(index, len(data), digest, rejected, stats)

    def adopt(
        self,
        index: int,
        rows: int,
        rejected: Sequence[Rejection],
        stats: Mapping[str, Any],
        digest: str | None = None,
    ) -> None:
        """Finish one shard whose data file is written already; its sha256 is computed where it is not known."""
        digest = digest or sha256_of(join(self.path, self.names[index]))
        self._record(index, rows, digest, rejected, stats)

    def _record(
        self,
        index: int,
        rows: int,
        digest: str,
        rejected: Sequence[Rejection],
        stats: Mapping[str, Any] | None,
    ) -> None:
        storage.write_bytes(part_file(self.path, index, "rejected.parquet"), table_bytes(rejection_table(rejected)))
        record = {"file": self.names[index], "rows": rows, "sha256": digest, "stats": dict(stats or {})}
        storage.write_bytes(part_file(self.path, index, "json"), json_bytes(record))
        # what an overwriting run set aside is kept until there is something in its place
        if rows and storage.is_local(self.path):
            drop_old(self.path)

    def finish(
        self,
        stats: Mapping[str, Any] | None = None,
        rejected: Sequence[Rejection] = (),
        configurations: Mapping[str, pa.Table] | None = None,
        files: Mapping[str, str] | None = None,
    ) -> Artifact:
        """Wait for every process, write the manifest, and open the artifact.

        Args:
            stats: facts about the whole, added to the counters of the shards.
            rejected: rows that were left out before there were shards.
            configurations: further tables by name (`near_duplicates`); only the main process needs to give them.
            files: sha256 of further files by name.
        """
        distributed.barrier()
        if distributed.is_main():
            self._finish(dict(stats or {}), rejected, configurations or {}, dict(files or {}))
        distributed.barrier()
        return open_artifact(self.path)

    def _finish(
        self,
        stats: dict[str, Any],
        rejected: Sequence[Rejection],
        configurations: Mapping[str, pa.Table],
        files: dict[str, str],
    ) -> None:
        parts = [finished_shard(self.path, name, i) for i, name in enumerate(self.names)]
        records = [record for record, _ in parts]
        left_out = pa.concat_tables([rejection_table(rejected), *(table for _, table in parts)])
        table = self._write_table(REJECTED_NAME, left_out)
        counted: dict[str, Any] = {}
        for record in records:
            add_counts(counted, record.pop("stats"))
        manifest = Manifest(
            kind=self.plan["kind"],
            config=self.plan["config"],
            config_hash=self.plan["config_hash"],
            inputs=self.plan["inputs"],
            version=__version__,
            shards=records,
            rows=sum(record["rows"] for record in records),
            rejected=dict(sorted(Counter(left_out["reason"].to_pylist()).items())),
            stats={**counted, **stats},
            configurations={name: self._write_table(name, table) for name, table in configurations.items()},
            files=files,
        )
        readme = artifact_readme(manifest, table)
        if readme is not None:
            storage.write_bytes(join(self.path, README), readme.encode())
        record = asdict(manifest) | {"fingerprint": manifest.fingerprint}
        if not manifest.files:
            del record["files"]
        storage.write_bytes(join(self.path, MANIFEST), json_bytes(record))
        tidy(self.path)

    def _write_table(self, name: str, table: pa.Table) -> dict[str, Any]:
        """Write a table beside the shards, in their format: `datasets` reads the files of a folder with one reader."""
        file = f"{name}.arrow" if self.names and all(map(is_arrow, self.names)) else f"{name}.parquet"
        digest = storage.write_bytes(join(self.path, file), file_bytes(file, table))
        return {"file": file, "rows": len(table), "sha256": digest}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # other processes may still be writing; then the next run looks
        if error is not None and distributed.world_size() == 1:
            recover(self.path)
        release(self.lock)


def create_artifact(
    path: PathLike,
    *,
    kind: str,
    config: Any,
    inputs: Mapping[str, str],
    names: Sequence[str],
    overwrite: bool = False,
) -> ArtifactWriter | Artifact:
    """Begin an artifact, continue one that was interrupted, or find that it is finished.

    Args:
        path: the folder.
        kind: what it will hold.
        config: the stage's settings, a dataclass.
        inputs: fingerprint of each input by name.
        names: the shards' file names.
        overwrite: replace an artifact made with other settings or inputs.

    Returns:
        A writer, or the artifact itself where it was finished before.

    Raises:
        ArtifactError: another run is writing there, or the folder cannot be written.
        StaleArtifactError: what is there was made with other settings or inputs; the message names the first that
            differs.
    """
    plan = {
        "kind": kind,
        "config": config_dict(config),
        "config_hash": config_hash(config),
        "inputs": dict(inputs),
        "shards": list(names),
        "schema_version": SCHEMA_VERSION,
    }
    lock = acquire(path) if distributed.is_main() else None
    try:
        if distributed.is_main():
            prepare_folder(path, plan, overwrite)
        distributed.barrier()
        if storage.exists(join(path, MANIFEST)):
            release(lock)
            return open_artifact(path, kind)
    except BaseException:
        release(lock)
        raise
    return ArtifactWriter(str(path), plan, names, lock)
