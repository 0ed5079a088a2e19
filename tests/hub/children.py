"""Child processes that talk to the loopback Hub: huggingface_hub reads its endpoint when it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def environment(hub: Any, home: Path, token: str = "good", endpoint: str | None = None) -> dict[str, str]:
    more = {"HF_ENDPOINT": endpoint or hub.endpoint, "HF_TOKEN": token, "HF_HOME": str(home)}
    more |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    return clean | more | {"PYTHONPATH": str(ROOT)}


def start_child(hub: Any, home: Path, *words: Any, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        env=environment(hub, home, **options),
        cwd=home.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_child(hub: Any, home: Path, *words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    with start_child(hub, home, *words, **options) as process:
        try:
            out, err = process.communicate()
        except BaseException:
            # pytest's time-out: leaving the block waits for the process
            process.kill()
            raise
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def child(hub: Any, tmp_path: Path, code: str, *arguments: Any, **options: Any) -> str:
    """Run code; it must not fail. Returns what it printed."""
    done = run_child(hub, tmp_path / "home", "-c", code, *arguments, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def megapairs(hub: Any, tmp_path: Path, *words: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    return run_child(hub, tmp_path / "home", "-m", "megapairs_hf", *words, **options)
