"""`megapairs explore SOURCE`: the rows of an artifact or a data set on a page, to read, filter and mark."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from megapairs_hf.cli.flags import Prepare


def explore(parser: argparse.ArgumentParser) -> Prepare:
    """`megapairs explore SOURCE`."""
    from megapairs_hf.cli.flags import add_settings
    from megapairs_hf.search.explorer.config import ExploreConfig

    parser.description = "A page on which triplets, pairs, texts, images and rejected rows are read and marked."
    parser.add_argument(
        "source",
        metavar="ARTIFACT|WORK|DATASET|HUB_ID|FILE",
        help="an artifact's folder, a work folder, a data set of triplets (its folder, or its id on the Hub), or a"
        " file of rows",
    )
    parser.add_argument("--corpus", metavar="DIR", help="where the images are (default: beside SOURCE)")
    add_settings(parser, ExploreConfig)
    return lambda options: functools.partial(_explore, options)


def _explore(options: argparse.Namespace) -> int:
    from megapairs_hf.cli.flags import nested, selected
    from megapairs_hf.core.config import build_config
    from megapairs_hf.core.dependencies import require
    from megapairs_hf.search.explorer.config import ExploreConfig
    from megapairs_hf.search.explorer.sources import open_source

    config = build_config(ExploreConfig, nested(selected(options, ExploreConfig)), "explore")
    require("search", "explore", "gradio")
    from megapairs_hf.search.explorer.app import make_app, make_session
    from megapairs_hf.search.page.serve import serve

    session = make_session(open_source(options.source, options.corpus), config)
    serve(lambda _: make_app(session, config), config, "explorer")
    return 0
