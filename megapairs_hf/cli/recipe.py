"""A recipe: one YAML file with a key per stage. `run` makes everything that is missing; `demo` runs the one inside.

A recipe is data. Its keys are the commands; `heldout` is a second corpus, kept for evaluation. A stage whose key is
absent is not run.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.storage import is_local, join
from megapairs_hf.cli.commands import STAGES
from megapairs_hf.cli.downloads import announce_downloads
from megapairs_hf.cli.flags import Parser, read_flag, set_dotted, settings_of
from megapairs_hf.cli.recipe_words import advise_set, with_key, with_set
from megapairs_hf.cli.remembered import remember_recipe
from megapairs_hf.cli.stage import RECIPE_KEYS, SMALL
from megapairs_hf.core import distributed
from megapairs_hf.core.config import build_config, read_yaml
from megapairs_hf.core.errors import ConfigError, MegaPairsError, StaleArtifactError
from megapairs_hf.core.openmp import wait_passively
from megapairs_hf.core.progress import note, reworded, show
from megapairs_hf.core.shipped import named, recipes
from megapairs_hf.core.yaml_values import dump_yaml

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from megapairs_hf.cli.flags import Prepare
    from megapairs_hf.cli.stage import Stage

DEMO = Path(__file__).with_name("demo.yaml")
COMMAND_OF = {"heldout": "corpus"}
# a seed changes what is made of the corpora, not the corpora, and not what is measured
UNSEEDED = {"corpus", "heldout", "eval"}
DEMO_TEXT = """megapairs demo: the whole flow on {count:,} synthetic scenes, {heldout:,} of them
held out, on this machine, without downloads.
What stands in for what: a small CLIP trained here on the captions for EVA-CLIP
and for the CLIP that MMRet starts from; a small DINOv2-shaped model trained
here for DINOv2; instructions written from the captions for InternVL2-26B and
Llama-3-8B. Everything else is what runs on 20 million images.
Interrupt it whenever you like; the same command resumes."""


@dataclass(frozen=True)
class Planned:
    """A stage of a recipe that is to run.

    Attributes:
        name: its key.
        stage: the stage.
        config: its settings.
        out: the folder that it writes.
    """

    name: str
    stage: Stage
    config: Any
    out: str

    def run(self, work: str, inputs: dict[str, str], *, overwrite: bool, update: bool = False) -> None:
        """Run it in a work folder, with other inputs than the usual ones where they are named.

        An update adds what is new to what can grow, and makes again what was made of other inputs.
        """
        more = {"update": True} if update and self.stage.updates else {}
        cls = self.stage.config_class()
        try:
            with reworded(lambda text: with_set(text, self.name, cls)):
                self.stage.run(self.config, work=work, out=self.out, inputs=inputs, overwrite=overwrite, **more)
        except StaleArtifactError as error:
            if update and not overwrite and error.difference.startswith("inputs."):
                note(f"{self.name}: made again, since {error.difference.removeprefix('inputs.')} is another now")
                self.run(work, inputs, overwrite=True)
                return
            # --overwrite would make the stages before it again too, responses of servers among them
            advice = f"pass --from {self.name} to make it and what comes after it again"
            message = str(error).replace("pass --overwrite to make it again", advice)
            raise StaleArtifactError(message, error.difference) from error
        except MegaPairsError as error:
            if len(error.args) == 1:
                error.args = (with_key(with_set(str(error), self.name, cls), self.name, cls),)
            raise

    def as_yaml(self) -> str:
        """Its part of a recipe, with all its settings."""
        # tuples become lists
        plain = json.loads(json.dumps({self.name: dataclasses.asdict(self.config)}))
        reads = ", ".join(self.stage.inputs) or "no artifact"
        return f"# reads {reads}; writes {self.out}\n" + dump_yaml(plain)


def run(parser: argparse.ArgumentParser) -> Prepare:
    """`megapairs run RECIPE`."""
    parser.description = "Every stage of a recipe, resuming."
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a shipped recipe by its name, or the path (with a separator) of a file"
    )
    add_flags(parser, "runs/NAME of the recipe")
    parser.add_argument("--dry-run", action="store_true", help="print every setting as a recipe; run nothing")

    def prepare(options: argparse.Namespace) -> Callable[[], int]:
        path = named(options.recipe, recipes(), "recipe")
        return functools.partial(_run_named, path, options.work or str(Path("runs") / path.stem), options)

    return prepare


def _run_named(path: Path, work: str, options: argparse.Namespace) -> int:
    run_recipe(path, work, options)
    if not options.until and not options.dry_run and is_local(work) and distributed.is_main():
        note_verdict(work)
    return 0


def demo(parser: argparse.ArgumentParser) -> Prepare:
    """`megapairs demo`."""
    parser.description = "The whole flow on the embedded corpus."
    add_flags(parser, "runs/demo")
    parser.set_defaults(work="runs/demo", dry_run=False)
    return lambda options: functools.partial(_run_demo, options)


def add_flags(parser: argparse.ArgumentParser, work: str) -> None:
    """The flags of `run` and `demo`."""
    if isinstance(parser, Parser):
        parser.advise = advise_set
    parser.add_argument("--work", metavar="DIR", help=f"work folder of the pipeline (default: {work})")
    parser.add_argument("--seed", type=int, metavar="INT", help="seed of every stage but the corpora and eval")
    parser.add_argument(
        "--set", action="append", default=[], metavar="STAGE.KEY=VALUE", help="change one setting (repeatable)"
    )
    parser.add_argument("--until", choices=RECIPE_KEYS, metavar="STAGE", help="stop after this stage")
    parser.add_argument(
        "--from", choices=RECIPE_KEYS, dest="again", metavar="STAGE", help="make this stage and those after it again"
    )
    parser.add_argument("--overwrite", action="store_true", help="make everything again")
    text = "add to corpus and embeddings what is new in their inputs; make again what is stale behind them"
    parser.add_argument("--update", action="store_true", help=text)


def _run_demo(options: argparse.Namespace) -> int:
    began = time.monotonic()
    recipe = read_recipe(DEMO, options)
    corpus, heldout = (recipe[name]["scenes"]["count"] for name in ("corpus", "heldout"))
    note(DEMO_TEXT.format(count=corpus + heldout, heldout=heldout))
    run_recipe(DEMO, options.work, options)
    if options.until is None and distributed.is_main():
        publish(options.work)
        note(f"done in {time.monotonic() - began:.0f} s; open {Path(options.work) / 'report.html'}")
        note_verdict(options.work)
    return 0


def note_verdict(work: str) -> None:
    """End with whether training helped."""
    from megapairs_hf.artifacts.workspace import open_work

    sentence = open_work(work).verdict()
    if sentence:
        note(sentence)


def publish(work: str) -> None:
    """Write the folders that would be uploaded."""
    from megapairs_hf.hub.upload import push

    for kind, name in (("dataset", "triplets"), ("model", "model")):
        folder = push(Path(work) / name, f"your-name/megapairs-demo-{kind}", license="apache-2.0", dry_run=True)
        note(f"push {kind} --dry-run: {folder}")


def read_recipe(path: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The settings of every stage of a recipe, with the changes that the flags ask for.

    Raises:
        ConfigError: there is no recipe, or it has a key that is no stage, or a change names no stage of it.
    """
    values = read_yaml(path)
    for name, settings in values.items():
        if name not in RECIPE_KEYS:
            raise ConfigError(f"{path} is no recipe: `{name}` is no stage; stages are {', '.join(RECIPE_KEYS)}")
        if not isinstance(settings, dict | None):
            raise ConfigError(f"{path}: `{name}` must hold `key: value` lines, not {settings!r}")
    if not values:
        raise ConfigError(f"{path} is no recipe: it is empty; stages are {', '.join(RECIPE_KEYS)}")
    recipe = {name: dict(values[name] or {}) for name in RECIPE_KEYS if name in values}
    _change(recipe, options.set)
    if options.seed is not None:
        _seed(recipe, options.seed)
    return recipe


def _change(recipe: dict[str, dict[str, Any]], changes: list[str]) -> None:
    """Make the changes of `--set`."""
    for change in changes:
        dotted, equals, value = change.partition("=")
        stage, _, key = dotted.partition(".")
        if not equals or not key or stage not in recipe:
            raise ConfigError(f"--set {change!r} must be STAGE.KEY=VALUE with a stage of {', '.join(recipe)}")
        cls = STAGES[COMMAND_OF.get(stage, stage)].config_class()
        hints = {setting.key: setting.hint for setting in settings_of(cls)}
        set_dotted(recipe[stage], key, read_flag(hints.get(key), value))


def _seed(recipe: dict[str, dict[str, Any]], seed: int) -> None:
    """Set every `seed` of the stages that a seed changes."""
    for stage in set(recipe) - UNSEEDED:
        for setting in settings_of(STAGES[stage].config_class()):
            if setting.key.rpartition(".")[2] == "seed":
                set_dotted(recipe[stage], setting.key, seed)


def run_recipe(path: Path, work: str, options: argparse.Namespace) -> int:
    """Check all settings first, then run stage after stage, then write the report."""
    recipe = read_recipe(path, options)
    if SMALL & set(recipe):
        wait_passively()
    last = RECIPE_KEYS.index(options.until) if options.until else len(RECIPE_KEYS)
    planned = []
    for name, values in recipe.items():
        stage = STAGES[COMMAND_OF.get(name, name)]
        config = build_config(stage.config_class(), values, f"{path}, {name}")
        if RECIPE_KEYS.index(name) <= last:
            planned.append(Planned(name, stage, config, join(work, name if name in COMMAND_OF else stage.out)))
    if options.dry_run:
        show("\n".join(each.as_yaml() for each in planned).removesuffix("\n"))
        return 0
    for each in planned:
        # an extra that is not installed is named before the hours of the stages in front of it
        each.stage.check(each.out, each.config)
    announce_downloads((each.config, each.out) for each in planned)
    remember_recipe(work, path)
    first = 0 if options.overwrite else RECIPE_KEYS.index(options.again) if options.again else len(RECIPE_KEYS)
    # a recipe that verifies builds from what was verified
    verified = {"instructions": join(work, "verified")} if "verify" in recipe else {}
    for each in planned:
        again = RECIPE_KEYS.index(each.name) >= first
        each.run(work, verified if each.name == "build" else {}, overwrite=again, update=options.update)
    if not options.until:
        _write_report(work)
    return 0


def _write_report(work: str) -> None:
    if not is_local(work):
        note(f"for the report: megapairs report {work} --out report.html")
    elif distributed.is_main():
        from megapairs_hf.report.config import ReportConfig
        from megapairs_hf.report.page import write_report

        note(str(write_report(work, Path(work) / "report.html", config=ReportConfig())))
