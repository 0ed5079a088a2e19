"""Many processes, two machines, and a bound on memory."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from megapairs_hf.cli import main
from tests.clustered import made_corpus, made_embeddings
from tests.small import ROOT, files_of, megapairs, reserve, torchrun

YAML = """
neighbors: 20
similarity_range: [0.3, 0.97]
search: {search}
recall: 0.9
relations:
- {{name: image}}
- {{name: image_text, query: image, target: text}}
"""


def unit(embeddings):
    return (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A work folder with a corpus of ten shards, and image and text embeddings that go together."""
    work = tmp_path_factory.mktemp("scale")
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((40, 32))
    image = centers[rng.integers(0, 40, 2600)] + 0.7 * rng.standard_normal((2600, 32))
    corpus = made_corpus(work / "corpus", 2600, 270)
    for name, embeddings, kind in (
        ("image", image, "image"),
        ("text", image + 0.5 * rng.standard_normal(image.shape), "caption"),
    ):
        made_embeddings(work / "embeddings" / name, corpus, unit(embeddings), kind)
    return work


def words(work, config, out):
    inputs = ["--corpus", work / "corpus", "--embeddings", work / "embeddings"]
    return ["mine", "--config", config, "--work", work, *inputs, "--out", out]


def mine_alone(*told):
    assert main([str(word) for word in words(*told)]) == 0


@pytest.mark.parametrize(("search", "processes"), [("exact", 3), ("ivf", 2)])
def test_several_processes_mine_the_same_pairs_as_one(search, processes, made, tmp_path):
    (tmp_path / "mine.yaml").write_text(YAML.format(search=search))
    mine_alone(made, tmp_path / "mine.yaml", tmp_path / "one")
    mined = torchrun(processes, *words(made, tmp_path / "mine.yaml", tmp_path / "several"))
    assert mined.returncode == 0, mined.stderr
    # ten shards, manifest, README, rejected, near_duplicates
    assert len(files_of(tmp_path / "one")) == 14
    assert files_of(tmp_path / "one") == files_of(tmp_path / "several")


def test_two_machines_on_loopback(made, tmp_path):
    """`torchrun --nnodes 2` twice, as on two machines that share a disk."""
    (tmp_path / "mine.yaml").write_text(YAML.format(search="exact"))
    kept = reserve()
    port = kept.getsockname()[1]

    def machine(rank):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(rank)]
        launcher += ["--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", str(port)]
        command = [*launcher, "-m", "megapairs_hf", *words(made, tmp_path / "mine.yaml", tmp_path / "two")]
        return subprocess.run(
            [str(word) for word in command],
            check=False,
            capture_output=True,
            text=True,
            # less than pytest's, which cannot end a thread
            timeout=1000,
            cwd=ROOT,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        )

    with kept, ThreadPoolExecutor(2) as pool:
        for done in pool.map(machine, (0, 1)):
            assert done.returncode == 0, done.stderr
    mine_alone(made, tmp_path / "mine.yaml", tmp_path / "one")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


PROGRAM = r"""
import re, sys
from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.mining import MineConfig, mine_pairs; from megapairs_hf.mining.knn import plan

def mine(name):
    found, corpus = {"v": open_artifact(f"{work}/{name}-v")}, open_artifact(f"{work}/{name}")
    config = MineConfig(neighbors=10, similarity_range=(0.3, 0.97), search=search, memory_gb=1.5, threads=2)
    mine_pairs(found, corpus, config=config, out=f"{work}/{name}-{search}")
    # getrusage would tell the memory of the process that started this one
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) * 1024

work, search, budget = sys.argv[1], sys.argv[2], int(sys.argv[3])
plan.LIBRARIES += plan.available(MineConfig(memory_gb=1.5, threads=2)) - budget
print("told", mine("small"), mine("large"))
"""


@pytest.mark.long
def test_memory_stays_within_the_bound(tmp_path):
    """Embeddings that take 250 MB with copies and results are mined in 60 MB beside threads and allocator."""
    rng = np.random.default_rng(1)
    for name, count in (("small", 3000), ("large", 72_000)):
        embeddings = unit(rng.standard_normal((count, 1024), dtype=np.float32) + 1)
        made_embeddings(tmp_path / f"{name}-v", made_corpus(tmp_path / name, count, 6000), embeddings)
    budget = 60_000_000
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), "exact", str(budget)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    small, large = map(int, done.stdout.split()[-2:])
    assert large - small <= budget + 140_000_000, f"{(large - small) / 1e6:.0f} MB"


def test_the_slurm_script_is_valid_shell_and_its_flags_exist():
    script = ROOT / "recipes/slurm/pipeline.sbatch"
    for each in script.parent.glob("*.sbatch"):
        subprocess.run(["bash", "-n", each], check=True)
    helped = megapairs("mine", "--help")
    assert "--device" in helped.stdout
    missing = subprocess.run(
        ["bash", script], check=False, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
    )
    assert missing.returncode != 0
    assert "set WORK" in missing.stderr
