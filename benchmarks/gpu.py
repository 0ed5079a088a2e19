"""What `bash benchmarks/gpu_check.sh` runs: every part in a process of its own, within a budget of seconds.

A part that fails, or for which no time is left, is named and takes no other with it. The last lines are `ratio NAME
VALUE`; everything else that was measured is in the JSON file, which is written after each part.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parent.parent
NEEDED = ("models", "mine")
# most important first, with the seconds that each may take
PARTS = {
    "tests": 100,
    "search": 70,
    "embed_clip": 70,
    "embed_dino": 70,
    "encode": 70,
    "train_mmret_clip_base": 90,
    "evaluate": 40,
    "train_mmret_clip_large": 150,
    "train_mmret_mllm": 240,
}
BUDGET_S = 540.0
# to end a part that is out of time, and to start with
RESERVE_S = 10.0


def missing() -> list[str]:
    """The packages that are not installed, or not in a version that setup.cfg allows."""
    if _has("packaging") is None:
        # of pytest, transformers and datasets
        return ["packaging"]
    from packaging.requirements import Requirement

    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = [config["options"]["install_requires"], *(config["options.extras_require"][name] for name in NEEDED)]
    lacking = set()
    for line in "\n".join([*texts, "pytest"]).split("\n"):
        requirement = Requirement(line) if line.strip() else None
        # either of the faiss packages gives the module
        if requirement is not None and not (requirement.name == "faiss-cpu" and _has("faiss-gpu-cu12-cuvs")):
            known = _has(requirement.name)
            if known is None or not requirement.specifier.contains(known, prereleases=True):
                lacking.add(f"{requirement}{f' (there is {known})' if known else ''}")
    return sorted(lacking)


def _has(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def device_name(*, tiny: bool = False) -> str | None:
    """The GPU, or None where there is none; asked in another process, so that this one holds no memory of it.

    Raises:
        SystemExit: torch cannot be loaded, or has no part in the GPU that this machine has.
    """
    program = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else '')"
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"torch cannot be loaded ({_last_line(done.stderr)}); install torch 2.8 or later for CUDA")
    name = done.stdout.strip()
    if not name and shutil.which("nvidia-smi") and not tiny:
        raise SystemExit("this machine has a GPU, and torch sees none: install its CUDA build, or pass --tiny")
    return name or None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["without a word"])[-1][:300]


def command_of(part: str, *, tiny: bool) -> list[str]:
    """How a part is run."""
    if part == "tests":
        files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
        return [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files]
    return [sys.executable, str(ROOT / "benchmarks" / "gpu_parts.py"), part, *(["--tiny"] if tiny else [])]


def run_part(command: list[str], limit_s: float) -> dict[str, Any]:
    """Run a part and read its lines `ratio NAME VALUE` and `fact NAME VALUE`."""
    began = time.monotonic()
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    try:
        output, errors = process.communicate(timeout=limit_s)
        status = "ok" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        output, errors = _ended(process)
        status = "out of time"
    except BaseException:
        _ended(process)
        raise
    tail = (output if command[1] == "-m" else errors)[-2000:]
    result: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - began, 1), "ratios": {}}
    result["facts"] = {}
    for words in (line.split(" ", 2) for line in output.split("\n")):
        if len(words) == 3 and words[0] in {"ratio", "fact"}:
            result[f"{words[0]}s"][words[1]] = float(words[2]) if words[0] == "ratio" else words[2]
    if status != "ok" or command[1] == "-m":
        result["output"] = tail
    return result


def _ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a part said, once it is ended with its own processes, which would go on using the GPU."""
    os.killpg(process.pid, signal.SIGKILL)
    try:
        return process.communicate(timeout=RESERVE_S / 2)
    except subprocess.TimeoutExpired as error:
        # a process that left the group holds the pipe
        output, errors = (
            part.decode() if isinstance(part, bytes) else part or "" for part in (error.stdout, error.stderr)
        )
        return output, errors


def run_all(
    parts: dict[str, float], budget_s: float, *, tiny: bool, keep: Callable[[dict[str, Any]], None] = lambda _: None
) -> dict[str, Any]:
    """Run the parts one after the other, as far as the budget goes.

    Args:
        parts: seconds that each may take.
        budget_s: seconds for all of them.
        tiny: whether sizes are tiny.
        keep: called with the results after each part, so that a machine that goes away leaves what was measured.
    """
    end, results = time.monotonic() + budget_s, {}
    for part, limit_s in parts.items():
        left = end - time.monotonic()
        if left < min(20.0, limit_s / 4):
            results[part] = {"status": "no time left", "seconds": 0.0, "ratios": {}, "facts": {}}
        else:
            results[part] = run_part(command_of(part, tiny=tiny), min(limit_s, left))
        keep(results)
        print(f"{part}: {results[part]['status']}, {results[part]['seconds']:.0f} s", flush=True)
        for name, value in results[part]["facts"].items():
            print(f"  {name}: {value}", flush=True)
        if "output" in results[part]:
            print("  " + results[part]["output"].strip().replace("\n", "\n  "), flush=True)
    return results


def main() -> None:
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on the processor; so anyway without a GPU")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="seconds for all parts together")
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"))
    options = parser.parse_args()
    lacking = missing()
    if lacking:
        raise SystemExit("these packages are missing, see the head of benchmarks/gpu_check.sh: " + ", ".join(lacking))
    gpu = device_name(tiny=options.tiny)
    tiny = options.tiny or not gpu
    if tiny:
        print("tiny sizes on the processor: that the parts run is all that this shows")
    # a processor is slower than it is tiny
    parts = {name: limit_s * (10 if tiny else 1) for name, limit_s in PARTS.items() if name in options.only}
    libraries = {name: _has(name) for name in ("torch", "transformers", "cuvs-cu12", "faiss-gpu-cu12-cuvs")}
    record = {"device": gpu or "processor", "tiny": tiny, "libraries": libraries}

    def keep(parts: dict[str, Any]) -> None:
        options.json.write_text(json.dumps({**record, "parts": parts}, indent=2) + "\n")

    # what has passed counts: whoever rents a machine counts it too
    left = options.budget_s * (10 if tiny else 1) - (time.monotonic() - began) - RESERVE_S
    results = run_all(parts, left, tiny=tiny, keep=keep)
    for result in results.values():
        for name, value in result["ratios"].items():
            print(f"ratio {name} {value:.3f}")
    if any(result["status"] == "failed" for result in results.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
