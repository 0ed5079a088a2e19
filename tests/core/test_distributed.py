"""Which device a process takes."""

from types import SimpleNamespace

import torch

from megapairs_hf.core.distributed import choose_device, device_of_rank


def test_ranks_share_the_accelerators_in_turn(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert [device_of_rank(rank) for rank in (None, 0, 1, 2)] == ["cuda:0", "cuda:0", "cuda:1", "cuda:0"]
    assert choose_device() == "cuda:0"
    assert choose_device("cpu") == "cpu"


def test_without_an_accelerator_it_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    assert device_of_rank(None) == device_of_rank(3) == choose_device() == "cpu"
