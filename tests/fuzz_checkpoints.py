"""Mutations of the files of a checkpoint: it is passed over for the one before, unless it says what it said."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from megapairs_hf.training.checkpoint import load_weights, newest, save_checkpoint, write_state, write_weights
from megapairs_hf.training.checkpoint_digests import DIGESTS
from tests.fuzz_evaluation import silent
from tests.fuzz_tables import damaged


def fuzz_checkpoints(count: int, seed: int) -> Counter[str]:
    """Resume from checkpoints one of whose files is mutated.

    Args:
        count: mutations of the files of the newest of two checkpoints in turn.
        seed: of the mutations.

    Returns:
        How often the newest was taken, which is whole, and how often the one before.
    """
    import torch

    def trained() -> tuple[Any, Any]:
        torch.manual_seed(0)
        module = torch.nn.Linear(4, 3)
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
        module(torch.ones(2, 4)).sum().backward()
        return module, optimizer

    results: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, silent():
        whole, root = Path(folder) / "whole", Path(folder) / "checkpoints"
        module, optimizer = trained()
        weights = {}
        for step in (2, 4):
            optimizer.step()
            weights[step] = {name: value.clone() for name, value in module.state_dict().items()}
            record = {"step": step, "settings": {"lr": 0.1}, "best": None}
            save_checkpoint(whole, record, keep=2, write=lambda path: _write(path, module, optimizer))
        names = sorted(path.name for path in (whole / "step-00000004").iterdir())
        for i in range(count):
            dice = random.Random(f"{seed} {i}")
            shutil.copytree(whole, root)
            file = root / "step-00000004" / names[i % len(names)]
            before = file.read_bytes()
            _mutate(file, dice)
            same = file.is_file() and _content(file.name, file.read_bytes()) == _content(file.name, before)
            newest_one, record = newest(root, {"lr": 0.1}) or (None, {})
            step = 4 if same else 2
            assert record["step"] == step, f"number {i} of seed {seed}, {file.name}: step {record['step']} is taken"
            other, _ = trained()
            load_weights(newest_one, other)
            assert all(torch.equal(value, weights[step][name]) for name, value in other.state_dict().items())
            results[f"step {step}"] += 1
            shutil.rmtree(root)
    assert sum(results.values()) == count
    return results


def _write(path: Path, module: Any, optimizer: Any) -> None:
    write_weights(path, module)
    write_state(path / "optimizer.pt", optimizer.state_dict())
    (path / "config.json").write_text('{"model_type": "clip"}')
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 8)


def _mutate(file: Path, dice: random.Random) -> None:
    match dice.randrange(5):
        case 0:
            file.unlink()
        case 1:
            os.truncate(file, dice.randrange(file.stat().st_size))
        case 2 if file.name == DIGESTS:
            # the writing of the list itself
            file.write_bytes(b" " + json.dumps(json.loads(file.read_bytes())).encode() + b"\n")
        case _:
            file.write_bytes(damaged(file.read_bytes(), dice))


def _content(name: str, content: bytes) -> Any:
    """What a file says; of the list of hashes the writing does not count."""
    try:
        return json.loads(content) if name == DIGESTS else content
    except ValueError:
        return None
