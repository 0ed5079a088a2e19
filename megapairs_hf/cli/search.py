"""`megapairs search index|query|serve|votes`: an index of images, what is found in it, the page, and its votes."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from megapairs_hf.cli.flags import Prepare
    from megapairs_hf.search.index import SearchIndex
    from megapairs_hf.search.page.opening import Report
    from megapairs_hf.search.results import SearchResults

# MMRet-base as its authors released it
DEFAULT_MODEL = "BAAI/BGE-VL-base"


def search(parser: argparse.ArgumentParser) -> Prepare:
    """`megapairs search WHAT …`."""
    parser.description = "Find images by an image, a text, or both."
    commands = parser.add_subparsers(dest="what", required=True, metavar="index|query|serve|votes")
    _add_index(commands)
    _add_query(commands)
    _add_serve(commands)
    _add_votes(commands)
    calls = {"index": _index, "query": _query, "serve": _serve, "votes": _votes}
    return lambda options: functools.partial(calls[options.what], options)


def _add_index(commands: Any) -> None:
    from megapairs_hf.cli.flags import add_settings
    from megapairs_hf.search.config import SearchConfig

    text = "Embed images and write an index; run it again after images were added, changed or removed."
    parser = commands.add_parser("index", help=text, description=text)
    parser.add_argument(
        "words",
        nargs="+",
        metavar="[MODEL] IMAGES",
        help=f"the model (folder or Hub id; default: {DEFAULT_MODEL}), and the images: a folder, a corpus, a file of"
        " rows, or a data set on the Hub",
    )
    parser.add_argument("--out", required=True, metavar="IDX", help="the folder of the index")
    parser.add_argument("--overwrite", action="store_true", help="replace an index of something else")
    add_settings(parser, SearchConfig)


def _add_query(commands: Any) -> None:
    text = "Search an index."
    parser = commands.add_parser("query", help=text, description=text)
    parser.add_argument("index", metavar="IDX", help="the folder of the index")
    parser.add_argument("--image", metavar="FILE", help="the image of the query")
    parser.add_argument("--text", metavar="TEXT", help="what to find, or how it shall differ from the image")
    parser.add_argument("--queries", metavar="F.jsonl", help="many queries: image, text, or both in each line")
    parser.add_argument(
        "--weight",
        type=float,
        metavar="W",
        help="of the image, 0 to 1 (default: the index' own, or the model's fusion)",
    )
    parser.add_argument("-k", "--k", type=int, default=10, metavar="INT", help="results (default: 10)")
    parser.add_argument("--exclude", nargs="+", default=[], metavar="ID", help="ids to leave out")
    parser.add_argument(
        "--hide-near-duplicates",
        type=float,
        metavar="COSINE",
        help="leave out images that are as like to the query image as this, such as 0.96",
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON per query instead of a table")
    parser.add_argument("--html", metavar="F.html", help="write a page with the images too")


def _add_serve(commands: Any) -> None:
    from megapairs_hf.cli.flags import add_settings
    from megapairs_hf.search.page.config import PageConfig

    text = "A page on which an index is searched."
    parser = commands.add_parser("serve", help=text, description=text)
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="IDX|WORK",
        help="one index, two that stand side by side, or the work folder of a recipe, whose indexes are built first",
    )
    parser.add_argument("--no-compare", action="store_true", help="of a work folder, the trained model alone")
    add_settings(parser, PageConfig)


def _add_votes(commands: Any) -> None:
    from megapairs_hf.cli.flags import add_settings
    from megapairs_hf.search.config import VotesConfig

    text = "Thumbs up and down of the page as a data set of triplets, to train on or to measure by."
    parser = commands.add_parser("votes", help=text, description=text)
    parser.add_argument("index", metavar="IDX", help="the index that was searched")
    parser.add_argument("--votes", metavar="F.jsonl", help="the votes (default: IDX/votes.jsonl)")
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder of the data set")
    parser.add_argument("--overwrite", action="store_true", help="overwrite what is there")
    add_settings(parser, VotesConfig)


def _index(options: argparse.Namespace) -> int:
    from megapairs_hf.cli.flags import nested, selected
    from megapairs_hf.core.config import build_config
    from megapairs_hf.core.dependencies import require
    from megapairs_hf.core.errors import ConfigError
    from megapairs_hf.core.progress import note
    from megapairs_hf.search.config import SearchConfig
    from megapairs_hf.search.index import SearchIndex

    if len(options.words) > 2:
        raise ConfigError(f"give a model and the images, or the images alone, not {len(options.words)} words")
    model, images = [DEFAULT_MODEL, *options.words][-2:]
    config = build_config(SearchConfig, nested(selected(options, SearchConfig)), "search index")
    require("search", "search index", "torch", "sentence_transformers", "faiss")
    index = SearchIndex.build(model, images, options.out, config=config, overwrite=options.overwrite)
    if index.weight is not None:
        note(f"weight of the image in a query: {index.weight:g}, fitted on {index.record.weight_from}")
    print(index.folder)  # noqa: T201
    return 0


def _query(options: argparse.Namespace) -> int:
    from megapairs_hf.core.errors import ConfigError
    from megapairs_hf.search.index import SearchIndex
    from megapairs_hf.search.query_file import FileQuery, read_queries

    alone = options.image or options.text
    if bool(alone) == bool(options.queries):
        raise ConfigError("give --image, --text or both, or a file of --queries")
    image = Path(options.image) if options.image else None
    queries = read_queries(options.queries) if options.queries else [FileQuery("", image, options.text or "", None)]
    index = SearchIndex.open(options.index)
    results_of = [(query, _one(index, query, options)) for query in queries]
    if options.html:
        from megapairs_hf.search.results_page import write_page

        contents = [(q.image.read_bytes() if q.image else None, q.text, results) for q, results in results_of]
        print(write_page(index, contents, Path(options.html)))  # noqa: T201
    if not options.html or options.json:
        for query, results in results_of:
            print(_shown(query.id, results, as_json=options.json or len(results_of) > 1))  # noqa: T201
    return 0


def _one(index: SearchIndex, query: Any, options: argparse.Namespace) -> SearchResults:
    return index.query(
        None if query.image is None else str(query.image),
        query.text or None,
        weight=options.weight if query.weight is None else query.weight,
        k=options.k,
        exclude=options.exclude,
        hide_near_duplicates=options.hide_near_duplicates,
    )


def _shown(name: str, results: SearchResults, *, as_json: bool) -> str:
    if not as_json:
        return str(results)
    values = json.loads(results.to_json())
    return json.dumps({"id": name, **values} if name else values)


def _serve(options: argparse.Namespace) -> int:
    from megapairs_hf.cli.flags import nested, selected
    from megapairs_hf.core.config import build_config
    from megapairs_hf.core.dependencies import require
    from megapairs_hf.search.config import SearchConfig
    from megapairs_hf.search.page.config import PageConfig

    config = build_config(PageConfig, nested(selected(options, PageConfig)), "search serve")
    require("search", "search serve")
    from megapairs_hf.search.page.serve import serve
    from megapairs_hf.search.page.sources import banner_of, open_sources, sources_of

    sources, banner = sources_of(options.paths, compare=not options.no_compare), banner_of(options.paths)

    def make(report: Report) -> Any:
        from megapairs_hf.search.page.app import make_app

        return make_app(open_sources(sources, SearchConfig(), report), config, banner=banner)

    serve(make, config)
    return 0


def _votes(options: argparse.Namespace) -> int:
    from megapairs_hf.cli.flags import nested, selected
    from megapairs_hf.cli.stage import note_artifact
    from megapairs_hf.core.config import build_config
    from megapairs_hf.search.config import VotesConfig
    from megapairs_hf.search.index import SearchIndex
    from megapairs_hf.search.vote_triplets import triplets_of_votes

    config = build_config(VotesConfig, nested(selected(options, VotesConfig)), "search votes")
    index = SearchIndex.open(options.index)
    artifact = triplets_of_votes(index, options.out, votes=options.votes, config=config, overwrite=options.overwrite)
    note_artifact(artifact)
    return 0
