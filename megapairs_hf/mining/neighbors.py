"""The first half of mining: the K nearest neighbors of every row under every relation, in one file per shard.

A process searches all targets for the rows of its own shards, a group of shards at a time, and writes what it found
before the next; after a kill only the group in work is searched again. Exact results depend on nothing but the
embeddings; those of `ivf` on the embeddings and the settings; both are the same for any number of processes.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import json_bytes, read_json
from megapairs_hf.artifacts.replace import PARTS
from megapairs_hf.artifacts.storage import join
from megapairs_hf.core import distributed
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.progress import Progress, note
from megapairs_hf.mining.knn.plan import SearchPlan, choose_kind, make_plan
from megapairs_hf.mining.knn.thread_pool import ThreadPool, release_memory, workers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.mining.config import MineConfig
    from megapairs_hf.mining.relations import Relation

FOLDER = "neighbors"
LEAST_COMPRESSED = 1000
DEVICE_ROWS = 1_048_576


class Search(Protocol):
    """Any of the searches."""

    def search(self, queries: np.ndarray, query_rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Indices [B, K] and exact scores [B, K], nearest first."""


class Neighbors:
    """The files of neighbors under an unfinished artifact.

    Args:
        path: the artifact's folder.
        starts: [shards + 1] where the indices of each shard's rows begin.
    """

    def __init__(self, path: str, starts: np.ndarray) -> None:
        self.path, self.starts = path, starts

    def file(self, relation: str, shard: int) -> str:
        """Where the neighbors of one shard's rows are."""
        return join(self.path, PARTS, FOLDER, f"{relation}-{shard:05d}.npz")

    def missing(self, relation: str, shards: range) -> list[int]:
        """The shards that are still to be searched."""
        return [i for i in shards if not storage.exists(self.file(relation, i))]

    def write(self, relation: str, shard: int, indices: np.ndarray, scores: np.ndarray) -> None:
        """Keep the neighbors of one shard's rows: indices [rows, K] and scores [rows, K]."""
        sink = io.BytesIO()
        kind = np.int32 if self.starts[-1] < 2**31 else np.int64
        np.savez(sink, indices=indices.astype(kind), scores=scores.astype(np.float32))
        storage.write_bytes(self.file(relation, shard), sink.getvalue())

    def read(self, relation: str, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices [rows, K] (-1 for none) and scores [rows, K] float32."""
        with np.load(io.BytesIO(storage.read_bytes(self.file(relation, shard))), allow_pickle=False) as arrays:
            return arrays["indices"], arrays["scores"]

    def has(self, name: str) -> bool:
        """Whether a value was written."""
        return storage.exists(self._value_file(name))

    def read_value(self, name: str) -> dict[str, Any]:
        """A value that was written."""
        value: dict[str, Any] = read_json(self._value_file(name))
        return value

    def write_value(self, name: str, value: dict[str, Any]) -> None:
        """Write a value unless there is one."""
        if not self.has(name):
            storage.write_bytes(self._value_file(name), json_bytes(value))

    def write_once(self, name: str, value: dict[str, Any]) -> dict[str, Any]:
        """The main process's value, or the one of an earlier run; every process must call this."""
        if distributed.is_main():
            self.write_value(name, value)
        distributed.barrier()
        return self.read_value(name)

    def _value_file(self, name: str) -> str:
        return join(self.path, PARTS, f"{name}.json")


def find_neighbors(relations: Sequence[Relation], config: MineConfig, files: Neighbors) -> dict[str, Any]:
    """Search every relation for the rows of this process's shards, and wait for the other processes.

    Returns:
        By relation: the kind of search, what ran it, and, where it is approximate, its measured recall.
    """
    from megapairs_hf.mining.knn.quantize import integers_are_faster

    shards = distributed.my_shards(len(files.starts) - 1)
    rows = sum(int(files.starts[i + 1] - files.starts[i]) for i in shards)
    todo = {r.name: files.missing(r.name, shards) for r in relations}
    left = sum(int(files.starts[i + 1] - files.starts[i]) for missing in todo.values() for i in missing)
    with Progress("search", rows * len(relations), "queries", rows * len(relations) - left) as bar:
        for relation in relations:
            integers = integers_are_faster(relation.target.dimension)
            plan = _agreed_plan(relation, config, files, len(todo[relation.name]), integers=integers)
            _share_index(relation, config, plan, files)
            if todo[relation.name]:
                with workers(config.threads) as crew:
                    search = _open_search(relation, config, plan, crew, files)
                    _write_facts(relation, plan, search, files)
                    for group in _groups(todo[relation.name], files.starts, plan.group_rows):
                        _search_group(relation, search, group, files)
                        release_memory()
                        bar.advance(sum(int(files.starts[i + 1] - files.starts[i]) for i in group))
    distributed.barrier()
    return {r.name: files.read_value(f"search-{r.name}") for r in relations}


def _agreed_plan(
    relation: Relation, config: MineConfig, files: Neighbors, missing: int, *, integers: bool
) -> SearchPlan:
    """Sizes are this run's own; the kind of search and the training rows of an index are those of the first run."""
    rows, dimension = len(relation.target), relation.target.dimension
    kind = files.write_once(f"kind-{relation.name}", {"kind": choose_kind(config, rows, dimension)})["kind"]
    if config.device is not None and kind != "exact":
        raise ConfigError(f"device {config.device!r} serves exact search only, and this one is {kind!r}; set `search:"
                          " exact`, or leave the device out")  # fmt: skip
    if kind == "ivf_pq" and rows < LEAST_COMPRESSED:
        raise ConfigError(f"search 'ivf_pq' needs at least {LEAST_COMPRESSED:,} embeddings; take `search: exact`")
    whole = relation.same and missing == len(files.starts) - 1
    plan = make_plan(replace(config, search=kind), rows, dimension, same=whole, integers=integers)
    first = files.write_once(f"plan-{relation.name}", {"train_rows": plan.train_rows})
    return replace(plan, train_rows=int(first["train_rows"]))


def _index_file(relation: Relation, files: Neighbors) -> str:
    return join(files.path, PARTS, f"index-{relation.name}.faiss")


def _share_index(relation: Relation, config: MineConfig, plan: SearchPlan, files: Neighbors) -> None:
    """The main process builds the faiss index for all."""
    if plan.kind != "ivf_pq":
        return
    everything = range(len(files.starts) - 1)
    if distributed.is_main() and files.missing(relation.name, everything):
        path = _index_file(relation, files)
        if not storage.exists(path):
            import faiss

            from megapairs_hf.mining.knn.faiss_search import build_index

            with workers(config.threads) as crew:
                index, engine = build_index(relation.target, crew, plan.train_rows)
            files.write_value(f"index-{relation.name}", {"engine": engine})
            storage.write_bytes(path, faiss.serialize_index(index).tobytes())
    distributed.barrier()


def _open_search(
    relation: Relation, config: MineConfig, plan: SearchPlan, crew: ThreadPool, files: Neighbors
) -> Search:
    from megapairs_hf.mining.knn.exact import ExactSearch
    from megapairs_hf.mining.knn.faiss_search import FaissSearch
    from megapairs_hf.mining.knn.gpu_search import DeviceSearch
    from megapairs_hf.mining.knn.ivf import IVFSearch

    k, queries = config.neighbors + 1, None if relation.same else relation.query
    rows = plan.block_rows
    if plan.kind == "exact" and config.device is not None:
        check_device(config.device)
        return DeviceSearch(relation.target, k, config.device, block_rows=min(DEVICE_ROWS, rows), crew=crew)
    if plan.kind == "exact":
        return ExactSearch(relation.target, k, crew, block_rows=rows)
    if plan.kind == "ivf":
        return IVFSearch(relation.target, k, crew, recall=config.recall, queries=queries, block_rows=rows)
    import faiss

    index = faiss.deserialize_index(np.frombuffer(storage.read_bytes(_index_file(relation, files)), np.uint8))
    settings: dict[str, Any] = {"recall": config.recall, "queries": queries, "block_rows": rows}
    return FaissSearch(relation.target, k, crew, index=index, **settings)


def check_device(device: str) -> None:
    """A device must be there.

    Raises:
        ConfigError: it is not.
    """
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        message = str(error).strip().split("\n", 1)[0]
        raise ConfigError(
            f"device must be one that this machine has, but is {device!r} ({message}); leave it out"
        ) from error


def _write_facts(relation: Relation, plan: SearchPlan, search: Search, files: Neighbors) -> None:
    facts: dict[str, Any] = {"kind": plan.kind, "recall": round(float(getattr(search, "recall", 1.0)), 4)}
    facts["engine"] = getattr(search, "engine", "cpu")
    if plan.kind == "ivf_pq" and files.has(f"index-{relation.name}"):
        facts["engine"] = files.read_value(f"index-{relation.name}")["engine"]
    if facts["engine"] != "cpu":
        note(f"mine: {plan.kind} search of {relation.name} by {facts['engine']}")
    if plan.kind == "ivf":
        facts |= {"nlist": search.nlist, "nprobe": search.nprobe}  # type: ignore[attr-defined]
    files.write_value(f"search-{relation.name}", facts)


def _groups(shards: Sequence[int], starts: np.ndarray, rows: int) -> list[list[int]]:
    """Runs of shards with at most so many rows; at least one shard each."""
    groups: list[list[int]] = []
    size = 0
    for shard in shards:
        own = int(starts[shard + 1] - starts[shard])
        if not groups or size + own > rows:
            groups.append([])
            size = 0
        groups[-1].append(shard)
        size += own
    return groups


def _search_group(relation: Relation, search: Search, group: Sequence[int], files: Neighbors) -> None:
    spans = [(int(files.starts[i]), int(files.starts[i + 1])) for i in group]
    query_rows = np.concatenate([np.arange(low, high) for low, high in spans])
    whole = len(query_rows) == spans[-1][1] - spans[0][0]
    parts = [spans[0][:1] + spans[-1][1:]] if whole else spans
    embeddings = [relation.query.read(low, high) for low, high in parts]
    queries = embeddings[0] if whole else np.concatenate(embeddings)
    indices, scores = search.search(queries, query_rows if relation.same else None)
    offset = 0
    for shard, (low, high) in zip(group, spans, strict=True):
        part = slice(offset, offset + high - low)
        files.write(relation.name, shard, indices[part], scores[part])
        offset += high - low
