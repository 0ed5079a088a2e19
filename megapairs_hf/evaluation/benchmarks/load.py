"""From a protocol and a folder to benchmarks: which reader serves which."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megapairs_hf.evaluation.benchmarks.circo import read_circo
from megapairs_hf.evaluation.benchmarks.cirr import read_cirr
from megapairs_hf.evaluation.benchmarks.fashioniq import read_fashioniq
from megapairs_hf.evaluation.benchmarks.genecis import read_genecis
from megapairs_hf.evaluation.benchmarks.mmeb import read_mmeb

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from megapairs_hf.evaluation.benchmarks.base import Benchmark
    from megapairs_hf.evaluation.benchmarks.spec import BenchmarkSpec


def read_benchmark(spec: BenchmarkSpec, data: str | Path, *, check: bool = True) -> Iterable[Benchmark]:
    """The benchmark, or its parts, from the files that its authors publish.

    Args:
        spec: its protocol.
        data: folder with annotations and images.
        check: whether the images must be there; the data check looks at them itself.

    Returns:
        One for CIRCO and CIRR, one per category of FashionIQ, one per task of GeneCIS, one per data set of MMEB, each
        read when it is asked for.

    Raises:
        EvaluationError: a file is absent or broken, or images are missing.
    """
    if spec.benchmark == "mmeb":
        return read_mmeb(spec, data, check=check)
    readers = {"circo": read_circo, "cirr": read_cirr, "fashioniq": read_fashioniq, "genecis": read_genecis}
    return readers[spec.benchmark](spec, data, check=check)
