"""A stage of the pipeline as a command: what it reads and writes, its settings, and the call."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.storage import exists, is_local, join
from megapairs_hf.cli.flags import add_settings, selected, set_dotted
from megapairs_hf.cli.inputs import MANIFEST, captioned, open_input
from megapairs_hf.cli.remembered import remembered_recipe
from megapairs_hf.cli.update import naming_stale
from megapairs_hf.core.config import build_config, read_yaml
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import ArtifactError, ConfigError, StaleArtifactError
from megapairs_hf.core.openmp import wait_passively
from megapairs_hf.core.progress import note

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from megapairs_hf.cli.flags import Prepare

# the keys of a recipe in the order of the flow; `heldout` is a second corpus, kept for evaluation
RECIPE_KEYS = (
    "corpus",
    "heldout",
    "caption",
    "pretrain",
    "align",
    "embed",
    "mine",
    "describe",
    "instruct",
    "verify",
    "build",
    "train",
    "eval",
)
# a recipe with one of these makes its encoders itself: it is for machines that do something else too
SMALL = {"pretrain", "align"}
ROWS = "input: an artifact, a parquet, CSV or JSON lines file, or a data set on the Hub"
# other flags of an input, and its help, where it need not be a folder that a stage wrote
ALSO: dict[str, tuple[tuple[str, ...], str]] = {
    "corpus": (("images",), "input: a corpus, a folder of images, a table of images, or a data set on the Hub"),
    "pairs": ((), ROWS),
    "descriptions": ((), ROWS),
    "instructions": ((), ROWS),
}
CAPTIONS = "captions"


@dataclass(frozen=True)
class Stage:
    """A stage as a command.

    Attributes:
        name: of the command.
        help: what it does.
        config: `module:Class` of its settings.
        inputs: folders that it reads, in the work folder unless named.
        out: folder that it writes, in the work folder unless named.
        call: `module:function`; gets the inputs in their order, then `config`, `out` and `overwrite` by name, and
            returns an artifact, several by name, or None.
        needs: the extra of the package that it needs; None where the base is enough.
        in_work: the function gets `work` too, since its settings name paths in the work folder.
        local: it maps files into memory or loads models: folders that are elsewhere are copied to this machine.
        optional: inputs that the function gets as None where there is none in the work folder and none is named.
        captions: it reads captions, which those of `megapairs caption` take the place of.
        updates: the function gets `update` too: what is there stays, and only what is new in the inputs is added.
    """

    name: str
    help: str
    config: str
    inputs: tuple[str, ...]
    out: str
    call: str
    needs: str | None = None
    in_work: bool = False
    local: bool = False
    optional: tuple[str, ...] = ()
    captions: bool = False
    updates: bool = False

    def config_class(self) -> type[Any]:
        """The dataclass of the settings."""
        return load(self.config)

    def add_flags(self, parser: argparse.ArgumentParser) -> Prepare:
        """Put its inputs and every field of its settings into a parser, and return what runs it with them."""
        parser.description = self.help
        group = parser.add_argument_group("files")
        group.add_argument("--config", metavar="F.yaml", help="a recipe, or settings of this stage; flags win")
        group.add_argument("--work", default="work", metavar="DIR", help="work folder of the pipeline (default: work)")
        for name in self.inputs:
            also, what = ALSO.get(name, ((), "input"))
            names = [f"--{each}" for each in (name, *also)]
            absent = ", if it is there" if name in self.optional else ""
            group.add_argument(*names, dest=name, metavar="PATH", help=f"{what} (default: WORK/{name}{absent})")
        if self.captions:
            text = "captions in place of the corpus's own (default: WORK/captions, where there are any)"
            group.add_argument(f"--{CAPTIONS}", metavar="DIR", help=text)
        group.add_argument("--out", metavar="DIR", help=f"output directory (default: WORK/{self.out})")
        group.add_argument("--overwrite", action="store_true", help="overwrite what is there")
        if self.updates:
            text = "add what is new in the input since, and keep the rest"
            group.add_argument("--update", action="store_true", help=text)
        add_settings(parser, self.config_class())
        return self.prepare

    def prepare(self, options: argparse.Namespace) -> Callable[[], int]:
        """Read the settings that file and flags give; what is returned runs the stage with them."""
        values = stage_settings(options.config, self.name) if options.config else {}
        for key, value in selected(options, self.config_class()).items():
            set_dotted(values, key, value)
        config = build_config(self.config_class(), values, options.config or self.name)
        names = (*self.inputs, *([CAPTIONS] if self.captions else []))
        inputs = {name: getattr(options, name) for name in names if getattr(options, name)}
        run = self.run if options.config else self._run_without_file
        update = {"update": True, "name_stale": True} if getattr(options, "update", False) else {}
        return functools.partial(
            run, config, work=options.work, out=options.out, inputs=inputs, overwrite=options.overwrite, **update
        )

    def _run_without_file(self, config: Any, *, work: str, **where: Any) -> int:
        """Run the stage with settings of flags alone; where a recipe made what is there, name its file."""
        try:
            return self.run(config, work=work, **where)
        except StaleArtifactError as error:
            recipe = remembered_recipe(work)
            if not recipe:
                raise
            advice = f"; the recipe {recipe} made it, so pass --config {recipe} for its settings, or"
            raise StaleArtifactError(str(error).replace(";", advice, 1)) from error

    def check(self, target: str, config: Any) -> None:
        """Refuse to begin without the extra that the stage needs.

        Where there is something already, the stage itself finds out whether it is finished and so needs nothing.

        Args:
            target: the folder that it writes.
            config: its settings, of which some need more.

        Raises:
            MissingDependencyError: the extra is not installed.
        """
        if self.needs is not None and not exists(target):
            require(self.needs, self.name)

    def run(
        self,
        config: Any,
        *,
        work: str,
        out: str | None = None,
        inputs: dict[str, str] | None = None,
        overwrite: bool = False,
        update: bool = False,
        name_stale: bool = False,
    ) -> int:
        """Run the stage.

        Args:
            config: the settings.
            work: the work folder.
            out: instead of the usual folder in it.
            inputs: instead of the usual folders in it.
            overwrite: overwrite what is there.
            update: add what is new in the inputs.
            name_stale: say what in the work folder was made of that which an update replaced.

        Returns:
            0.
        """
        paths = {name: (inputs or {}).get(name) or join(work, name) for name in self.inputs}
        captions = (inputs or {}).get(CAPTIONS) or join(work, CAPTIONS)
        if self.captions and (CAPTIONS in (inputs or {}) or exists(join(captions, MANIFEST))):
            paths[CAPTIONS] = captions
        target = out or join(work, self.out)
        self.check(target, config)
        if self.local and not all(is_local(path) for path in (work, target, *paths.values())):
            from megapairs_hf.artifacts.remote import stage_in

            if update:
                raise ArtifactError(f"{target} cannot be updated, as not all is on this machine; pass --overwrite")
            staged = stage_in(work, paths, target, overwrite=overwrite)
            self._run_here(config, staged.inputs, staged.target, staged.work, {"overwrite": overwrite})
            staged.send()
        else:
            how = {"overwrite": overwrite} | ({"update": update} if self.updates else {})
            with naming_stale(work, self.out) if name_stale else contextlib.nullcontext():
                self._run_here(config, paths, target, work, how)
        return 0

    def _run_here(self, config: Any, paths: dict[str, str], out: str, work: str, how: dict[str, bool]) -> None:
        absent = [name for name in self.optional if paths[name] == join(work, name) and not exists(paths[name])]
        inputs = [None if name in absent else open_input(name, paths[name], work) for name in self.inputs]
        place = self.inputs.index("corpus") if CAPTIONS in paths else 0
        if CAPTIONS in paths and inputs[place] is not None:
            inputs[place] = captioned(inputs[place], paths[CAPTIONS])
        where = {"out": out, "work": work} if self.in_work else {"out": out}
        result = self.apply(inputs, {"config": config, **how, **where})
        for artifact in result.values() if isinstance(result, dict) else filter(None, [result]):
            note_artifact(artifact)

    def apply(self, inputs: list[Any], arguments: dict[str, Any]) -> Any:
        """Call the stage's function."""
        return load(self.call)(*inputs, **arguments)


def stage_settings(path: str, stage: str) -> dict[str, Any]:
    """What a file says about a stage: the stage's own key of a recipe, all of any other file.

    Raises:
        ConfigError: the file is a recipe without that stage.
    """
    values = read_yaml(path)
    if not values or not set(values) <= set(RECIPE_KEYS):
        return values
    if SMALL & set(values):
        wait_passively()
    if stage not in values:
        raise ConfigError(f"{path} is a recipe without `{stage}`; it has {', '.join(values)}")
    return dict(values[stage] or {})


def load(name: str) -> Any:
    """The object at `module:name`."""
    module, attribute = name.split(":")
    return getattr(importlib.import_module(module), attribute)


def note_artifact(artifact: Any) -> None:
    """Say what an artifact holds and what was left out."""
    manifest = artifact.manifest
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in manifest.rejected.items())
    steps = manifest.stats.get("steps")
    rows = f"{manifest.rows:,} rows" if manifest.rows or steps is None else f"{steps:,} steps"
    if manifest.kind == "encoders":
        rows = f"{len(manifest.shards):,} files"
    if manifest.kind == "triplets":
        from megapairs_hf.artifacts.shards import part_rows

        rows = f"{part_rows(artifact, 'triplets'):,} rows, {part_rows(artifact, 'images'):,} images"
    what = manifest.kind if manifest.kind != "embeddings" else f"embeddings {os.path.basename(artifact.path)}"  # noqa: PTH119
    note(f"{what}: {rows}{'; left out: ' + left_out if left_out else ''} ({artifact.path})")
    for sentence in manifest.stats.get("warnings", []):
        note(f"warning: {sentence}")
    if manifest.stats.get("verdict"):
        note(manifest.stats["verdict"])
