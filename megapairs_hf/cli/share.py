"""The commands that look and share: report, inspect, push, env."""

from __future__ import annotations

import argparse
import functools
import platform
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from megapairs_hf.artifacts import storage
from megapairs_hf.core.shipped import shipped
from megapairs_hf.core.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "datasets",
    "accelerate",
    "huggingface-hub",
    "faiss-cpu",
    "faiss-gpu-cu12",
    "open-clip-torch",
    "peft",
    "pillow",
    "pyarrow",
    "numpy",
)
# what a wheel carries: for --config, for `evaluate.load`, for --card
FOLDERS = ("recipes", "eval", "metrics", "model_cards")


def report(words: list[str]) -> Callable[[], int]:
    """`megapairs report WORK`."""
    parser = argparse.ArgumentParser("megapairs report", description="One self-contained HTML page of a work folder.")
    parser.add_argument("work", metavar="WORK", help="folder of the pipeline, finished or not")
    parser.add_argument("--out", metavar="F.html", help="where to (default: WORK/report.html)")
    parser.add_argument("--triplets", type=int, default=12, help="triplets to show (default: 12)")
    parser.add_argument("--annotated", type=int, default=6, help="annotated pairs to show (default: 6)")
    parser.add_argument("--queries", type=int, default=8, help="queries to show (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="which ones (default: 0)")
    parser.add_argument("--title", default="", help="of the page")
    options = parser.parse_args(words)

    def call() -> int:
        from megapairs_hf.report.config import ReportConfig
        from megapairs_hf.report.page import write_report

        shown = {name: getattr(options, name) for name in ("triplets", "annotated", "queries", "seed", "title")}
        config = ReportConfig(**shown)
        print(write_report(options.work, options.out or Path(options.work) / "report.html", config=config))  # noqa: T201
        return 0

    return call


def inspect(words: list[str]) -> Callable[[], int]:
    """`megapairs inspect ARTIFACT`."""
    parser = argparse.ArgumentParser("megapairs inspect", description="What an artifact holds.")
    parser.add_argument("artifact", metavar="ARTIFACT", help="folder of an artifact")
    parser.add_argument("--rows", type=int, default=5, help="rows to show (default: 5)")
    options = parser.parse_args(words)

    def call() -> int:
        from megapairs_hf.report.inspect import inspect_artifact

        print(inspect_artifact(options.artifact, options.rows))  # noqa: T201
        return 0

    return call


def push(words: list[str]) -> Callable[[], int]:
    """`megapairs push dataset|model|results PATH REPO_ID`."""
    parser = argparse.ArgumentParser(
        "megapairs push",
        description="A data set, a model, or its results to the Hub. The token is HF_TOKEN or the saved login.",
    )
    parser.add_argument("kind", choices=("dataset", "model", "results"))
    parser.add_argument(
        "path",
        metavar="PATH",
        help="the triplets or model folder, inside its work folder; the results' folder or file",
    )
    parser.add_argument("repo_id", metavar="REPO_ID", help="user/name on the Hub")
    parser.add_argument("--license", help="of the data or model, as the Hub spells it (apache-2.0, …)")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of committing")
    parser.add_argument("--revision", help="branch to push to, or refs/pr/N")
    parser.add_argument("--commit-message", help="of the commit")
    parser.add_argument("--overwrite", action="store_true", help="replace what the repository holds")
    parser.add_argument(
        "--card", metavar="F.jinja", help="card template: a path or a shipped one's name (default: the usual card)"
    )
    parser.add_argument("--dataset", metavar="ID", action="append", default=[], help="model: what it was trained on")
    parser.add_argument("--model", metavar="NAME", help="results: whose records (default: trained, or the only one)")
    parser.add_argument(
        "--benchmark",
        metavar="NAME=ID",
        action="append",
        default=[],
        help="results: the benchmark's data set on the Hub, where the records do not have it (repeatable)",
    )
    parser.add_argument("--out", metavar="DIR", help="where the folder to upload is made (default: WORK/publish/KIND)")
    parser.add_argument("--work", metavar="DIR", help="the work folder (default: the parent of PATH)")
    parser.add_argument("--dry-run", action="store_true", help="make the folder, show files and card, upload nothing")
    return functools.partial(_push, parser.parse_args(words))


def _push(options: argparse.Namespace) -> int:
    from megapairs_hf.hub.config import PushConfig
    from megapairs_hf.hub.upload import plan_text
    from megapairs_hf.hub.upload import push as push_to_hub

    above = storage.parent(options.path)
    work = options.work or (storage.parent(above) if options.path.endswith(".jsonl") else above)
    config = PushConfig(
        repo_id=options.repo_id,
        private=options.private,
        create_pr=options.create_pr,
        revision=options.revision,
        commit_message=options.commit_message,
        license=options.license,
        dry_run=options.dry_run,
        card=options.card,
        overwrite=options.overwrite,
        model=options.model,
        datasets=tuple(options.dataset),
        benchmarks=dict(pair.partition("=")[::2] for pair in options.benchmark),
    )
    out = options.out or Path(work if storage.is_local(work) else ".") / "publish" / options.kind
    print(push_to_hub(options.kind, options.path, config, out, work=work))  # noqa: T201
    if options.dry_run:
        print(plan_text(out))  # noqa: T201
    return 0


def env(words: list[str]) -> Callable[[], int]:
    """`megapairs env`."""
    argparse.ArgumentParser("megapairs env", description="Versions and devices, for a bug report.").parse_args(words)
    return _env


def _env() -> int:
    lines = [f"megapairs-hf {__version__}", f"python {platform.python_version()} ({platform.system()})"]
    for name in PACKAGES:
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} not installed")
    lines += _devices()
    lines += [f"{name} {shipped('eval') / 'metrics' if name == 'metrics' else shipped(name)}" for name in FOLDERS]
    print("\n".join(lines))  # noqa: T201
    return 0


def _devices() -> list[str]:
    if find_spec("torch") is None:
        return []
    import torch

    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return [f"GPUs {torch.cuda.device_count()} ({cuda})", f"CPU threads {torch.get_num_threads()}"]
