"""What several models found first, side by side (MegaPairs, figure 6), from results that are there.

    python eval/sheet.py results/base results/large --benchmark circo --data DIR --out sheets

Folders are those that `megapairs eval ... --out` wrote. Each part of the benchmark gives a page that holds its
images. Queries are sampled by `--seed`; right answers are outlined.
"""

import argparse
import sys
from pathlib import Path

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.cli import guarded
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.progress import show
from megapairs_hf.evaluation.benchmarks.check_data import data_folder
from megapairs_hf.evaluation.benchmarks.load import read_benchmark
from megapairs_hf.evaluation.benchmarks.spec import protocol_flags, read_specs
from megapairs_hf.evaluation.fingerprints import folder_labels
from megapairs_hf.evaluation.qualitative import draw_views, html_sheet, stored_rankings
from megapairs_hf.evaluation.run import limited


def main() -> int:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", metavar="DIR")
    parser.add_argument("--benchmark", required=True, help="circo, cirr, fashioniq, genecis, or a file")
    protocol_flags(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="as the results were made")
    parser.add_argument("--count", type=int, default=10, metavar="N", help="queries (default: 10)")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="candidates of each ranking (default: 5)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the draw (default: 0)")
    parser.add_argument("--out", required=True, metavar="DIR", help="where the pages go")
    options = parser.parse_args()
    draw(options)
    return 0


def draw(options: argparse.Namespace) -> None:
    """Write a page for each part."""
    [spec] = read_specs([options.benchmark], options.split, options.changes)
    if spec.benchmark == "mmeb":
        raise ConfigError("sheets show one gallery for all queries; name circo, cirr, fashioniq or genecis")
    tables = {folder: open_artifact(folder, "results").table().to_pylist() for folder in options.results}
    labels = folder_labels(options.results)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    for whole in read_benchmark(spec, data_folder(options.data, spec)):
        benchmark = limited(whole, options.limit)
        ranked = {}
        for folder, rows in tables.items():
            # two folders may hold models of one name
            ranked |= stored_rankings(benchmark, rows, f"{labels[folder]}: " if len(tables) > 1 else "")
        views = draw_views(benchmark, ranked, options.count, options.seed, options.top)
        path = out / "-".join(filter(None, (benchmark.name, benchmark.split, benchmark.part)))
        path.with_suffix(".html").write_text(html_sheet(benchmark, views), encoding="utf-8")
        show(str(path.with_suffix(".html")))


if __name__ == "__main__":
    sys.exit(guarded(main))
