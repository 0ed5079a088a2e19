"""`megapairs dataset import|export|view|remove|sheet`: what is done with a finished data set."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from megapairs_hf.cli.flags import Prepare


def dataset(parser: argparse.ArgumentParser) -> Prepare:
    """`megapairs dataset WHAT …`."""
    parser.description = "What is done with a finished data set."
    commands = parser.add_subparsers(dest="what", required=True, metavar="import|export|view|remove|sheet")
    _import_flags(commands.add_parser("import", help="the released format (JSON lines and a folder) to triplets"))
    export = commands.add_parser("export", help="triplets to the released format")
    export.add_argument("folder", metavar="FOLDER", help="the triplets")
    export.add_argument("out", metavar="OUT", help="where the lines and the images go")
    export.add_argument("--flag-embedding", action="store_true", help="write FlagEmbedding's lines instead")
    view = commands.add_parser("view", help="rows as training sees them, as JSON lines with image ids")
    view.add_argument("folder", metavar="FOLDER_OR_REPO", help="the triplets, or a data set on the Hub")
    view.add_argument("--split", default="train", help="train (default) or validation")
    view.add_argument("--rows", type=int, default=5, help="rows to show (default: 5)")
    view.add_argument("--negatives", type=int, default=4, help="hard negatives a row (default: 4)")
    view.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    view.add_argument("--epoch", type=int, default=0, help="of the draws (default: 0)")
    remove = commands.add_parser("remove", help="take images out, and the triplets that need them")
    remove.add_argument("folder", metavar="FOLDER", help="the triplets")
    remove.add_argument("--image-ids", required=True, metavar="A,B|@FILE", help="ids, or a file with one a line")
    remove.add_argument("--ignore-missing", action="store_true", help="pass over ids that the data set lacks")
    remove.add_argument("--min-negatives", type=int, help="fewest of a triplet that stays (default: as it was built)")
    sheet = commands.add_parser("sheet", help="what the data set holds, was made of and cost")
    sheet.add_argument("work", metavar="WORK", help="folder of the pipeline")
    sheet.add_argument("--json", action="store_true", help="as JSON instead of Markdown")
    return lambda options: functools.partial(CALLS[options.what], options)


def _import_flags(parser: argparse.ArgumentParser) -> None:
    from megapairs_hf.cli.flags import attribute_help
    from megapairs_hf.dataset.config import ImportConfig

    parser.add_argument("lines", metavar="LINES.jsonl", help="q_img, q_text, t_img, hns")
    parser.add_argument("images", metavar="FOLDER", help="what the paths in it are relative to")
    parser.add_argument("--out", default="work/triplets", metavar="DIR", help="default: work/triplets")
    parser.add_argument("--validation", metavar="F.jsonl", help="lines of the validation split")
    parser.add_argument("--overwrite", action="store_true", help="throw away what is there")
    told = attribute_help(ImportConfig)
    for field in dataclasses.fields(ImportConfig):
        name = "--" + field.name.replace("_", "-")
        parser.add_argument(
            name,
            dest=field.name,
            type=int,
            default=field.default,
            help=f"{told[field.name]} (default: {field.default})",
        )


def _import(options: argparse.Namespace) -> int:
    from megapairs_hf.cli.stage import note_artifact
    from megapairs_hf.dataset.config import ImportConfig
    from megapairs_hf.dataset.megapairs_format.importer import import_megapairs

    config = ImportConfig(**{f.name: getattr(options, f.name) for f in dataclasses.fields(ImportConfig)})
    where: dict[str, Any] = {"out": options.out, "validation": options.validation, "overwrite": options.overwrite}
    note_artifact(import_megapairs(options.lines, options.images, config=config, **where))
    return 0


def _export(options: argparse.Namespace) -> int:
    from megapairs_hf.artifacts.artifact import open_artifact
    from megapairs_hf.dataset.megapairs_format.exporter import export_megapairs

    artifact = open_artifact(options.folder, "triplets")
    for path in export_megapairs(artifact, options.out, flag_embedding=options.flag_embedding).values():
        print(path)  # noqa: T201
    return 0


def _view(options: argparse.Namespace) -> int:
    from megapairs_hf.core.config import require
    from megapairs_hf.dataset.load import load_triplets
    from megapairs_hf.dataset.views import draw

    require(options.negatives >= 1, "negatives", options.negatives, "at least 1 (the query image)")
    require(options.rows >= 0, "rows", options.rows, "a number of rows")
    triplets = load_triplets(options.folder, options.split)
    for row in triplets.ids(range(min(options.rows, len(triplets)))):
        text, negatives = draw(row, options.negatives, f"{options.seed}/{options.epoch}")
        shown = {"anchor": {"text": text, "image": row["q_img"]}, "positive": row["t_img"]}
        shown |= {f"negative_{i}": name for i, name in enumerate(negatives, start=1)}
        print(json.dumps(shown, ensure_ascii=False))  # noqa: T201
    return 0


def _remove(options: argparse.Namespace) -> int:
    from megapairs_hf.cli.stage import note_artifact
    from megapairs_hf.dataset.removal import read_ids, remove_images

    ids = read_ids(options.image_ids)
    note_artifact(
        remove_images(options.folder, ids, ignore_missing=options.ignore_missing, min_negatives=options.min_negatives)
    )
    return 0


def _sheet(options: argparse.Namespace) -> int:
    from megapairs_hf.dataset.sheet import datasheet, statistics

    told = (
        json.dumps(statistics(options.work), indent=2, ensure_ascii=False) if options.json else datasheet(options.work)
    )
    print(told)  # noqa: T201
    return 0


CALLS: dict[str, Callable[[argparse.Namespace], int]] = {
    "import": _import,
    "export": _export,
    "view": _view,
    "remove": _remove,
    "sheet": _sheet,
}
