"""benchmarks/gpu_check.sh at tiny sizes on the processor, and what it does with a part that fails."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu, gpu_parts, gpu_train
from tests.small import ROOT

RATIOS = {
    "mine_gpu_search_vs_matmul",
    "mine_gpu_search_half_copies_vs_matmul",
    "embed_gpu_clip",
    "embed_gpu_dino",
    "encode_gpu_text",
    "encode_gpu_image",
    "encode_gpu_joint",
    "evaluate_circo_vs_bare",
    "evaluate_circo_seconds",
    "train_gpu_mmret_clip_base_vs_matmul",
    "train_gpu_mmret_clip_large_vs_matmul",
    "train_gpu_mmret_mllm_vs_matmul",
}


def check(folder, *words):
    command = ["bash", str(ROOT / "benchmarks" / "gpu_check.sh"), "--tiny", "--json", str(folder / "check.json")]
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run([*command, *words], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads((folder / "check.json").read_text())


def test_a_part_at_tiny_sizes(tmp_path):
    printed, record = check(tmp_path, "--only", "search")
    assert record["tiny"]
    part = record["parts"]["search"]
    assert part["status"] == "ok"
    assert set(part["ratios"]) == {name for name in RATIOS if name.startswith("mine")}
    assert part["facts"]["search_engine"] == "torch"
    for name in part["ratios"]:
        assert f"\nratio {name} " in printed


@pytest.mark.long
def test_every_part_at_tiny_sizes(tmp_path):
    _, record = check(tmp_path)
    assert {name: part["status"] for name, part in record["parts"].items()} == dict.fromkeys(gpu.PARTS, "ok")
    ratios = {name: value for part in record["parts"].values() for name, value in part["ratios"].items()}
    assert set(ratios) == RATIOS
    assert all(value > 0 for value in ratios.values())
    facts = record["parts"]["train_mmret_clip_base"]["facts"]
    assert facts["mmret_clip_base_micro_batch"] == "4"


PROGRAMS = {
    "good": "print('ratio a 0.5'); print('fact size 3 rows'); print('a ratio of nothing')",
    "bad": "print('ratio b 2', flush=True); raise SystemExit('no such thing')",
    # a process of its own holds the pipe
    "slow": "import subprocess, sys; print('ratio c 3', flush=True);"
    " subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])",
    "late": "print('ratio d 4')",
}


@pytest.mark.long
def test_a_part_takes_no_other_with_it(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "command_of", lambda part, tiny: [sys.executable, "-c", PROGRAMS[part]])
    results = gpu.run_all({"good": 60, "bad": 60, "slow": 10, "late": 60}, 120, tiny=True)
    assert [results[name]["status"] for name in PROGRAMS] == ["ok", "failed", "out of time", "ok"]
    assert [results[name]["ratios"] for name in PROGRAMS] == [{"a": 0.5}, {"b": 2.0}, {"c": 3.0}, {"d": 4.0}]
    assert results["good"]["facts"] == {"size": "3 rows"}
    assert "no such thing" in results["bad"]["output"]
    assert "bad: failed" in capsys.readouterr().out
    # where the budget is gone, what is left is named
    assert gpu.run_all({"good": 60}, 5, tiny=True)["good"]["status"] == "no time left"


def test_what_was_measured_is_written_after_each_part(monkeypatch):
    monkeypatch.setattr(gpu, "command_of", lambda part, tiny: [sys.executable, "-c", PROGRAMS[part]])
    seen = []
    gpu.run_all({"good": 60, "late": 60}, 120, tiny=True, keep=lambda parts: seen.append(sorted(parts)))
    assert seen == [["good"], ["good", "late"]]


def test_an_interrupted_part_leaves_no_process(monkeypatch, tmp_path):
    """As Ctrl-C has it: the part and its own processes are gone before the script is."""
    pid = tmp_path / "pid"
    program = f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid())); time.sleep(600)"

    def interrupted(self, timeout=None):
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.01)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gpu.run_part([sys.executable, "-c", program], 60)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


@pytest.mark.long
def test_a_process_that_leaves_the_group_does_not_hold_the_script(monkeypatch):
    monkeypatch.setattr(gpu, "RESERVE_S", 2.0)
    away = (
        "import subprocess, sys; print('ratio e 5', flush=True);"
        " child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(90)'], start_new_session=True);"
        " print('fact pid', child.pid, flush=True); child.wait()"
    )
    result = gpu.run_part([sys.executable, "-c", away], 10)
    os.kill(int(result["facts"]["pid"]), signal.SIGKILL)
    assert result["status"] == "out of time"
    assert result["ratios"] == {"e": 5.0}


def test_a_torch_that_cannot_be_loaded_or_sees_no_gpu_is_told_in_a_sentence(monkeypatch):
    def answers(status, output, errors):
        monkeypatch.setattr(
            gpu.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], status, output, errors)
        )

    answers(1, "", "Traceback\n  …\nImportError: libcudart.so.13: cannot open shared object file\n")
    with pytest.raises(SystemExit, match=r"^torch cannot be loaded \(ImportError: libcudart.*\); install torch 2.8"):
        gpu.device_name()
    answers(0, "\n", "")
    monkeypatch.setattr(gpu.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    with pytest.raises(SystemExit, match="torch sees none: install its CUDA build, or pass --tiny"):
        gpu.device_name()
    assert gpu.device_name(tiny=True) is None
    monkeypatch.setattr(gpu.shutil, "which", lambda _: None)
    assert gpu.device_name() is None
    monkeypatch.setattr(gpu, "_has", lambda _: None)
    assert gpu.missing() == ["packaging"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            "^search does not fit into 24 GB, of 80 that the sizes are for$",
        ),
        (OSError(errno.ENOSPC, "No space left"), "is full; set TMPDIR to a disk with 40 GB free$"),
    ],
)
def test_too_little_memory_or_disk_ends_a_part_in_a_sentence(monkeypatch, error, message):
    def fail(*_):
        raise error

    monkeypatch.setattr(gpu_parts, "run", fail)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=24 * 2**30))
    monkeypatch.setattr(sys, "argv", ["gpu_parts.py", "search", "--tiny"])
    with pytest.raises(SystemExit, match=message):
        gpu_parts.main()


def test_the_parts_and_their_budget():
    assert gpu.BUDGET_S <= 540
    for part in gpu.PARTS:
        command = gpu.command_of(part, tiny=True)
        assert ("--tiny" in command) == (part != "tests")
    files = [word for word in gpu.command_of("tests", tiny=False) if word.endswith(".py")]
    assert {name.rpartition("/")[2] for name in files} >= {"test_loader.py", "test_gpu_search.py"}


def test_missing_packages_are_named(monkeypatch):
    assert gpu.missing() == []
    versions = {"datasets": None, "torch": "2.7.1"}
    has = gpu._has
    monkeypatch.setattr(gpu, "_has", lambda name: versions[name] if name in versions else has(name))
    assert gpu.missing() == ["datasets>=5.1", "torch>=2.8 (there is 2.7.1)"]


STEPS = """
import json, pathlib, sys, time
log = pathlib.Path(sys.argv[1], "out", "model", ".run", "training_log.jsonl")
log.parent.mkdir(parents=True)
for step in range(1, 4):
    with log.open("a") as file:
        file.write(json.dumps({"step": step, "loss": 1.0, "seconds": step}) + "\\n")
        file.write(json.dumps({"step": step, "validation/recall@1": 1.0, "seconds": step}) + "\\n")
    time.sleep(0.5)
time.sleep(600)
"""


def test_a_step_is_the_time_between_two_lines_and_then_the_command_ends(tmp_path):
    measured = gpu_train.attempt([sys.executable, "-c", STEPS, str(tmp_path)], tmp_path)
    assert 0.2 < measured["seconds_per_step"] < 30


def test_too_little_memory_is_no_failure_but_all_else_is(tmp_path):
    full = "raise SystemExit('CUDA out of memory. Tried to allocate 2 GiB')"
    assert gpu_train.attempt([sys.executable, "-c", full], tmp_path) is None
    with pytest.raises(SystemExit, match="ended after 0 steps: no such recipe"):
        gpu_train.attempt([sys.executable, "-c", "raise SystemExit('no such recipe')"], tmp_path)


@pytest.mark.parametrize("fits", [1024, 512, 256, 0])
def test_the_largest_micro_batch_that_fits(fits, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_train.encoding, "make_clip", lambda folder, size: "model")
    monkeypatch.setattr(gpu_train, "write_triplets", lambda *_: "triplets")
    tried = []

    def attempt(command, work):
        tried.append(int(command[command.index("--micro-batch") + 1]))
        return {"seconds_per_step": 2.0, "peak_gb": 1.0} if tried[-1] == fits else None

    monkeypatch.setattr(gpu_train, "attempt", attempt)
    if not fits:
        with pytest.raises(SystemExit, match="not even a micro-batch of 256 fits"):
            gpu_train.train_step("mmret_clip_base", tmp_path, tiny=False)
        return
    step = gpu_train.train_step("mmret_clip_base", tmp_path, tiny=False)
    assert step["micro_batch"] == fits == tried[-1]
    assert tried == [size for size in (1024, 512, 256) if size >= fits]
    # four times the forward pass of recipes/README.md
    assert step["tflops"] == pytest.approx(4 * 370 / 2)
