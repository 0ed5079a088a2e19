"""From a name to a protocol, and from a protocol and a folder to benchmarks: which reader serves which."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megapairs_hf.evaluation.benchmarks.circo import read_circo
from megapairs_hf.evaluation.benchmarks.cirr import read_cirr
from megapairs_hf.evaluation.benchmarks.fashioniq import read_fashioniq
from megapairs_hf.evaluation.benchmarks.genecis import read_genecis
from megapairs_hf.evaluation.benchmarks.mmeb import MMEB, MMEBConfig, mmeb_settings
from megapairs_hf.evaluation.benchmarks.spec import read_spec, spec_file

if TYPE_CHECKING:
    from megapairs_hf.evaluation.benchmarks.base import Benchmark
    from megapairs_hf.evaluation.benchmarks.spec import BenchmarkSpec


def is_mmeb(name: str) -> bool:
    """Whether the name, or the name of the file, is MMEB's."""
    return Path(name).name.removesuffix(".yaml") == MMEB


def read_protocol(name: str, data: str) -> BenchmarkSpec | MMEBConfig:
    """The protocol of a benchmark as its file has it.

    Args:
        name: of the benchmark, or path of the file.
        data: folder in which MMEB's images and rows are looked for.

    Raises:
        EvaluationError: there is no such benchmark; the nearest is named.
    """
    return mmeb_settings(spec_file(name), data, ()) if is_mmeb(name) else read_spec(name)


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
