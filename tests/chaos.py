"""Every stage cut everywhere: `python -m tests.chaos`, `python -m tests.chaos --stage build --kills 20 --seed 0`.

A clean run of a stage counts its changes of the disk. Then, for each of them, the stage dies just before it, is run
again, and must leave the files of the clean run, byte for byte. The same with half a file in place of the one that was
being written, with a second death in the run that continues, with a full disk, and with SIGKILL at random moments.
What surprises: forks of one warm process make a window cost the time of two small stages and of no import.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

# before anything is imported that reads them: no thread is started, no other cache is written, nobody is asked
MEMORY = Path("/dev/shm")
FOLDER = Path(tempfile.mkdtemp(prefix="chaos-", dir=MEMORY if os.access(MEMORY, os.W_OK) else None))
# no stage is called so
RUN = FOLDER / "current"
HOME = RUN / "home"
os.environ |= {"HOME": str(HOME), "HF_HOME": str(HOME / "hf"), "XDG_CACHE_HOME": str(HOME / "cache")}
os.environ |= {
    "MEGAPAIRS_CACHE": str(HOME / "megapairs"),
    "TMPDIR": str(FOLDER / "tmp"),
    "HF_ENDPOINT": "http://127.0.0.1:9",
}
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PYTHONDONTWRITEBYTECODE": "1"}
sys.dont_write_bytecode, tempfile.tempdir = True, os.environ["TMPDIR"]

from tests.chaos_process import FULL, FULL_WRITE, GROWING, KILL, TORN, Ended, Fault, child, import_all  # noqa: E402
from tests.chaos_results import differences, one_sentence, state, written  # noqa: E402
from tests.chaos_stages import AT_ONCE, STAGES, Servers, make_sources  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SOURCES = "sources"
KINDS = {
    KILL: "dies just before a change",
    TORN: "and half a file is written",
    "twice": "dies, and dies again in the run that continues",
    FULL: "the disk is full when a file or folder is made",
    FULL_WRITE: "the disk is full when a file is written",
}
# what the parent's own changes of the folder stand for: nothing of them is counted
COUNTED = (f"{RUN}/",)


@dataclass
class Chaos:
    """Runs stages, whole and cut.

    Attributes:
        servers: of models.
        problems: sentences about what went wrong.
        tried: how often a stage was cut, by (stage, kind).
        clean: the clean run of a stage, with the files that it left.
        requests: that the clean run sent to servers.
        states: by stage, what a cut left, where the next run mended it.
    """

    servers: Servers
    problems: list[str] = field(default_factory=list)
    tried: Counter[tuple[str, str]] = field(default_factory=Counter)
    clean: dict[str, tuple[Ended, dict[str, bytes]]] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    states: set[tuple[str, str]] = field(default_factory=set)

    def problem(self, text: str) -> None:
        """Note what went wrong."""
        self.problems.append(text)
        print(text, flush=True)

    def run(self, call: Callable[[], int | None], fault: Fault | None = None, kill_after_s: float = 0.0) -> Ended:
        """Call a function in the folder of the run, in a child."""

        def inside() -> int | None:
            os.chdir(RUN)
            return call()

        return child(inside, COUNTED, fault, kill_after_s)

    def stage(self, name: str, fault: Fault | None = None, kill_after_s: float = 0.0) -> Ended:
        """Run a stage on what is in the folder."""
        return self.run(lambda: STAGES[name].run(self.servers.urls), fault, kill_after_s)

    def begin(self, name: str) -> None:
        """Put what a stage begins with into the folder."""
        shutil.rmtree(RUN, ignore_errors=True)
        shutil.copytree(FOLDER / f"{name}.start", RUN)

    def prepare(self, name: str) -> None:
        """Run a stage twice without a fault: the first run tells what to import, the second one counts."""
        if (FOLDER / name).exists():
            return
        shutil.rmtree(RUN, ignore_errors=True)
        stage = STAGES.get(name)
        if stage is None:
            RUN.mkdir()
            self._checked(self.run(make_sources), "the sources")
        else:
            self.prepare(stage.after or SOURCES)
            shutil.copytree(FOLDER / (stage.after or SOURCES), RUN)
            if stage.first:
                self._checked(self.run(lambda: stage.first and stage.first()), f"what comes before {name}")
            RUN.rename(FOLDER / f"{name}.start")
            self.begin(name)
            first = self._checked(self.stage(name), name)
            left = written(RUN)
            self.begin(name)
            asked = self.servers.asked.value
            second = self._checked(self.stage(name), name)
            self.requests[name] = self.servers.asked.value - asked
            for one in differences(left, written(RUN)):
                self.problem(f"{name}: two whole runs differ in {one}")
            if len(first.names) != len(second.names):
                self.problem(f"{name}: {len(first.names)} changes, then {len(second.names)}")
            self.clean[name] = second, written(RUN)
        RUN.rename(FOLDER / name)

    def _checked(self, ended: Ended, what: str) -> Ended:
        if ended.status:
            sys.exit(f"{what} ended with status {ended.status}:\n{ended.output}")
        import_all(ended.modules)
        # what lives now lives on: a child that looks for garbage would copy every page of it
        gc.freeze()
        return ended

    def window(self, name: str, kind: str, number: int, dice: random.Random) -> None:
        """Cut a stage at one change, and run it again."""
        ended, _ = self.clean[name]
        where = f"{name}, {kind} at {number} of {len(ended.names)} ({ended.names[number - 1].replace(str(RUN), '')})"
        self.begin(name)
        asked = self.servers.asked.value
        cut = self.stage(name, Fault(KILL if kind == "twice" else kind, number))
        self.tried[name, kind] += 1
        if kind in {FULL, FULL_WRITE}:
            problem = one_sentence(cut)
            # what is not needed for the result may fail
            if problem and not (cut.status == 0 and not differences(self.clean[name][1], written(RUN))):
                self.problem(f"{where}: {problem}")
        elif cut.status != -9:
            self.problem(f"{where}: it ended with status {cut.status}\n{cut.output[-2000:]}")
        if kind == "twice":
            again = dice.randint(1, len(ended.names))
            where += f", then at {again}"
            self.stage(name, Fault(KILL, again))
        self.resume(name, where)
        again = self.servers.asked.value - asked - self.requests.get(name, 0)
        # the half that is lost may be that of the journal, which no process that dies takes along
        lost = self.requests.get(name, 0) / 2 if kind == TORN else 0
        if again > AT_ONCE * (2 if kind == "twice" else 1) + lost:
            self.problem(f"{where}: {again} requests were sent again")

    def killed(self, name: str, dice: random.Random) -> None:
        """Kill a stage at one random moment or at several, and run it again."""
        ended, _ = self.clean[name]
        self.begin(name)
        moments = []
        for _ in range(dice.choice([1, 1, 2, 3])):
            moments.append(dice.uniform(0.001, ended.seconds))
            self.tried[name, "kills"] += self.stage(name, kill_after_s=moments[-1]).status == -9
        self.resume(name, f"{name}, killed after {', '.join(f'{moment:.4f}' for moment in moments)} s")

    def resume(self, name: str, where: str) -> None:
        """Run a stage again, and compare what it leaves with what the clean run left."""
        check = STAGES[name].whole
        if check is not None:
            before = self.run(lambda: check(FOLDER / f"{name}.start", FOLDER / name))
            if before.status:
                self.problem(f"{where}: what is there is not whole\n{before.output[-2000:]}")
        if STAGES[name].once and not differences(self.clean[name][1], written(RUN)):
            return
        # a change that changes nothing, such as the making of a folder that is there, leaves what has been tried
        there = state(RUN)
        if (name, there) in self.states:
            return
        again = self.stage(name)
        if again.status:
            self.problem(f"{where}: the next run ended with status {again.status}\n{again.output[-2000:]}")
            return
        different = differences(self.clean[name][1], written(RUN))
        if different:
            self.problem(f"{where}: {', '.join(different[:5])} not as in the whole run")
            return
        self.states.add((name, there))

    def numbers(self, name: str, kind: str) -> list[int]:
        """The changes of a clean run at which a stage is cut."""
        names = self.clean[name][0].names
        kinds = [one.partition(" ")[0] for one in names]
        if kind == TORN:
            return [i + 1 for i in range(1, len(names)) if kinds[i - 1] == "write"]
        if kind in {FULL, FULL_WRITE}:
            growing = GROWING if kind == FULL else GROWING[:1]
            # the limit that stands for a full disk keeps the shared memory of libraries small too, which a push uses
            # when it tries whether a data set loads; it is then in the cache, and no longer in what is written
            cached = f" {HOME}/" if kind == FULL_WRITE else "\0"
            return [i + 1 for i in range(len(names)) if kinds[i] in growing and cached not in names[i]]
        return list(range(1, len(names) + 1))

    def row(self, name: str) -> str:
        """A line of the table."""
        ended = self.clean[name][0]
        counts = [self.tried[name, kind] for kind in (*KINDS, "kills")]
        return f"{name:18}{len(ended.names):7,}" + "".join(f"{count:12,}" for count in counts)


def sampled(numbers: list[int], most: int | None, dice: random.Random) -> list[int]:
    """All, or so many of them."""
    return numbers if most is None or len(numbers) <= most else sorted(dice.sample(numbers, most))


def run(stages: Iterable[str], kinds: Iterable[str], *, most: int | None, kills: int, seed: int) -> Chaos:
    """Cut stages everywhere, or at a sample of the changes.

    Args:
        stages: their names.
        kinds: of KINDS.
        most: windows of a stage and kind; None for every one.
        kills: at random moments, of each stage, at least.
        seed: of what is random.
    """
    (FOLDER / "tmp").mkdir(parents=True, exist_ok=True)
    with Servers() as servers:
        chaos = Chaos(servers)
        print(f"{'stage':18}changes" + "".join(f"{kind:>12}" for kind in (*KINDS, "kills")), flush=True)
        for name in stages:
            chaos.prepare(name)
            for kind in kinds:
                dice = random.Random(f"{seed} {name} {kind}")
                numbers = chaos.numbers(name, kind)
                for number in sampled(numbers, most, dice):
                    chaos.window(name, kind, number, dice)
                assert most is not None or chaos.tried[name, kind] == len(numbers)
            dice = random.Random(f"{seed} {name}")
            while chaos.tried[name, "kills"] < kills:
                chaos.killed(name, dice)
            print(chaos.row(name), flush=True)
    return chaos


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES), help="which (default: all)")
    text = "; ".join(f"{kind}: {what}" for kind, what in KINDS.items())
    parser.add_argument("--kind", nargs="*", choices=KINDS, default=list(KINDS), help=f"how it is cut: {text}")
    parser.add_argument("--most", type=int, help="windows of each stage and kind, a sample (default: all)")
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs of each stage at random moments (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample and of these moments (%(default)s)")
    words = parser.parse_args()
    try:
        chaos = run(words.stage, words.kind, most=words.most, kills=words.kills, seed=words.seed)
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
    print(f"{sum(chaos.tried.values()):,} cuts, {len(chaos.problems):,} problems")
    return 1 if chaos.problems else 0


if __name__ == "__main__":
    sys.exit(main())
