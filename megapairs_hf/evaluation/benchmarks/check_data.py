"""What of a benchmark is present, missing and unreadable, and where to get the rest, before hours of encoding.

What surprises: an empty folder is no error but the question that this answers, so the page then reads as instructions.
Every image is decoded at an eighth of its size, which finds a file that was cut off at a third of the price.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.evaluation.benchmarks import circo, cirr, fashioniq, genecis, mmeb
from megapairs_hf.evaluation.benchmarks.files import NAMED, find_faults, read_json
from megapairs_hf.evaluation.benchmarks.load import read_benchmark

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
    findings = []
    for need in needs(spec, data):
        findings.append(_files(need) if need.files else _images(need, spec, data, quick))
    return findings


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
        rows = {name: mmeb.rows_path(name, data) for name in parts}
        there = tuple(name for name, path in rows.items() if path.exists())

        def read(path: Path) -> Any:
            return mmeb.read_data_set(path.name.removesuffix(path.suffix), spec, data)

        folder = Path(data) / mmeb.IMAGES
        return [Need(sources[0], tuple(rows.values()), read=read), Need(sources[1], folder=folder, parts=there)]
    if spec.benchmark == "fashioniq":
        root, images = fashioniq.folders(data, spec)
        names = [f"captions/cap.{part}.{spec.split}.json" for part in parts]
        names += [f"image_splits/split.{part}.{spec.split}.json" for part in parts]
        return [Need(sources[0], tuple(root / name for name in names)), Need(sources[1], folder=images)]
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
    own = Path(data) / spec.benchmark
    folders = [own, Path(data)] if own.is_dir() else [Path(data)]
    return max(folders, key=lambda folder: sum(_begun(need) for need in needs(spec, folder)))


def _begun(need: Need) -> bool:
    return any(path.exists() for path in need.files) or (need.folder is not None and need.folder.exists())


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


def _images(need: Need, spec: BenchmarkSpec, data: str | Path, quick: bool) -> Finding:
    # rows on the Hub are not read to learn which images they name
    if spec.source and not need.parts:
        return Finding(need)
    try:
        benchmarks = read_benchmark(replace(spec, parts=need.parts or spec.parts), data, check=False)
    except EvaluationError:
        return Finding(need)
    paths: dict[str, Path] = {}
    missing = []
    for benchmark in benchmarks:
        images: Any = benchmark.image
        shown = [*benchmark.gallery.values(), *(query.input for query in benchmark.queries)]
        for name in dict.fromkeys(one.image for one in shown if one.image is not None):
            path = images.find(name)
            if path is None:
                missing.append(name)
            else:
                paths[str(path)] = Path(path)
    faults = {} if quick else find_faults(list(paths.values()))
    unreadable = [f"{path.name} ({fault})" for path, fault in faults.items()]
    # crops of one image are one file
    absent = sorted({name.partition("@")[0] for name in missing})
    return Finding(need, len(paths) - len(unreadable), len(paths) + len(absent), absent, unreadable)


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
