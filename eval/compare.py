"""Results of several runs in one table, beside the published numbers, with a paired test.

    python eval/compare.py results/base results/large              a Markdown table
    python eval/compare.py results/base --published                and the papers' rows, table and row cited
    python eval/compare.py results/base results/large --latex
    python eval/compare.py results/base results/large --paired recall@1

Folders are those that `megapairs eval … --out` wrote. The paired test takes the first folder's first model against
every other model and strategy, on the same queries.
"""

import argparse
import sys
from pathlib import Path

from megapairs_hf.artifact import open_artifact
from megapairs_hf.errors import MegaPairsError
from megapairs_hf.evaluation import tables
from megapairs_hf.evaluation.mmeb_means import SET, mean_records
from megapairs_hf.evaluation.stage import read_results

REFERENCE = Path(__file__).with_name("reference")


def main() -> int:
    """Read, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", metavar="DIR")
    parser.add_argument("--published", action="store_true", help="add the papers' numbers")
    parser.add_argument("--latex", action="store_true", help="LaTeX instead of Markdown")
    parser.add_argument("--paired", metavar="METRIC", help="recall@k, map@k or precision@1")
    options = parser.parse_args()
    try:
        compare(options)
    except MegaPairsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def compare(options: argparse.Namespace) -> None:
    """Print what the words ask for."""
    opened = [open_artifact(folder, "results") for folder in options.results]
    records = [record for folder in options.results for record in read_results(folder)]
    # a table of 36 columns reads badly; MMEB is told by its means
    shown = [record for record in records if not record["benchmark"].startswith(SET)] + mean_records(records)
    print(tables.latex_table(shown) if options.latex else tables.markdown_table(shown))
    if options.published:
        numbers = [number for path in sorted(REFERENCE.glob("*.yaml")) for number in tables.read_reference(path)]
        print("\n" + tables.published_table(shown, numbers))
    if options.paired:
        rows = [row for artifact in opened for row in artifact.table().to_pylist()]
        first, *others = dict.fromkeys((row["model"], row["strategy"]) for row in rows)
        values = tables.values_of(rows, options.paired, *first)
        for other in others:
            found = tables.paired_test(values, tables.values_of(rows, options.paired, *other))
            names = " - ".join(f"{model} ({strategy})" for model, strategy in (first, other))
            counts = f"{found.better} queries better, {found.worse} worse, of {found.queries:,}"
            gap = f"{100 * found.difference:+.1f} points, p = {found.p_value:.3g}"
            print(f"\n{options.paired}: {names} = {gap} ({found.test} test, {counts})")


if __name__ == "__main__":
    sys.exit(main())
