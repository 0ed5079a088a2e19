"""What of a benchmark is present, missing and unreadable, and where to get the rest, before hours of encoding.

What surprises: an empty folder is the question that this answers, so the page then reads as instructions (and the
command's status is 1, as it is whenever something is missing or broken).
Every image is decoded at an eighth of its size, which finds a file that was cut off at a third of the price.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.evaluation.benchmarks import circo, cirr, fashioniq, genecis, mmeb
from megapairs_hf.evaluation.benchmarks.annotations import read_json
from megapairs_hf.evaluation.benchmarks.files import NAMED, find_faults
from megapairs_hf.evaluation.benchmarks.layout import archives, usual_folders
from megapairs_hf.evaluation.benchmarks.load import read_benchmark
from megapairs_hf.evaluation.benchmarks.mmeb_means import SET
from megapairs_hf.evaluation.benchmarks.mmeb_rows import rows_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from megapairs_hf.evaluation.benchmarks.base import Benchmark
    from megapairs_hf.evaluation.benchmarks.spec import BenchmarkSpec, DataSource

OBJECT, ATTRIBUTE = "object", "attribute"


@dataclass(frozen=True)
class Need:
    """One of the things that a benchmark needs.

    Attributes:
        source: where it comes from.
        files: annotation files; empty for a folder of images.
        folder: of the images.
        parts: whose images stand there; empty for all.
        read: reads one of the files, or raises.
    """

    source: DataSource
    files: tuple[Path, ...] = ()
    folder: Path | None = None
    parts: tuple[str, ...] = ()
    read: Callable[[Path], Any] = lambda path: read_json(path, object)


@dataclass
class Finding:
    """What of a need is there.

    Attributes:
        need: which.
        present: how many files.
        wanted: how many there should be; 0 where the annotations do not tell yet.
        missing: names of files.
        unreadable: names of files, each with what is wrong.
    """

    need: Need
    present: int = 0
    expected: int = 0
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing or broken."""
        return bool(self.expected) and not self.missing and not self.unreadable


def examine(spec: BenchmarkSpec, data: str | Path, *, quick: bool = False) -> list[Finding]:
    """Look at everything that a benchmark needs.

    Args:
        spec: its protocol.
        data: the folder.
        quick: only whether the images are there, without reading them.
    """
    needed = needs(spec, data)
    findings = [_files(need) for need in needed if need.files]
    # what the rows of good JSON say is looked at too
    benchmarks, errors = _read(spec, data, needed[-1].parts)
    known = [fault for finding in findings for fault in (*finding.missing, *finding.unreadable)]
    rows = findings[0]
    rows.unreadable += [error for error in errors if not any(fault in error for fault in known)]
    rows.present = min(rows.present, rows.expected - len(rows.missing) - len(rows.unreadable))
    return findings + [_images(need, benchmarks, quick) for need in needed if not need.files]


def _read(spec: BenchmarkSpec, data: str | Path, there: Sequence[str]) -> tuple[list[Benchmark], list[str]]:
    """The parts of a benchmark whose annotations can be used, and what is wrong with the others."""
    benchmarks: list[Benchmark] = []
    errors: list[str] = []
    # rows on the Hub are not read to learn which images they name
    for part in there if spec.source else spec.parts or spec.all_parts or ("",):
        try:
            benchmarks += read_benchmark(replace(spec, parts=(part,) if part else ()), data, check=False)
        except EvaluationError as error:
            errors.append(str(error))
    return benchmarks, errors


def needs(spec: BenchmarkSpec, data: str | Path) -> list[Need]:
    """What the benchmark needs, in the order of its sources."""
    sources = spec.sources
    if spec.benchmark == "circo":
        annotations, info, images = circo.folders(data, spec)
        return [Need(sources[0], (annotations,)), Need(sources[1], (info,)), Need(sources[2], folder=images)]
    if spec.benchmark == "cirr":
        captions, split, images = cirr.folders(data, spec)
        return [Need(sources[0], (captions, split)), Need(sources[1], folder=images)]
    parts = spec.parts or spec.all_parts
    if spec.benchmark == "mmeb":
        rows = {name: rows_path(name, data) for name in parts}
        there = tuple(name for name, path in rows.items() if path.exists())
        # a folder of parquet files, or a file; the rows are looked at in any case
        copies = Need(sources[0], tuple(rows.values()), read=lambda path: path)
        return [copies, Need(sources[1], folder=Path(mmeb.image_folder(data)), parts=there)]
    if spec.benchmark == "fashioniq":
        names = tuple(file for part in parts for file in fashioniq.files(data, spec, part))
        return [Need(sources[0], names), Need(sources[1], folder=usual_folders(data, fashioniq.IMAGES)[0])]
    files = tuple(genecis.folders(data, spec, part)[0] for part in parts)
    needed = [Need(sources[0], files)]
    for kind, source in ((OBJECT, sources[1]), (ATTRIBUTE, sources[2])):
        some = tuple(part for part in parts if part.endswith(kind))
        if some:
            needed.append(Need(source, folder=genecis.folders(data, spec, some[0])[1], parts=some))
    return needed


def data_folder(data: str | Path, spec: BenchmarkSpec) -> Path:
    """The benchmark's own folder below `data`, or `data` itself: the one in which more of it is found.

    Args:
        data: folder of one benchmark or of several.
        spec: which.
    """
    own, outer = Path(data) / spec.benchmark, Path(data)
    if not own.is_dir():
        return outer
    needed = needs(spec, own)
    begun = sum(_begun(need, own) for need in needed)
    # a folder of this name may hold the annotations alone
    whole = begun == len(needed) or begun > sum(_begun(need, outer) for need in needs(spec, outer))
    return own if whole else outer


def _begun(need: Need, folder: Path) -> bool:
    """Whether anything of a need is there, inside a folder."""
    paths = [*need.files, *([need.folder] if need.folder else [])]
    return any(path.exists() and path.is_relative_to(folder) for path in paths)


def _files(need: Need) -> Finding:
    finding = Finding(need, expected=len(need.files))
    for path in need.files:
        if not path.exists():
            finding.missing.append(str(path))
            continue
        try:
            need.read(path)
            finding.present += 1
        except EvaluationError as error:
            finding.unreadable.append(str(error))
    return finding


def _images(need: Need, benchmarks: Sequence[Benchmark], quick: bool) -> Finding:
    missing: list[str] = []
    faults: dict[str, str] = {}
    good: set[str] = set()
    for benchmark in benchmarks:
        if need.parts and benchmark.part not in need.parts and benchmark.name.removeprefix(SET) not in need.parts:
            continue
        images: Any = benchmark.image
        needed = [*benchmark.gallery.values(), *(query.input for query in benchmark.queries)]
        paths = {one.image: images.find(one.image) for one in needed if one.image is not None}
        missing += [name for name, path in paths.items() if path is None]
        there = [name for name, path in paths.items() if path is not None]
        wrong = {} if quick or not there else find_faults(images, there)
        faults |= {str(paths[name]): f"{Path(paths[name]).name} ({fault})" for name, fault in wrong.items()}
        good |= {str(paths[name]) for name in there}
    good -= faults.keys()
    # crops of one image are one file
    absent = sorted({name.partition("@")[0] for name in missing})
    return Finding(need, len(good), len(good) + len(faults) + len(absent), absent, list(faults.values()))


def report(spec: BenchmarkSpec, data: str | Path, findings: Sequence[Finding]) -> str:
    """The findings as a page to act on: what is there, and for the rest where to put it, where to get it, its license.

    Args:
        spec: the protocol.
        data: the folder.
        findings: one per need.
    """
    lines = [f"{spec.benchmark} {spec.split} in {data} needs {len(findings)} things:", ""]
    for number, finding in enumerate(findings, 1):
        lines += [f"{number}. {finding.need.source.what}: {_state(finding)}"]
        if not finding.complete:
            lines += _advice(finding)
        lines.append("")
    packed = [] if all(finding.present for finding in findings) else archives(data)[:NAMED]
    if packed:
        lines += [f"Archives are there, which are not looked into; unpack them: {', '.join(packed)}", ""]
    if all(finding.complete for finding in findings):
        lines.append(f"All there. Next: megapairs eval MODEL {spec.benchmark} --data {data} --out DIR")
    else:
        lines.append("Then look again with the same command. Nothing is downloaded for you: the licenses are between")
        lines.append("you and those who hold the rights.")
    if spec.source and not findings[0].present:
        lines.append(f"Without a copy of the rows they are read from {spec.source} on the Hub.")
    return "\n".join(lines)


def _state(finding: Finding) -> str:
    if finding.complete:
        return f"all {finding.expected:,} there"
    if not finding.expected:
        return "counted once the annotation files are there"
    if not finding.present and not finding.unreadable:
        return f"none of {finding.expected:,} there yet" if finding.expected > 1 else "not there yet"
    parts = [f"{finding.present:,} of {finding.expected:,} good"]
    parts += [f"{len(finding.missing):,} missing"] if finding.missing else []
    parts += [f"{len(finding.unreadable):,} unreadable"] if finding.unreadable else []
    return ", ".join(parts)


def _advice(finding: Finding) -> list[str]:
    need = finding.need
    where = need.folder or need.files[0].parent
    lines = [
        f"   put them in  {where}",
        f"   get them at  {need.source.where}",
        f"   license      {need.source.license}",
    ]
    for what, names in (("missing", finding.missing), ("unreadable", finding.unreadable)):
        if names:
            shown = ", ".join(names[:NAMED]) + (f", … ({len(names):,} in all)" if len(names) > NAMED else "")
            lines.append(f"   {what:<12} {shown}")
    return lines
