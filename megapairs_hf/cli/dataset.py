"""`megapairs dataset import|export`: the released format, both ways."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from megapairs_hf.cli.flags import add_settings, nested, selected
from megapairs_hf.core.config import build_config

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from megapairs_hf.cli.flags import Prepare
    from megapairs_hf.dataset.config import ImportConfig


def dataset(parser: argparse.ArgumentParser) -> Prepare:
    """`megapairs dataset WHAT …`."""
    from megapairs_hf.dataset.config import ImportConfig

    parser.description = "The released format, both ways."
    commands = parser.add_subparsers(dest="what", required=True, metavar="import|export")
    text = "the released format (JSON lines and a folder of images) to triplets"
    reader = commands.add_parser("import", help=text, description=text)
    reader.add_argument("lines", metavar="LINES.jsonl", help="q_img, q_text, t_img, hns")
    reader.add_argument("images", metavar="FOLDER", help="what the paths in it are relative to")
    reader.add_argument(
        "--out", default="work/triplets", metavar="DIR", help="output directory (default: work/triplets)"
    )
    reader.add_argument("--validation", metavar="F.jsonl", help="lines of the validation split")
    reader.add_argument("--overwrite", action="store_true", help="overwrite what is there")
    add_settings(reader, ImportConfig)
    text = "triplets to the released format"
    writer = commands.add_parser("export", help=text, description=text)
    writer.add_argument("folder", metavar="FOLDER", help="the triplets")
    writer.add_argument("out", metavar="OUT", help="a new or empty folder for the lines and the images")

    def prepare(options: argparse.Namespace) -> Callable[[], int]:
        if options.what == "export":
            return functools.partial(_export, options.folder, options.out)
        config = build_config(ImportConfig, nested(selected(options, ImportConfig)), "dataset import")
        return functools.partial(_import, options, config)

    return prepare


def _import(options: argparse.Namespace, config: ImportConfig) -> int:
    from megapairs_hf.cli.stage import note_artifact
    from megapairs_hf.dataset.megapairs_format.importer import import_megapairs

    note_artifact(
        import_megapairs(
            options.lines,
            options.images,
            config=config,
            out=options.out,
            validation=options.validation,
            overwrite=options.overwrite,
        )
    )
    return 0


def _export(folder: str, out: str) -> int:
    from megapairs_hf.artifacts.artifact import open_artifact
    from megapairs_hf.dataset.megapairs_format.exporter import export_megapairs

    for path in export_megapairs(open_artifact(folder, "triplets"), out).values():
        print(path)  # noqa: T201
    return 0
