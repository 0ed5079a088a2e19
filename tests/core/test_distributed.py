"""Which device a process takes, how processes speak, and how long they wait for each other."""

import sys
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from megapairs_hf.core.distributed import choose_device, crowded_accelerators, device_of_rank, rank, world_size
from tests.small import ROOT, run


def test_ranks_share_the_accelerators_in_turn(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert [device_of_rank(rank) for rank in (None, 0, 1, 2)] == ["cuda:0", "cuda:0", "cuda:1", "cuda:0"]
    assert choose_device() == "cuda:0"
    assert choose_device("cpu") == "cpu"


def test_without_an_accelerator_it_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    assert device_of_rank(None) == device_of_rank(3) == choose_device() == "cpu"


@pytest.mark.parametrize(
    ("gpus", "forced", "expected"),
    [
        # gloo carries messages and barriers also where there are GPUs, which NCCL starts for their tensors alone
        (2, "", {"cpu": False, "backend": "cpu:gloo,cuda:nccl"}),
        (1, "", {"cpu": False, "backend": "cpu:gloo,cuda:nccl"}),
        (2, "true", {"cpu": True}),
        (0, "", {"cpu": True}),
    ],
)
def test_processes_speak_by_gloo_and_gpus_by_nccl(monkeypatch, gpus, forced, expected):
    started = []

    class State(SimpleNamespace):
        _shared_state: ClassVar = {}

        def __init__(self, **settings):
            started.append(settings)
            super().__init__(process_index=1, num_processes=3)

    monkeypatch.setattr("accelerate.PartialState", State)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: gpus)
    for name, value in {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "ACCELERATE_USE_CPU": forced}.items():
        monkeypatch.setenv(name, value)
    assert (rank(), world_size()) == (1, 3)
    assert all({**settings, "timeout": None} == {**expected, "timeout": None} for settings in started)
    # three processes on these GPUs: how many there are, where a training must be refused
    assert crowded_accelerators() == (0 if forced else gpus)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(max(1, gpus)))
    assert crowded_accelerators() == 0


PROGRAM = """
import os, time
from datetime import timedelta
from torch import distributed as group
from megapairs_hf.core import distributed
backend = lambda: group.distributed_c10d._get_default_group()._get_backend(__import__("torch").device("cpu"))
rank = distributed.rank()
distributed.barrier()
assert backend().options._timeout == distributed.STAGE_TIMEOUT
with distributed.collective_timeout(timedelta(seconds=2)):
    if rank == 1:
        # is not there when the other waits for it
        time.sleep(600)
    try:
        distributed.barrier()
    except RuntimeError as error:
        print("gave up:", type(error).__name__, flush=True)
        os._exit(7)
"""


def test_a_process_that_is_lost_is_noticed(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    place = ["--master_addr", "127.0.0.1", "--rdzv_endpoint", "127.0.0.1:0", str(tmp_path / "program.py")]
    done = run([*launcher, *place], {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)})
    assert "gave up: " in done.stdout and done.returncode != 0, done.stderr
