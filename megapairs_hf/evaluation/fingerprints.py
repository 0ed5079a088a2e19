"""What tells measurements apart: hashes of what they were made of, for the manifest, and names of their folders.

What surprises: images are known by their ids here, not by their bytes, since hashing 123,403 files would cost more
than most evaluations; `--cache` looks at the bytes.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.fingerprints import sha256_of
from megapairs_hf.artifacts.storage import PathLike, join
from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.evaluation.benchmarks.mmeb_means import SET
from megapairs_hf.evaluation.benchmarks.mmeb_rows import rows_source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.evaluation.benchmarks.base import Benchmark
    from megapairs_hf.evaluation.benchmarks.spec import BenchmarkSpec

DIGITS = 16


def benchmark_digest(benchmark: Benchmark) -> str:
    """A hash of all that decides the numbers but images: protocol, queries with texts and targets, gallery ids."""
    digest = sha256(json.dumps([dict(benchmark.options), list(benchmark.metrics)], sort_keys=True).encode())
    for query in benchmark.queries:
        digest.update(json.dumps(vars(query), default=vars, sort_keys=True).encode() + b"\n")
    for name, part in benchmark.gallery.items():
        digest.update(json.dumps([name, part.image, part.text]).encode() + b"\n")
    return digest.hexdigest()[:DIGITS]


def mmeb_digests(spec: BenchmarkSpec, data: PathLike) -> dict[str, str]:
    """What decides the numbers of each data set, by `mmeb/NAME`: a hash of the rows or the commit, placeholder."""
    source = rows_source(spec, data)
    local = storage.exists(source)
    rows = {name: _rows_digest(source, name) if local else spec.revision for name in spec.parts or spec.all_parts}
    words = [spec.placeholder, *(["allow_missing"] if spec.allow_missing else [])]
    return {f"{SET}{name}": " ".join([f"{source}@{digest}", *words]).strip() for name, digest in rows.items()}


def model_digest(model: Any) -> str:
    """A hash of a loaded model's weights.

    Raises:
        EvaluationError: it is no module of torch.
    """
    import torch

    if not isinstance(model, torch.nn.Module):
        raise EvaluationError(
            "only the weights of a torch module can be hashed; give {name: ModelSource(load, fingerprint)} instead"
        )
    digest = sha256()
    for name, tensor in model.state_dict().items():
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(content.numpy())
    return digest.hexdigest()[:DIGITS]


def _rows_digest(source: str, name: str) -> str:
    folder = join(source, name)
    files = [join(folder, file) for file in storage.list_names(folder) if file.endswith(".parquet")]
    files += [folder + suffix for suffix in (".jsonl", ".json") if storage.exists(folder + suffix)]
    return sha256("\n".join(sha256_of(file) for file in sorted(files)).encode()).hexdigest()[:DIGITS]


def folder_labels(folders: Sequence[str]) -> dict[str, str]:
    """The shortest ends of paths that tell folders apart: `a/results` and `b/results`.

    Raises:
        EvaluationError: a folder is named twice.
    """
    parts = {folder: Path(folder).resolve().parts for folder in folders}
    if len(set(parts.values())) < len(folders):
        raise EvaluationError("a folder is named twice; name each once")
    for length in range(1, max(map(len, parts.values()), default=0) + 1):
        labels = {folder: "/".join(some[-length:]) for folder, some in parts.items()}
        if len(set(labels.values())) == len(labels):
            return labels
    return {folder: folder for folder in folders}
