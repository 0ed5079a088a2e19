"""`megapairs dataset import|export`: the released format of MegaPairs."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from megapairs_hf.core.progress import show

if TYPE_CHECKING:
    import argparse

    from megapairs_hf.cli.flags import Prepare


def dataset(parser: argparse.ArgumentParser) -> Prepare:
    """`megapairs dataset WHAT …`."""
    from megapairs_hf.cli.flags import add_settings
    from megapairs_hf.dataset.config import ImportConfig

    parser.description = "The released format, both ways."
    commands = parser.add_subparsers(dest="what", required=True, metavar="import|export")
    text = "the released format (JSON lines and a folder of images) to triplets"
    reader = commands.add_parser("import", help=text, description=text)
    reader.add_argument("lines", metavar="LINES.jsonl", help="q_img, q_text, t_img, hns")
    reader.add_argument("images", metavar="FOLDER", help="what the paths in it are relative to")
    reader.add_argument("--out", default="work/triplets", metavar="DIR", help="output (default: %(default)s)")
    reader.add_argument("--validation", metavar="F.jsonl", help="lines of the validation split")
    reader.add_argument("--overwrite", action="store_true", help="overwrite what is there")
    add_settings(reader, ImportConfig)
    text = "triplets to the released format"
    writer = commands.add_parser("export", help=text, description=text)
    writer.add_argument("folder", metavar="FOLDER", help="the triplets")
    writer.add_argument("out", metavar="OUT", help="a new or empty folder for the lines and the images")
    return lambda options: functools.partial({"import": _import, "export": _export}[options.what], options)


def _import(options: argparse.Namespace) -> int:
    from megapairs_hf.cli.flags import nested, selected
    from megapairs_hf.cli.stage import note_artifact
    from megapairs_hf.core.config import build_config
    from megapairs_hf.dataset.config import ImportConfig
    from megapairs_hf.dataset.megapairs_format.importer import import_megapairs

    artifact = import_megapairs(
        options.lines,
        options.images,
        config=build_config(ImportConfig, nested(selected(options, ImportConfig)), "dataset import"),
        out=options.out,
        validation=options.validation,
        overwrite=options.overwrite,
    )
    note_artifact(artifact)
    return 0


def _export(options: argparse.Namespace) -> int:
    from megapairs_hf.artifacts.artifact import open_artifact
    from megapairs_hf.dataset.megapairs_format.exporter import export_megapairs

    for path in export_megapairs(open_artifact(options.folder, "triplets"), options.out).values():
        show(str(path))
    return 0
