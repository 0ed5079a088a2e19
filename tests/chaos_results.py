"""What a run left, compared with what another one left; and what a run says where the disk is full."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.chaos_process import Ended

LOG = "training_log.jsonl"
# of a line of that log, what the clock and the machine decide
TIMES = {"seconds", "images_per_s", "memory_gb", "wait_share"}
# of a temporary file, and of a folder that is being deleted
PROCESS = re.compile(r"(?<=[.-])\d+(?=\.tmp)|\w+\.\d+(?=\.scratch)|(?<=gone-)[\d-]+")
FULL_DISK = re.compile(r"disk is full|No space left|free some space")


def written(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes, and every folder; caches of others left out."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not name.startswith("home/"):
            files[name if path.is_file() else f"{name}/"] = _content(path) if path.is_file() else b""
    return files


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name != LOG:
        return content
    lines = [json.loads(line) for line in content.splitlines()]
    return json.dumps([{key: line[key] for key in line if key not in TIMES} for line in lines]).encode()


def state(folder: Path) -> str:
    """What is below a folder, in one word; the number of a process in a name aside."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        name = PROCESS.sub("#", str(path.relative_to(folder)))
        digest.update(f"{name}\0{path.is_dir()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def differences(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Names that only one has, or whose bytes differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def one_sentence(ended: Ended) -> str:
    """What is wrong with how a run told that the disk is full; empty where nothing is."""
    told = [line for line in ended.output.splitlines() if line.startswith("megapairs: ")]
    if ended.status != 1:
        return f"status {ended.status}\n{ended.output[-2000:]}"
    if len(told) != 1 or "Traceback" in ended.output or not FULL_DISK.search(told[0]):
        return f"no one sentence\n{ended.output[-2000:]}"
    return ""
