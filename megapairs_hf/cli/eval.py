"""`megapairs eval MODEL BENCHMARK …`, `megapairs eval check-data BENCHMARK`, `megapairs eval --check-submission FILE`.

The form without a model, `megapairs eval --config F --work W`, is the stage of a recipe and is read by `parser.py`.
What surprises: --data may be the folder of one benchmark or of several, where each stands in a folder of its name.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.cli.flags import Parser, add_settings, selected
from megapairs_hf.core import distributed
from megapairs_hf.core.config import build_config
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.progress import show

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from megapairs_hf.evaluation.config import EvalConfig
    from megapairs_hf.evaluation.entry import ModelSource

# settings of a corpus' queries, and the models, which have flags of their own
NO_FLAGS = ("name", "queries", "rules", "remove_reference", "max_queries", "seed", "recall_at", "map_at", "vlm", "llm")
EPILOG = """examples:
  megapairs eval runs/demo/model circo cirr --data DIR --out results
  megapairs eval MODEL fashioniq --set gallery=union --data DIR --out results
  megapairs eval MODEL circo --split test --data DIR --out results
             writes the file for the test server
  megapairs eval MODEL cirr --rerank yes-no --vlm NAME --vlm-urls URL
             --data DIR --out results
  megapairs eval MODEL mmeb --set parts='[GQA, VOC2007]' --data DIR
             --out results
  megapairs eval MODEL work/triplets --out results
             a data set of your own
  megapairs eval check-data circo --data DIR
             what is there, and where to get the rest
  megapairs eval parity MODEL --endpoint http://gpu-1:8000
             does a server give the same embeddings, and where not
  megapairs eval --check-submission FILE
             what is wrong with a file for a server
"""


def eval_command(words: list[str]) -> Callable[[], int]:
    """Read the words after `eval`.

    Args:
        words: the first is a model, `check-data`, `parity`, or `--check-submission`.
    """
    if words[0].startswith("--check-submission"):
        return submission(words)
    if words[0] == "parity":
        return _parity(words[1:])
    return _check_data(words[1:]) if words[0] == "check-data" else _benchmarks(words)


def _benchmarks(words: list[str]) -> Callable[[], int]:
    from megapairs_hf.evaluation.benchmarks.spec import protocol_flags
    from megapairs_hf.evaluation.config import EvalConfig, benchmark_config

    parser = Parser("megapairs eval", description="A model on the benchmarks of the field.", epilog=EPILOG)
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id")
    text = "name, a file such as eval/circo.yaml, or a data set of triplets of your own"
    parser.add_argument("benchmarks", metavar="BENCHMARK", nargs="+", help=text)
    protocol_flags(parser, needs_data=False)
    parser.add_argument("--out", required=True, metavar="DIR", help="output directory: results and rankings")
    for name, does in (("vlm", "re-ranks, and captions for CIReVL"), ("llm", "edits captions (default: the VLM)")):
        parser.add_argument(f"--{name}", metavar="NAME", help=f"the model that {does}")
        parser.add_argument(f"--{name}-urls", nargs="+", metavar="URL", default=[],
                            help="where it is served, such as http://gpu-1:8080/v1")  # fmt: skip
    parser.add_argument("--cache", metavar="DIR", help="where embeddings of galleries are kept for the next prompt")
    parser.add_argument("--name", metavar="NAME", help="of the model in the results (default: MODEL)")
    _model_flags(parser)
    parser.add_argument("--overwrite", action="store_true", help="overwrite what is there")
    add_settings(parser, EvalConfig, NO_FLAGS, benchmark_config())
    return functools.partial(measure_benchmarks, parser.parse_args(words))


def _parity(words: list[str]) -> Callable[[], int]:
    from megapairs_hf.evaluation.parity_client import ParityConfig

    text = "Whether a server gives the embeddings of a model, on twenty inputs, and where they part."
    parser = Parser("megapairs eval parity", description=text)
    parser.add_argument("model", metavar="MODEL", help="folder or Hub id of the model that is served")
    parser.add_argument("--endpoint", required=True, metavar="URL", help="the server, such as http://gpu-1:8000")
    _model_flags(parser)
    add_settings(parser, ParityConfig, ("endpoint",))
    options = parser.parse_args(words)

    def call() -> int:
        require("models", "eval parity")
        from megapairs_hf.evaluation.parity import check_parity
        from megapairs_hf.models.loading import load_model

        values = {"endpoint": options.endpoint, **selected(options, ParityConfig)}
        config = build_config(ParityConfig, values, "megapairs eval parity")
        model = load_model(options.model, options.loader, options.revision, options.device)
        report = check_parity(model, config, options.model)
        show(report.lines())
        return 1 if report.differences else 0

    return call


def _model_flags(parser: Parser) -> None:
    parser.add_argument("--revision", metavar="R", help="of the model on the Hub")
    parser.add_argument("--loader", choices=("mmret", "sentence-transformers"), default="mmret",
                        help="mmret fuses image and text of any CLIP (default)")  # fmt: skip
    parser.add_argument("--device", metavar="D", help="where the model runs (default: its library's choice)")


def _check_data(words: list[str]) -> Callable[[], int]:
    from megapairs_hf.evaluation.benchmarks.spec import protocol_flags

    parser = Parser(
        "megapairs eval check-data", description="What of a benchmark is there, and where to get the rest."
    )
    parser.add_argument("benchmarks", metavar="BENCHMARK", nargs="+", help="name, or a file such as eval/circo.yaml")
    protocol_flags(parser)
    parser.add_argument("--quick", action="store_true", help="only look whether images are there; read none")
    options = parser.parse_args(words)

    def call() -> int:
        from megapairs_hf.evaluation.benchmarks.check_data import data_folder, examine, report
        from megapairs_hf.evaluation.benchmarks.spec import read_specs

        whole = True
        for spec in read_specs(options.benchmarks, options.split, options.changes):
            data = data_folder(options.data, spec)
            findings = examine(spec, data, quick=options.quick)
            show(report(spec, data, findings))
            whole &= all(finding.complete for finding in findings)
        # so that `check-data … && megapairs eval …` measures nothing that lacks something
        return 0 if whole else 1

    return call


def measure_benchmarks(options: argparse.Namespace) -> int:
    """Measure, write, and print."""
    require("models", "eval")
    from megapairs_hf.artifacts.workspace import read_results
    from megapairs_hf.evaluation.benchmarks.spec import read_specs
    from megapairs_hf.evaluation.benchmarks.triplets import is_triplets
    from megapairs_hf.evaluation.config import EvalConfig
    from megapairs_hf.evaluation.entry import evaluate
    from megapairs_hf.evaluation.results_table import tables

    config = build_config(EvalConfig, run_values(options), "megapairs eval")
    own = [name for name in options.benchmarks if is_triplets(name)]
    known = [name for name in options.benchmarks if name not in own]
    if known and not options.data:
        raise ConfigError(f"{known[0]} needs --data DIR, the folder with its annotations and images")
    evaluate(
        {options.name or options.model: functools.partial(model_source, options, config)},
        [*read_specs(known, options.split, options.changes), *own],
        out=options.out,
        data=options.data or ".",
        config=config,
        cache=options.cache,
        overwrite=options.overwrite,
    )
    if distributed.is_main():
        show(tables(read_results(options.out)))
    return 0


def model_source(options: argparse.Namespace, config: EvalConfig) -> ModelSource:
    """The model that the flags name, with the commit behind its branch on the Hub."""
    from megapairs_hf.artifacts.fingerprints import commit_of, weights_fingerprint
    from megapairs_hf.evaluation.entry import ModelSource
    from megapairs_hf.models.loading import load_model

    commit = commit_of(options.model, options.revision)
    weights = weights_fingerprint(options.model, commit)
    return ModelSource(
        functools.partial(load_model, options.model, options.loader, commit, options.device, **config.loading),
        f"{options.loader} {weights}",
        commit or (weights if Path(options.model).is_dir() else None),
    )


def run_values(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of the run that the flags give.

    Raises:
        ConfigError: a model that is asked has no address, or an address no model.
    """
    from megapairs_hf.evaluation.config import EvalConfig, benchmark_config

    defaults = benchmark_config()
    values = {"strategies": defaults.strategies, "top": defaults.top, **selected(options, EvalConfig)}
    for name in ("vlm", "llm"):
        model, urls = getattr(options, name), getattr(options, f"{name}_urls")
        if bool(model) != bool(urls):
            raise ConfigError(f"--{name} NAME and --{name}-urls URL belong together; give both{_local(name)}")
        if model:
            values[name] = {"model": model, "endpoint": {"urls": urls}}
    return values


def _local(name: str) -> str:
    """The flags of the servers that answer on this machine."""
    from megapairs_hf.annotation.client.event_loop import run
    from megapairs_hf.annotation.client.local_servers import find_local_servers, usage
    from megapairs_hf.evaluation.methods.vlm_client import local_flags

    ready = usage(run(find_local_servers()), local_flags(name))
    return f", such as {ready}, which answers on this machine" if ready else ""


def submission(words: list[str]) -> Callable[[], int]:
    """`megapairs eval --check-submission FILE`."""
    parser = Parser("megapairs eval", description="What is wrong with a file for a test server.")
    parser.add_argument("--check-submission", required=True, metavar="FILE", dest="file", help="the file")
    parser.add_argument("--data", metavar="DIR", help="the benchmark's annotations, to check keys and references too")
    return functools.partial(check, parser.parse_args(words))


def check(options: argparse.Namespace) -> int:
    """Explain a submission: status 0 where its server will take it, 1 where not."""
    from megapairs_hf.evaluation.benchmarks.check_data import data_folder
    from megapairs_hf.evaluation.benchmarks.load import read_benchmark
    from megapairs_hf.evaluation.benchmarks.spec import read_spec
    from megapairs_hf.evaluation.submission_check import Known, check_submission

    kind, _ = check_submission(options.file)
    known = None
    if options.data and kind.startswith("CIR"):
        name = "circo" if kind == "CIRCO" else "cirr"
        spec = read_spec(name, {"split": "test" if name == "circo" else "test1"})
        known = Known.of(next(iter(read_benchmark(spec, data_folder(options.data, spec), check=False))))
    kind, wrong = check_submission(options.file, known)
    lines = [f"{options.file}: {kind}, " + ("nothing wrong" if not wrong else f"{len(wrong)} things wrong")]
    lines += [f"  - {sentence}" for sentence in wrong]
    if known is None:
        lines.append("  Not checked without --data DIR: which images there are, and that no reference is in its list.")
    show("\n".join(lines))
    return 1 if wrong else 0
