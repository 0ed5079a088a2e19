"""How much of the text is best: recall@k of `weimocir A` over α, for one or several models, as a table and a plot.

    python eval/sweep.py MODEL [MODEL ...] --benchmark cirr --data DIR --out alpha.svg

Choose α on another split than the one that is reported (WeiMoCIR, arXiv:2409.04918).
"""

import argparse
import sys

from megapairs_hf.cli import guarded
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.progress import note, show
from megapairs_hf.evaluation.benchmarks.check_data import data_folder
from megapairs_hf.evaluation.benchmarks.load import read_benchmark
from megapairs_hf.evaluation.benchmarks.spec import protocol_flags, read_specs
from megapairs_hf.evaluation.encode import encode_gallery
from megapairs_hf.evaluation.methods.zero_shot import encode_sides
from megapairs_hf.evaluation.results_table import markdown_grid
from megapairs_hf.evaluation.run import limited
from megapairs_hf.evaluation.sweep import draw_sweep, sweep
from megapairs_hf.models.loading import load_model


def main() -> int:
    """Encode, sweep, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--benchmark", required=True, help="circo, cirr, fashioniq, genecis, or a file")
    protocol_flags(parser)
    parser.add_argument("--limit", type=int, metavar="N", help="the first N queries only")
    parser.add_argument("--k", type=int, default=1, metavar="K", help="of recall@k (default: 1)")
    parser.add_argument("--alphas", type=float, nargs="+", metavar="A", default=[n / 10 for n in range(11)])
    parser.add_argument("--loader", choices=("mmret", "sentence-transformers"), default="mmret")
    parser.add_argument("--device", metavar="D")
    parser.add_argument("--out", required=True, metavar="FILE", help="a .svg or .png file")
    options = parser.parse_args()
    run(options)
    return 0


def run(options: argparse.Namespace) -> None:
    """One curve for each model and part of the benchmark."""
    [spec] = read_specs([options.benchmark], options.split, options.changes)
    if spec.benchmark == "mmeb" or not options.out.endswith((".svg", ".png")):
        raise ConfigError("name circo, cirr, fashioniq or genecis, and an --out that ends in .svg or .png")
    benchmarks = [limited(one, options.limit) for one in read_benchmark(spec, data_folder(options.data, spec))]
    curves = {}
    for name in options.models:
        model = load_model(name, options.loader, None, options.device)
        for benchmark in benchmarks:
            sides = encode_sides(model, benchmark, encode_gallery(model, benchmark))
            label = f"{name}, {benchmark.part}" if benchmark.part else name
            curves[label] = sweep(benchmark, sides, options.alphas, options.k)
    grid = [[f"model, recall@{options.k} by α", *(f"{alpha:g}" for alpha in options.alphas)]]
    grid += [[label, *(f"{100 * value:.1f}" for _, value in points)] for label, points in curves.items()]
    show(markdown_grid(grid, 1))
    draw_sweep(curves, options.out, f"recall@{options.k}")
    note(options.out)


if __name__ == "__main__":
    sys.exit(guarded(main))
