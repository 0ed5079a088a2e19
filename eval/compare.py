"""Results of several runs in one table, beside the published numbers, with a paired test.

    python eval/compare.py results/base results/large              a Markdown table
    python eval/compare.py results/base --published                and the papers' rows, table and row cited
    python eval/compare.py results/base results/large --latex
    python eval/compare.py results/base results/large --paired recall@1

Folders are those that `megapairs eval … --out` wrote. The paired test takes, for each benchmark and part, the first
folder's first model against every other folder, model and strategy, on the same queries.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.artifacts.workspace import read_results
from megapairs_hf.cli import guarded
from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.progress import show
from megapairs_hf.evaluation import paired_test, published_results, results_table
from megapairs_hf.evaluation.benchmarks.mmeb_means import SET, mean_records
from megapairs_hf.evaluation.comparability import rule_of
from megapairs_hf.evaluation.fingerprints import folder_labels
from megapairs_hf.evaluation.part_means import join_parts

REFERENCE = Path(__file__).with_name("reference")


def main() -> int:
    """Read, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", metavar="DIR")
    parser.add_argument("--published", action="store_true", help="add the papers' numbers")
    parser.add_argument("--latex", action="store_true", help="LaTeX instead of Markdown")
    parser.add_argument("--paired", metavar="METRIC", help="recall@k, map@k or precision@1")
    options = parser.parse_args()
    compare(options)
    return 0


def compare(options: argparse.Namespace) -> None:
    """Print what the words ask for."""
    artifacts = [open_artifact(folder, "results") for folder in options.results]
    # tasks or categories that were measured apart give their mean
    records = named_apart(join_parts({folder: read_results(folder) for folder in options.results}))
    # a table of 36 columns reads badly; MMEB is told by its means
    shown = [record for record in records if not record["benchmark"].startswith(SET)] + mean_records(records)
    show(results_table.latex_table(shown) if options.latex else results_table.markdown_table(shown))
    if options.published:
        numbers = [
            number for path in sorted(REFERENCE.glob("*.yaml")) for number in published_results.read_reference(path)
        ]
        show("\n" + published_results.published_table(shown, numbers))
    if options.paired:
        paired(options, [artifact.table().to_pylist() for artifact in artifacts])


def named_apart(records: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """All records; where two folders measured one model on one benchmark, the model's name tells the folder."""
    measured = Counter(
        key for some in records.values() for key in {(r["model"], r["strategy"], r["benchmark"]) for r in some}
    )
    if max(measured.values(), default=1) < len(("one", "other")):
        return [record for some in records.values() for record in some]
    labels = folder_labels(list(records))
    return [{**r, "model": f"{labels[folder]}: {r['model']}"} for folder, some in records.items() for r in some]


def paired(options: argparse.Namespace, tables_of: list[list[dict[str, Any]]]) -> None:
    """One test for each benchmark, split and part, of the first run against every other one."""
    measured: dict[str, dict[tuple[str, str, str], list[dict[str, Any]]]] = {}
    for folder, rows in zip(options.results, tables_of, strict=True):
        records = read_results(folder)
        splits = {record["benchmark"]: record["split"] for record in records}
        groups = {f"{record['benchmark']}/{record['group']}" for record in records if record.get("group")}
        # two rules of ranking are two benchmarks: a test between them would compare the rules
        rules = {record["benchmark"]: rule_of(record) for record in records}
        for row in rows:
            name = next(name for name in splits if row["query"].startswith(f"{name}/"))
            part = next((group for group in groups if row["query"].startswith(f"{group}/")), name)
            label = f"{part} {splits[name]}" + (f", {rules[name]}" if rules[name] else "")
            key = (str(folder), row["model"], row["strategy"])
            measured.setdefault(label, {}).setdefault(key, []).append(row)
    tests = 0
    for name, runs in measured.items():
        first, *others = runs
        for other in others:
            values = [paired_test.values_of(runs[key], options.paired, *key[1:]) for key in (first, other)]
            result = paired_test.paired_test(*values)
            same = first[1:] == other[1:]
            names = " - ".join(f"{key[1]} ({key[2]})" + (f" of {key[0]}" if same else "") for key in (first, other))
            counts = f"{result.better} queries better, {result.worse} worse, of {result.queries:,}"
            gap = f"{100 * result.difference:+.1f} points, p = {result.p_value:.3g}"
            show(f"\n{name}, {options.paired}: {names} = {gap} ({result.test} test, {counts})")
            tests += 1
    if not tests:
        raise EvaluationError("there are no two runs of one benchmark to compare; name another folder or strategy")


if __name__ == "__main__":
    sys.exit(guarded(main))
