"""The commands that look and share: report, inspect, push, env, completion."""

from __future__ import annotations

import functools
import platform
import re
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from megapairs_hf.cli.flags import add_settings, nested, selected
from megapairs_hf.core.config import build_config
from megapairs_hf.core.formatting import counted, printable
from megapairs_hf.core.progress import show
from megapairs_hf.core.shipped import shipped
from megapairs_hf.core.version import __version__

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from megapairs_hf.cli.flags import Prepare
    from megapairs_hf.hub.config import PushConfig
    from megapairs_hf.report.config import ReportConfig

# what a wheel carries: for --config, for `evaluate.load`, for --card
FOLDERS = {"recipes": "recipes", "eval": "eval", "metrics": "eval/metrics", "model_cards": "model_cards"}
SHELLS = ("bash", "zsh", "fish")


def report(parser: argparse.ArgumentParser) -> Prepare:
    """`megapairs report WORK`."""
    from megapairs_hf.report.config import ReportConfig

    parser.description = "One self-contained HTML page of a work folder."
    parser.add_argument("work", metavar="WORK", help="folder of the pipeline, finished or not")
    parser.add_argument("--out", metavar="F.html", help="the page (default: WORK/report.html)")
    add_settings(parser, ReportConfig)

    def prepare(options: argparse.Namespace) -> Callable[[], int]:
        config = build_config(ReportConfig, nested(selected(options, ReportConfig)), "report")
        return functools.partial(_report, options.work, options.out or Path(options.work) / "report.html", config)

    return prepare


def _report(work: str, out: str | Path, config: ReportConfig) -> int:
    from megapairs_hf.report.page import write_report

    show(str(write_report(work, out, config=config)))
    return 0


def inspect(parser: argparse.ArgumentParser) -> Prepare:
    """`megapairs inspect ARTIFACT`."""
    parser.description = "What an artifact holds."
    parser.add_argument("artifact", metavar="ARTIFACT", help="folder of an artifact")
    parser.add_argument("--rows", type=int, default=5, metavar="INT", help="rows to show (default: 5)")
    return lambda options: functools.partial(_inspect, options.artifact, options.rows)


def _inspect(artifact: str, rows: int) -> int:
    from megapairs_hf.report.inspect import inspect_artifact

    show(inspect_artifact(artifact, rows))
    return 0


def verify_files(parser: argparse.ArgumentParser) -> Prepare:
    """`megapairs verify-files PATH`."""
    parser.description = "Compare every file of an artifact, a model, an index or a whole work folder with its record."
    parser.add_argument(
        "path", metavar="PATH", help="folder of an artifact, a model, a search index, or a work folder"
    )
    return lambda options: functools.partial(_verify_files, options.path)


def _verify_files(path: str) -> int:
    from megapairs_hf.artifacts import verify_files as integrity
    from megapairs_hf.core.errors import ArtifactError
    from megapairs_hf.search.generation import verify_indexes

    verified = integrity.verify_files(path, verify_indexes(path))
    if verified.faults:
        show("\n".join(map(printable, verified.faults)))
        raise ArtifactError(
            f"{len(verified.faults):,} of {verified.files:,} files are not as they were written; put back good copies,"
            " or make their artifacts again with --overwrite"
        )
    files, folders = counted(verified.files, "file"), counted(len(verified.folders), "folder")
    show(f"{files} of {folders} {'is as it was' if verified.files == 1 else 'are as they were'} written")
    return 0


def push(parser: argparse.ArgumentParser) -> Prepare:
    """`megapairs push dataset|model|results|space PATH REPO_ID`."""
    from megapairs_hf.hub.config import PushConfig

    parser.description = (
        "A data set, a model, its results, or a search page to the Hub. The token is HF_TOKEN or the saved login."
    )
    kinds = ("dataset", "model", "results", "space")
    parser.add_argument("kind", metavar="KIND", choices=kinds, help=f"what is pushed: {', '.join(kinds)}")
    parser.add_argument(
        "path",
        metavar="PATH",
        help="the triplets or model folder, inside its work folder; the results' folder or file; the index of a Space",
    )
    parser.add_argument("repo_id", metavar="REPO_ID", help="user/name on the Hub")
    parser.add_argument("--out", metavar="DIR", help="where the folder to upload is made (default: WORK/publish/KIND)")
    parser.add_argument("--work", metavar="DIR", help="the work folder (default: the parent of PATH)")
    add_settings(parser, PushConfig, skip=("repo_id", "token"))

    def prepare(options: argparse.Namespace) -> Callable[[], int]:
        values = {"repo_id": options.repo_id, **nested(selected(options, PushConfig))}
        return functools.partial(_push, options, build_config(PushConfig, values, "push"))

    return prepare


def _push(options: argparse.Namespace, config: PushConfig) -> int:
    from megapairs_hf.hub.upload import plan_text
    from megapairs_hf.hub.upload import push as push_to_hub

    if options.kind == "space":
        place = _push_space(options, config)
    else:
        place = push_to_hub(options.path, kind=options.kind, out=options.out, work=options.work, **vars(config))
    show(place)
    if config.dry_run:
        show(plan_text(place))
    return 0


def _push_space(options: argparse.Namespace, config: PushConfig) -> str:
    """Write the folder of a Space from an index, and push it."""
    from megapairs_hf.artifacts.leftovers import scratch_folder
    from megapairs_hf.core.dependencies import require
    from megapairs_hf.core.errors import CardError
    from megapairs_hf.hub.upload import push as push_to_hub
    from megapairs_hf.search.index import SearchIndex
    from megapairs_hf.search.space import write_space

    if config.license is None:
        raise CardError("a Space shows the images to everybody; name their license with --license, such as cc-by-4.0")
    require("search", "push space", "gradio")
    index = SearchIndex.open(options.path)
    out = Path(options.out or index.folder.resolve().parent / "publish" / "space")
    # beside the folder that is uploaded, so that its files can be links
    with scratch_folder(out) as folder:
        write_space(index, folder, license=config.license, title=config.repo_id.rsplit("/", 1)[-1])
        return push_to_hub(folder, kind="space", out=out, **vars(config))


def env(parser: argparse.ArgumentParser) -> Prepare:
    """`megapairs env`."""
    parser.description = "Versions and devices, for a bug report; and where the shipped files lie."
    parser.add_argument("--servers", action="store_true",
                        help="look for servers of models at the usual addresses of this machine instead")  # fmt: skip
    return lambda options: _servers if options.servers else _env


def _servers() -> int:
    from megapairs_hf.annotation.client.event_loop import run
    from megapairs_hf.annotation.client.local_servers import ADDRESSES, find_local_servers

    servers = run(find_local_servers())
    lines = [str(server) for server in servers]
    for server in servers:
        if not server.problem:
            lines += ["", f"megapairs describe {server.flags()}", f"megapairs instruct {server.flags()}"]
    if any(not server.problem for server in servers):
        lines.append(
            "\ncaption, describe and verify need a model that sees images; a list of models does not say which do"
        )
    else:
        ports = ", ".join(url.removesuffix("/v1").rpartition(":")[2] for _, url in ADDRESSES)
        lines.append(
            f"no server of models answers on this machine (ports {ports}); docs/servers.md says how to start one"
        )
    print("\n".join(lines))  # noqa: T201
    return 0


def _env() -> int:
    lines = [f"megapairs-hf {__version__}", f"python {platform.python_version()} ({platform.system()})"]
    required = [line for line in metadata.requires("megapairs-hf") or [] if 'extra == "dev"' not in line]
    names = {re.split(r"[\s<>=!~\[(;]", line)[0] for line in required} - {"megapairs-hf"}
    for name in sorted(names, key=str.lower):
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} not installed")
    if find_spec("torch") is not None:
        import torch

        cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
        lines += [f"GPUs {torch.cuda.device_count()} ({cuda})", f"CPU threads {torch.get_num_threads()}"]
    for name, path in FOLDERS.items():
        top, _, inner = path.partition("/")
        lines.append(f"{name} {shipped(top) / inner}")
    show("\n".join(lines))
    return 0


def completion(parser: argparse.ArgumentParser) -> Prepare:
    """`megapairs completion SHELL`."""
    parser.description = "A script that completes commands and flags. For bash: megapairs completion bash >> ~/.bashrc"
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or fish")
    return lambda options: functools.partial(_completion, options.shell)


def _completion(shell: str) -> int:
    import shtab

    from megapairs_hf.cli.parser import command_tree

    show(shtab.complete(command_tree(), shell))
    return 0
