"""From a protocol and a folder to benchmarks: which reader serves which."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megapairs_hf.evaluation.benchmarks.circo import read_circo
from megapairs_hf.evaluation.benchmarks.cirr import read_cirr
from megapairs_hf.evaluation.benchmarks.fashioniq import read_fashioniq
from megapairs_hf.evaluation.benchmarks.genecis import read_genecis

if TYPE_CHECKING:
    from pathlib import Path

    from megapairs_hf.evaluation.benchmarks.base import Benchmark
    from megapairs_hf.evaluation.benchmarks.spec import BenchmarkSpec


def read_benchmark(spec: BenchmarkSpec, data: str | Path, *, check: bool = True) -> list[Benchmark]:
    """The benchmark, or its parts, from the files that its authors publish.

    Args:
        spec: its protocol.
        data: folder with annotations and images.
        check: whether the images must be there; the data check looks at them itself.

    Returns:
        One for CIRCO and CIRR, one a category for FashionIQ, one a task for GeneCIS.

    Raises:
        EvaluationError: a file is absent or broken, or images are missing.
    """
    readers = {"circo": read_circo, "cirr": read_cirr, "fashioniq": read_fashioniq, "genecis": read_genecis}
    return readers[spec.benchmark](spec, data, check=check)
