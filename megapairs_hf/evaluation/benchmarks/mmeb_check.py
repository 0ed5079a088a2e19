"""The data check of MMEB: which of the 36 sets of rows are there, and which images are not.

What surprises: the rows can be read from the Hub without a copy, the images cannot, because they are one archive.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megapairs_hf.core.config import read_yaml
from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.evaluation.benchmarks.check_data import Finding, Need, broken_images, page
from megapairs_hf.evaluation.benchmarks.mmeb import SUFFIXES, MMEBConfig, read_mmeb
from megapairs_hf.evaluation.benchmarks.spec import Source

if TYPE_CHECKING:
    from collections.abc import Sequence


def examine_mmeb(config: MMEBConfig, path: str | Path, *, quick: bool = False) -> list[Finding]:
    """What of MMEB is there: the rows of each data set in a copy, and their images.

    Args:
        config: the settings.
        path: the YAML, which says where each part is had.
        quick: only whether the images are there, without reading them.
    """
    settings = read_yaml(path)
    license = str(settings.get("license", ""))
    folder = Path(config.source) if Path(config.source).is_dir() else Path(config.images).parent
    rows = Source(f"rows of {len(config.names)} data sets", settings["sources"]["rows"], license)
    images = Source("images (the unpacked images.zip)", settings["sources"]["images"], license)
    listed = Finding(Need(rows, folder=folder), expected=len(config.names))
    needed: dict[str, None] = {}
    for name in config.names:
        if not any((folder / f"{name}{suffix}").exists() for suffix in SUFFIXES):
            listed.missing.append(name)
            continue
        try:
            benchmark = read_mmeb(name, config)
        except EvaluationError as error:
            listed.unreadable.append(str(error))
            continue
        listed.present += 1
        parts = [*benchmark.gallery.values(), *(query.input for query in benchmark.queries)]
        needed |= dict.fromkeys(part.image for part in parts if part.image)
    root = Path(config.images)
    absent = [name for name in needed if not (root / name).is_file()]
    broken = [] if quick else broken_images([root / name for name in needed.keys() - set(absent)])
    good = len(needed) - len(absent) - len(broken)
    image_finding = Finding(Need(images, folder=root), good, len(needed), absent, sorted(broken))
    return [listed, image_finding]


def mmeb_report(config: MMEBConfig, findings: Sequence[Finding], data: str) -> str:
    """The findings as a page to act on."""
    text = page("mmeb", "mmeb", data, findings)
    if not Path(config.source).is_dir():
        text += f"\nWithout a copy of the rows they are read from {config.source} on the Hub."
    return text
