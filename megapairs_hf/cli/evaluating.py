"""`megapairs eval MODEL BENCHMARK …`, `megapairs eval doctor BENCHMARK`, `megapairs eval --check-submission FILE`.

The form without a model, `megapairs eval --config F --work W`, is the stage of a recipe and is read by `parser.py`.
What surprises: --data may be the folder of one benchmark or of several, where each stands in a folder of its name.
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from megapairs_hf import launch
from megapairs_hf.config import parse_value
from megapairs_hf.dependencies import require
from megapairs_hf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from megapairs_hf.evaluation.mmeb import MMEBConfig
    from megapairs_hf.evaluation.run import Run
    from megapairs_hf.evaluation.specs import Spec

MMEB = "mmeb"
EPILOG = """examples:
  megapairs eval runs/demo/model circo cirr --data DIR --out results
  megapairs eval MODEL eval/fashioniq.yaml --set gallery=union --data DIR --out results
  megapairs eval MODEL circo --split test --data DIR --out results   writes the file for the server
  megapairs eval MODEL cirr --rerank yes-no --vlm NAME --vlm-urls URL --data DIR --out results
  megapairs eval MODEL mmeb --set datasets='[GQA, VOC2007]' --data DIR --out results
  megapairs eval doctor circo --data DIR                             what is there, and where to get the rest
  megapairs eval --check-submission FILE                             what is wrong with a file for a server
"""


def evaluating(words: list[str]) -> Callable[[], int]:
    """Read the words after `eval`.

    Args:
        words: the first is a model, `doctor`, or `--check-submission`.
    """
    if words[0].startswith("--check-submission"):
        from megapairs_hf.cli.checking import submission

        return submission(words)
    return _doctor(words[1:]) if words[0] == "doctor" else _benchmarks(words)


def _benchmarks(words: list[str]) -> Callable[[], int]:
    parser = argparse.ArgumentParser(
        "megapairs eval",
        description="A model on the benchmarks of the field.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id")
    parser.add_argument("benchmarks", metavar="BENCHMARK", nargs="+", help="name, or a file such as eval/circo.yaml")
    protocol_flags(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="where results and rankings go")
    parser.add_argument("--strategies", nargs="+", metavar="S", default=["fused"],
                        help="fused by the model (default), 'image only', 'text only', sum, product, 'weighted 0.7',"
                        " directional, CIReVL")  # fmt: skip
    parser.add_argument("--rerank", nargs="+", metavar="R", default=[],
                        help="also re-rank the first candidates by a model: yes-no, listwise")  # fmt: skip
    parser.add_argument("--rerank-top", type=int, default=10, metavar="K", help="how many of them (default: 10)")
    for name, does in (("vlm", "re-ranks, and captions for CIReVL"), ("llm", "edits captions (default: the VLM)")):
        parser.add_argument(f"--{name}", metavar="NAME", help=f"the model that {does}")
        parser.add_argument(f"--{name}-urls", nargs="+", metavar="URL", default=[],
                            help="where it is served, such as http://gpu-1:8080/v1")  # fmt: skip
    parser.add_argument("--limit", type=int, metavar="N", help="the first N queries only; the records say partial")
    parser.add_argument("--top", type=int, default=50, metavar="K", help="of each ranking to keep (default: 50)")
    parser.add_argument("--batch-size", type=int, default=128, metavar="B", help="pictures at a time (default: 128)")
    parser.add_argument("--cache", metavar="DIR", help="where vectors of galleries are kept for the next prompt")
    parser.add_argument("--name", metavar="NAME", help="of the model in the results (default: MODEL)")
    parser.add_argument("--revision", metavar="R", help="of the model on the Hub")
    parser.add_argument("--loader", choices=("mmret", "sentence-transformers"), default="mmret",
                        help="mmret fuses picture and text of any CLIP (default)")  # fmt: skip
    parser.add_argument("--device", metavar="D", help="where the model runs (default: its library's choice)")
    parser.add_argument("--overwrite", action="store_true", help="throw away what is there")
    return functools.partial(run_benchmarks, parser.parse_args(words))


def protocol_flags(parser: argparse.ArgumentParser) -> None:
    """Where a benchmark is, and what is changed of its protocol."""
    parser.add_argument("--data", required=True, metavar="DIR", help="annotations and pictures")
    parser.add_argument("--split", metavar="S", help="instead of the file's")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
                        help="a setting instead of the file's, such as prompt=searle; may be repeated")  # fmt: skip


def _doctor(words: list[str]) -> Callable[[], int]:
    parser = argparse.ArgumentParser(
        "megapairs eval doctor", description="What of a benchmark is there, and where to get the rest."
    )
    parser.add_argument("benchmarks", metavar="BENCHMARK", nargs="+", help="name, or a file such as eval/circo.yaml")
    protocol_flags(parser)
    parser.add_argument("--quick", action="store_true", help="only look whether pictures are there; read none")
    options = parser.parse_args(words)

    def call() -> int:
        from megapairs_hf.evaluation.doctor import data_folder, examine, report
        from megapairs_hf.evaluation.mmeb_data import examine_mmeb, mmeb_report

        mmeb = mmeb_of(options)
        if mmeb is not None:
            print(mmeb_report(mmeb[0], examine_mmeb(*mmeb, quick=options.quick), options.data))  # noqa: T201
        for spec in specs_of(options):
            data = data_folder(options.data, spec)
            print(report(spec, data, examine(spec, data, quick=options.quick)))  # noqa: T201
        return 0

    return call


@dataclass(frozen=True)
class EvalRun:
    """What decides the results of one command, for the manifest.

    Attributes:
        model: as it was named.
        specs: the protocols.
        run: strategies and sizes.
        limit: queries of each benchmark; None for all.
        loader: how the model was loaded.
    """

    model: str
    specs: tuple[Any, ...]
    run: Any
    limit: int | None
    loader: str


def run_benchmarks(options: argparse.Namespace) -> int:
    """Measure, write, and print."""
    require("models", "eval")
    from megapairs_hf.artifact import weights_fingerprint
    from megapairs_hf.config import build_config
    from megapairs_hf.evaluation.cache import Cache
    from megapairs_hf.evaluation.doctor import data_folder
    from megapairs_hf.evaluation.identity import benchmark_digest, commit_of, mmeb_digests
    from megapairs_hf.evaluation.mmeb_means import run_mmeb
    from megapairs_hf.evaluation.questions import check_reachable
    from megapairs_hf.evaluation.reading import read_benchmark
    from megapairs_hf.evaluation.run import RunConfig, limited, run_model, write_runs
    from megapairs_hf.evaluation.stage import read_results
    from megapairs_hf.evaluation.submitting import check_top, check_written, label_of, submit

    config = build_config(RunConfig, run_values(options), "megapairs eval")
    mmeb = mmeb_of(options)
    specs = specs_of(options)
    benchmarks = [
        limited(benchmark, options.limit)
        for spec in specs
        for benchmark in read_benchmark(spec, data_folder(options.data, spec))
    ]
    check_top(benchmarks, config.top)
    check_reachable([asked for asked in (config.vlm, config.llm) if asked is not None])
    if mmeb is not None:
        pinned = commit_of(mmeb[0].source, mmeb[0].revision, "dataset") or mmeb[0].revision
        mmeb = replace(mmeb[0], revision=pinned), mmeb[1]
    commit = commit_of(options.model, options.revision)
    fingerprint = weights_fingerprint(options.model, commit)
    revision = commit or fingerprint_of(options.model)
    name = options.name or options.model
    runs: list[Run] = []

    def make() -> list[Run]:
        model = load_model(options.model, options.loader, commit, options.device)
        share = str(Path(options.out) / ".shares")
        vectors = None
        if options.cache:
            cache = Cache(options.cache, model, f"{options.loader} {fingerprint}", batch_size=config.batch_size)
            vectors = cache.gallery
        made = run_model(benchmarks, model, name=name, revision=revision, config=config, share=share, vectors=vectors)
        runs.extend(made)
        if mmeb is not None:
            runs.extend(
                run_mmeb(model, mmeb[0], name=name, revision=revision, run=config, share=share, vectors=vectors)
            )
        # before the artifact is finished: where a file cannot be written, the run is not done
        if launch.is_main():
            submit(runs, options.out)
        return runs

    protocols = (*specs, *([mmeb[0]] if mmeb is not None else []))
    settings = EvalRun(name, protocols, config, options.limit, options.loader)
    inputs = {"model": fingerprint, **{label_of(b): benchmark_digest(b) for b in benchmarks}}
    inputs |= mmeb_digests(mmeb[0]) if mmeb is not None else {}
    write_runs(make, out=options.out, config=settings, inputs=inputs, overwrite=options.overwrite)
    if launch.is_main():
        print(tables(read_results(options.out)))  # noqa: T201
        check_written(benchmarks, config.labels, options.out)
    return 0


def run_values(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of the run that the flags give.

    Raises:
        ConfigError: a model that is asked has no address, or an address no model.
    """
    values = {name: getattr(options, name) for name in ("strategies", "top", "batch_size", "rerank", "rerank_top")}
    for name in ("vlm", "llm"):
        model, urls = getattr(options, name), getattr(options, f"{name}_urls")
        if bool(model) != bool(urls):
            raise ConfigError(f"--{name} NAME and --{name}-urls URL belong together; give both")
        if model:
            values[name] = {"model": model, "endpoint": {"urls": urls}}
    return values


def specs_of(options: argparse.Namespace) -> list[Spec]:
    """The protocols that the words name, with what --split and --set change.

    Raises:
        ConfigError: a change is not `key=value`, or no setting; or one split is named twice.
    """
    from megapairs_hf.evaluation.specs import Spec, read_spec

    hints = get_type_hints(Spec)
    changes: dict[str, Any] = {"split": options.split} if options.split else {}
    for word in options.changes:
        key, equals, value = word.partition("=")
        if not equals:
            known = ", ".join(field.name for field in fields(Spec))
            raise ConfigError(f"--set {word} must be key=value; keys: {known}")
        # a prompt such as {caption} would be a mapping in YAML
        changes[key] = value if hints.get(key) is str else parse_value(value)
    specs = [read_spec(name, changes) for name in options.benchmarks if not _is_mmeb(name)]
    named = [f"{spec.benchmark} {spec.split}" for spec in specs]
    twice = [name for name in named if named.count(name) > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is named twice; measure each protocol in a command and --out of its own")
    return specs


def mmeb_of(options: argparse.Namespace) -> tuple[MMEBConfig, Path] | None:
    """MMEB's settings and their file, where it is asked for.

    Raises:
        ConfigError: an option that MMEB does not have, or a change in a command that names other benchmarks too.
    """
    from megapairs_hf.evaluation.mmeb_data import mmeb_settings
    from megapairs_hf.evaluation.specs import spec_file

    named = [name for name in options.benchmarks if _is_mmeb(name)]
    if not named:
        return None
    if options.split or (options.changes and len(options.benchmarks) > 1):
        raise ConfigError("mmeb has no --split, and takes --set in a command of its own only")
    path = spec_file(named[0])
    limit = vars(options).get("limit")
    changes = options.changes if limit is None else [*options.changes, f"limit={limit}"]
    return mmeb_settings(path, options.data, changes), path


def _is_mmeb(name: str) -> bool:
    return Path(name).name.removesuffix(".yaml") == MMEB


def load_model(path: str, loader: str, revision: str | None, device: str | None) -> Any:
    """A Sentence Transformers model for pictures, texts and both."""
    if loader == "mmret":
        from megapairs_hf.models import load_mmret

        return load_mmret(path, revision=revision, device=device)
    from sentence_transformers import SentenceTransformer

    from megapairs_hf.errors import ModelError
    from megapairs_hf.versions import check_adapter_of

    try:
        check_adapter_of(path, revision)
        return SentenceTransformer(path, revision=revision, device=device, trust_remote_code=False)
    except (OSError, ValueError) as error:
        said = str(error).strip().split("\n", 1)[0]
        raise ModelError(f"cannot load the model {path}: {said}") from error


def fingerprint_of(path: str) -> str | None:
    """The fingerprint of a model's local folder; None for one on the Hub."""
    from megapairs_hf.artifact import weights_fingerprint

    return weights_fingerprint(path, None) if Path(path).is_dir() else None


def tables(records: list[dict[str, Any]]) -> str:
    """The records as Markdown tables, one a benchmark and group of queries."""
    from megapairs_hf.evaluation.mmeb_means import SET, mean_records, mmeb_table
    from megapairs_hf.evaluation.rules import rule_of
    from megapairs_hf.evaluation.stage import results_table

    if not records:
        return "The answers of these splits are not public, so there is no number; the files for the servers are."
    groups: dict[str, list[dict[str, Any]]] = {}
    means = mean_records(records)
    for record in records:
        if record["benchmark"].startswith(SET):
            continue
        title = f"{record['benchmark']} {record['split']}" + (f", {record['group']}" if record["group"] else "")
        partial, rule = record["options"].get("partial"), rule_of(record)
        title += f", {rule}" if rule else ""
        title += f": {record['queries']:,} queries, gallery of {record['gallery']:,}"
        groups.setdefault(title + (f" — PARTIAL ({partial})" if partial else ""), []).append(record)
    shown = [f"{title}\n\n{results_table(some)}" for title, some in groups.items()]
    return "\n\n".join(shown + ([f"mmeb\n\n{mmeb_table(means)}"] if means else []))
