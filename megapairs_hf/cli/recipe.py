"""A recipe: one YAML file with a key per stage. `run` makes everything that is missing; `demo` runs the one inside.

A recipe is data. Its keys are the commands; `heldout` is a second corpus, kept for evaluation. A stage whose key is
absent is not run.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from megapairs_hf.artifacts.storage import is_local, join
from megapairs_hf.cli.commands import RECIPE_KEYS, STAGES
from megapairs_hf.cli.parser import set_dotted
from megapairs_hf.core import distributed
from megapairs_hf.core.config import build_config, parse_value, read_yaml
from megapairs_hf.core.errors import ConfigError, StaleArtifactError
from megapairs_hf.core.progress import note
from megapairs_hf.core.shipped import named, recipes

if TYPE_CHECKING:
    from collections.abc import Callable

    from megapairs_hf.cli.stage import Stage

DEMO = Path(__file__).with_name("demo.yaml")
COMMAND_OF = {"heldout": "corpus"}
SEEDS = {
    "pretrain": ("clip.seed", "dino.seed"),
    "mine": ("seed",),
    "describe": ("seed",),
    "instruct": ("seed",),
    "verify": ("seed",),
    "build": ("seed",),
    "train": ("seed",),
}
DEMO_TEXT = """megapairs demo: the whole flow on {count:,} synthetic scenes, on this machine, without downloads.
What stands in for what: a small CLIP trained here on the captions for EVA-CLIP
and for the CLIP that MMRet starts from; a small DINOv2-shaped model trained here
for DINOv2; instructions written from the captions for InternVL2-26B and
Llama-3-8B. Everything else is what runs on 20 million images.
Interrupt it whenever you like; the same command goes on."""


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

    def run(self, work: str, inputs: dict[str, str], overwrite: bool) -> None:
        """Run it in a work folder, with other inputs than the usual ones where they are named."""
        try:
            self.stage.run(self.config, work=work, out=self.out, inputs=inputs, overwrite=overwrite)
        except StaleArtifactError as error:
            # --overwrite would make the stages before it again too, answers of servers among them
            advice = f"pass --from {self.name}: what comes before stays"
            raise StaleArtifactError(str(error).replace("pass --overwrite to make it again", advice)) from error


def run(words: list[str]) -> Callable[[], int]:
    """`megapairs run RECIPE`."""
    parser = argparse.ArgumentParser("megapairs run", description="Every stage of a recipe, resuming.")
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a shipped recipe by its name, or the path (with a separator) of a file"
    )
    parser.add_argument("--work", metavar="DIR", help="folder of the pipeline (default: runs/NAME of the recipe)")
    parser.add_argument("--seed", type=int, help="seed of every stage but the corpora and the evaluation")
    parser.add_argument(
        "--set", action="append", default=[], metavar="STAGE.KEY=VALUE", help="change one setting (repeatable)"
    )
    parser.add_argument("--until", choices=RECIPE_KEYS, help="stop after this stage")
    parser.add_argument("--from", choices=RECIPE_KEYS, dest="again", help="make this stage and those after it again")
    parser.add_argument("--overwrite", action="store_true", help="make everything again")
    parser.add_argument("--dry-run", action="store_true", help="print every setting as YAML; run nothing")
    options = parser.parse_args(words)
    path = named(options.recipe, recipes(), "recipe")
    return functools.partial(run_recipe, path, options.work or str(Path("runs") / path.stem), options)


def demo(words: list[str]) -> Callable[[], int]:
    """`megapairs demo`."""
    parser = argparse.ArgumentParser("megapairs demo", description="The whole flow on the embedded corpus.")
    parser.add_argument(
        "--work", default="runs/demo", metavar="DIR", help="folder of the pipeline (default: runs/demo)"
    )
    parser.add_argument("--seed", type=int, help="seed of every stage but the corpora and the evaluation")
    parser.add_argument("--set", action="append", default=[], metavar="STAGE.KEY=VALUE", help="change one setting")
    parser.add_argument("--until", choices=RECIPE_KEYS, help="stop after this stage")
    parser.add_argument("--from", choices=RECIPE_KEYS, dest="again", help="make this stage and those after it again")
    parser.add_argument("--overwrite", action="store_true", help="make everything again")
    options = parser.parse_args(words)
    options.dry_run = False
    return functools.partial(_run_demo, options)


def _run_demo(options: argparse.Namespace) -> int:
    began = time.monotonic()
    note(DEMO_TEXT.format(count=read_recipe(DEMO, options)["corpus"]["scenes"]["count"]))
    run_recipe(DEMO, options.work, options)
    if options.until is None and distributed.is_main():
        publish(options.work)
        note(f"done in {time.monotonic() - began:.0f} s; open {Path(options.work) / 'report.html'}")
    return 0


def publish(work: str) -> None:
    """Write the folders that would be uploaded."""
    from megapairs_hf.hub.config import PushConfig
    from megapairs_hf.hub.upload import push

    for kind, name in (("dataset", "triplets"), ("model", "model")):
        config = PushConfig(repo_id=f"your-name/megapairs-demo-{kind}", license="apache-2.0", dry_run=True)
        place = push(kind, Path(work) / name, config, Path(work) / "publish" / kind, work=work)  # type: ignore[arg-type]
        note(f"push {kind} --dry-run: {place}")


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
    recipe = {name: values[name] or {} for name in RECIPE_KEYS if name in values}
    for change in options.set:
        dotted, equals, value = change.partition("=")
        stage, _, key = dotted.partition(".")
        if not equals or not key or stage not in recipe:
            raise ConfigError(f"--set {change!r} must be STAGE.KEY=VALUE with a stage of {', '.join(recipe)}")
        set_dotted(recipe[stage], key, parse_value(value))
    if options.seed is not None:
        for stage, keys in SEEDS.items():
            for key in keys if stage in recipe else ():
                set_dotted(recipe[stage], key, options.seed)
    return recipe


def planned_yaml(planned: Planned) -> str:
    """A stage that is to run, with all its settings, as a part of a recipe."""
    # tuples become lists
    plain = json.loads(json.dumps({planned.name: dataclasses.asdict(planned.config)}))
    reads = ", ".join(planned.stage.inputs) or "no artifact"
    return f"# reads {reads}; writes {planned.out}\n" + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def run_recipe(path: Path, work: str, options: argparse.Namespace) -> int:
    """Check all settings first, then run stage after stage, then write the report."""
    recipe = read_recipe(path, options)
    last = RECIPE_KEYS.index(options.until) if options.until else len(RECIPE_KEYS)
    planned = []
    for name, values in recipe.items():
        stage = STAGES[COMMAND_OF.get(name, name)]
        config = build_config(stage.config_class(), values, f"{path}, {name}")
        if RECIPE_KEYS.index(name) <= last:
            planned.append(Planned(name, stage, config, join(work, name if name in COMMAND_OF else stage.out)))
    if options.dry_run:
        print("\n".join(map(planned_yaml, planned)), end="")  # noqa: T201
        return 0
    for each in planned:
        # an extra that is not installed is named before the hours of the stages in front of it
        each.stage.check(each.out)
    first = 0 if options.overwrite else RECIPE_KEYS.index(options.again) if options.again else len(RECIPE_KEYS)
    # a recipe that verifies builds from what was verified
    verified = {"instructions": join(work, "verified")} if "verify" in recipe else {}
    for each in planned:
        each.run(work, verified if each.name == "build" else {}, RECIPE_KEYS.index(each.name) >= first)
    if options.until:
        return 0
    if not is_local(work):
        note(f"for the report: megapairs report {work} --out report.html")
    elif distributed.is_main():
        from megapairs_hf.report.config import ReportConfig
        from megapairs_hf.report.page import write_report

        page = write_report(work, Path(work) / "report.html", config=ReportConfig())
        print(page, file=sys.stderr)  # noqa: T201
    return 0
