"""The commands that write something, small: what each begins with, and what it is called.

A stage begins with what another one left, so that the flow is run once from the first to the last. What surprises: the
folder of a run is always the same one, since settings and indexes may name it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import dataclass
from datetime import datetime, tzinfo
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from megapairs_hf.cli import main
from megapairs_hf.evaluation import results
from megapairs_hf.search.generation import read_record, verify_files
from tests.annotation.double import ChatDouble, describe, instruct
from tests.chaos_results import written
from tests.chaos_store import PROTOCOL
from tests.evaluation.benchmarks import make_circo
from tests.search.stand_in import color_folder
from tests.small import make_small_models, small_corpus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PHOTOS, WORK = "photos", "work"
SHORT_LOOP = (
    "--{0}steps 4 --{0}batch_size 4 --{0}lr 1e-3 --{0}log_every 1 --{0}checkpoint_every 2 --{0}tracker none"
    " --{0}warmup_steps 1"
)
LOOP = SHORT_LOOP.format("")
SMALL = "--model.image_size 32 --model.patch_size 16 --model.width 32 --model.layers 1 --model.heads 2"
ENCODERS = (
    "--encoders {name: clip_image, model: ./small/clip, input: image}"
    " {name: clip_text, model: ./small/clip, input: caption} --batch_size 4"
)
SCENES = "corpus --source scenes --scenes.size 32 --shard_rows 8"
ASKED = "--endpoint.concurrency 2 --endpoint.urls"
# rows that are held at once, twice the concurrency: so many responses may be on their way to the disk or from a server
AT_ONCE = 4
PIPELINE = f"{PROTOCOL}://pipeline"
LICENSE = "--license apache-2.0 --dry-run"


@dataclass(frozen=True)
class Stage:
    """A command that writes something.

    Attributes:
        words: of the command; DESCRIBE, INSTRUCT and VERIFY stand for the URLs of servers of models.
        after: the stage whose files it begins with; empty for the sources alone.
        first: changes these files.
        whole: raises where what is there after a cut is neither the old result nor the new; it gets folders in which
            these are, and is called in the folder of the run.
        once: it refuses to run again where it is done.
    """

    words: str
    after: str = ""
    first: Callable[[], int | None] | None = None
    whole: Callable[[Path, Path], None] | None = None
    once: bool = False

    def run(self, urls: dict[str, str]) -> int:
        """Run the command in the current folder."""
        results.datetime = EveryDay  # type: ignore[attr-defined]
        return main([urls.get(word, word) for word in self.arguments()])

    def arguments(self) -> list[str]:
        """The words of the command line; braces and brackets keep theirs together."""
        words, depth = list[str](), 0
        for word in self.words.split():
            words[-1:] = [f"{words[-1]} {word}"] if depth else [*words[-1:], word]
            depth += sum(word.count(mark) for mark in "{[") - sum(word.count(mark) for mark in "}]")
        return words


class EveryDay(datetime):
    """A clock on which all results are of one day."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> EveryDay:
        return cls(2026, 1, 1, tzinfo=tz)


class Servers:
    """Servers of models in a process of their own; a context."""

    def __enter__(self) -> Servers:
        read, write = os.pipe()
        self.asked = get_context("fork").Value("i", 0)
        self.process = os.fork()
        if self.process == 0:
            self._serve(write)
        os.close(write)
        with open(read) as file:  # noqa: PTH123 - a pipe
            self.urls: dict[str, str] = json.loads(file.readline())
        return self

    def _serve(self, write: int) -> None:
        doubles = {name: ChatDouble(answer=self._counted(answer)) for name, answer in ANSWERS.items()}
        os.write(write, json.dumps({name: double.url for name, double in doubles.items()}).encode() + b"\n")
        signal.pause()

    def _counted(self, answer: Callable[[Any], str]) -> Callable[[Any], str]:
        def counted(body: Any) -> str:
            with self.asked.get_lock():
                self.asked.value += 1
            return answer(body)

        return counted

    def __exit__(self, *_: object) -> None:
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)


ANSWERS: dict[str, Callable[[Any], str]] = {
    "DESCRIBE": describe,
    "INSTRUCT": instruct,
    "VERIFY": lambda body: "Yes." if body["seed"] % 3 else "No.",
}


def make_sources() -> int:
    """Images, models and lines of others, in the current folder."""
    color_folder(Path(PHOTOS), 9)
    Path(PHOTOS, "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    shutil.copy(Path(PHOTOS, "red/00.png"), Path(PHOTOS, "white/again.png"))
    for path in sorted(Path(PHOTOS).rglob("*.png")):
        path.with_suffix(".txt").write_text(f"a photo of {path.parent.name} {path.stem}")
    make_small_models(Path(WORK, "small"), small_corpus(Path("scenes"), 32))
    shutil.rmtree("scenes")
    small_corpus(Path(WORK, "heldout"), 32, seed=1)
    names = sorted(str(path.relative_to(PHOTOS)) for path in Path(PHOTOS).glob("*/*.png"))
    rows = [
        {"q_img": names[i], "q_text": [f"more {i}"], "t_img": names[i + 1], "hns": [names[i], names[-1 - i]]}
        for i in range(4)
    ]
    Path("lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = "{source: scenes, shard_rows: 8, scenes: {count: 8, size: 32}}"
    Path("recipe.yaml").write_text(f"corpus: {small}\nheldout: {small}\n")
    make_circo(Path("data"), queries=3, gallery=8)
    # what the Hub's and other caches are is no source
    shutil.rmtree("home", ignore_errors=True)
    return 0


def grow() -> None:
    """Images that are new, changed and gone."""
    folder = Path(PHOTOS)
    Image.new("RGB", (40, 30), (10, 90, 170)).save(folder / "blue" / "77.png")
    (folder / "blue" / "77.txt").write_text("a photo of blue water")
    Image.new("RGB", (50, 30), (200, 200, 17)).save(folder / "yellow" / "00.png")
    for path in folder.rglob("*"):
        os.utime(path, ns=(0, 0) if path.name == "77.png" else (10**18, 10**18))
    (folder / "green" / "00.png").unlink()


def vote() -> None:
    """Votes of the search page."""
    index = Path("index")
    ids = [str(path.relative_to(PHOTOS)) for path in sorted(Path(PHOTOS).glob("*/*.png"))]
    lines = [
        {"query_image": ids[i], "text": "another", "image_id": ids[i + 2 - vote], "vote": vote}
        for i in range(2)
        for vote in (1, -1)
    ]
    (index / "votes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def grow_corpus() -> int:
    """The corpus with the images that are there now."""
    grow()
    return main(STAGES["corpus-update"].arguments())


def to_store() -> None:
    """The work folder elsewhere than on this machine."""
    shutil.copytree(WORK, f"{PROTOCOL}/pipeline")
    shutil.rmtree(WORK)


def old_or_new(name: str) -> Callable[[Path, Path], None]:
    """What tells whether a folder, or the one that is set aside for a moment, is the old one or the new one."""

    def check(old: Path, new: Path) -> None:
        there = Path(name) if Path(name).exists() else Path(name).with_name(f".{Path(name).name}.old")
        assert written(there) in (written(old / name), written(new / name)), f"{there} is neither the old nor the new"

    return check


def index_whole(_old: Path, _new: Path) -> None:
    """An index can be searched whenever it is cut."""
    verify_files(Path("index"), read_record(Path("index")))


STAGES: Mapping[str, Stage] = {
    "corpus": Stage(f"{SCENES} --scenes.count 16"),
    "corpus-folder": Stage(f"corpus --source image_folder --path {PHOTOS} --shard_rows 6"),
    "corpus-update": Stage(
        f"corpus --source image_folder --path {PHOTOS} --shard_rows 6 --update",
        "corpus-folder",
        grow,
        old_or_new("work/corpus"),
    ),
    "corpus-overwrite": Stage(f"{SCENES} --scenes.count 12 --overwrite", "corpus"),
    "caption": Stage(f"caption --model m {ASKED} DESCRIBE", "corpus"),
    "pretrain": Stage(
        f"pretrain {SMALL} --model.vocabulary 300 --model.dimension 16 {SHORT_LOOP.format('clip.')}"
        f" {SHORT_LOOP.format('dino.')}",
        "corpus",
    ),
    "align": Stage(
        "align --image.model ./small/dino --text.model ./small/clip --dimension 8 --head_size 8 --eval_every 2"
        f" {LOOP}",
        "corpus",
    ),
    "embed": Stage(f"embed {ENCODERS}", "corpus"),
    "embed-folder": Stage(f"embed {ENCODERS}", "corpus-folder"),
    "embed-update": Stage(f"embed {ENCODERS} --update", "embed-folder", grow_corpus),
    "mine": Stage("mine --neighbors 8 --similarity_range [0.05,0.995] --range_kind quantile", "embed"),
    "mine-ivf": Stage(
        "mine --neighbors 4 --search ivf --similarity_range [0.05,0.995] --range_kind quantile", "embed"
    ),
    "describe": Stage("describe --engine rule_based --parser none", "mine"),
    "describe-server": Stage(f"describe --model m {ASKED} DESCRIBE", "mine"),
    "describe-file": Stage("describe --model m --requests requests.jsonl", "mine"),
    "instruct": Stage("instruct --engine rule_based --parser none", "describe"),
    "instruct-server": Stage(f"instruct --model m {ASKED} INSTRUCT", "describe"),
    "verify": Stage(f"verify --model m {ASKED} VERIFY", "instruct"),
    "corpus-store": Stage(f"{SCENES} --scenes.count 16 --work {PIPELINE}"),
    "corpus-store-overwrite": Stage(f"{SCENES} --scenes.count 12 --work {PIPELINE} --overwrite", "corpus-store"),
    "mine-store": Stage(
        f"mine --neighbors 8 --similarity_range [0.05,0.995] --range_kind quantile --work {PIPELINE}",
        "embed",
        to_store,
    ),
    "build-store": Stage(f"build --validation 0.2 --preview 4 --work {PIPELINE}", "instruct", to_store),
    "build": Stage("build --validation 0.2 --preview 4", "instruct"),
    "train": Stage(f"train --model ./small/clip --negatives 2 --eval_every 2 {LOOP}", "build"),
    "train-frozen": Stage(f"train --model ./small/clip --negatives 2 --freeze vision {LOOP}", "build"),
    "eval": Stage("eval --max_queries 8", "train"),
    "eval-circo": Stage("eval work/small/clip circo --data data --out circo_results --cache cache"),
    "report": Stage("report work", "eval"),
    "run": Stage("run ./recipe.yaml --work ran"),
    "push-dataset": Stage(f"push dataset work/triplets you/pairs {LICENSE}", "eval"),
    "push-model": Stage(f"push model work/model you/model {LICENSE}", "eval"),
    "import": Stage(f"dataset import lines.jsonl {PHOTOS} --out imported"),
    "export": Stage("dataset export imported exported", "import", once=True),
    "index": Stage(f"search index work/small/clip {PHOTOS} --out index"),
    "index-update": Stage(f"search index work/small/clip {PHOTOS} --out index", "index", grow, index_whole),
    "votes": Stage("search votes index --out voted", "index", vote),
    "push-space": Stage("push space index you/space --license cc0-1.0 --dry-run --out space", "index"),
}
