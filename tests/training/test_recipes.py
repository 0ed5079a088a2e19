"""Every training recipe makes two steps, with tiny models and its own settings otherwise."""

import subprocess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.cli.parser import parse
from megapairs_hf.models import load_mmret
from tests.models.tiny import llava
from tests.models.tiny_mllm import qwen3
from tests.small import ROOT

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("mmret_*.yaml"))
PAPER = {
    "mmret_clip_base": {"steps": 15000, "batch_size": 2048, "negatives": 4},
    "mmret_clip_large": {"steps": 25000, "batch_size": 2048, "negatives": 4},
    "mmret_mllm": {"steps": 20000, "batch_size": 144, "negatives": 3, "lora_rank": 32},
    "mmret_qwen3vl": {"steps": 20000, "batch_size": 144, "negatives": 3, "lora_rank": 32},
    "mmret_mllm_mmeb": {"batch_size": 192, "lora_rank": 32},
}


def settings(name):
    return yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text())["train"]


def test_recipes_have_the_papers_settings():
    assert RECIPES == sorted(PAPER)
    for name in RECIPES:
        told = settings(name)
        assert told.items() >= {**PAPER[name], "lr": 5e-6, "schedule": "linear", "temperature": 0.02}.items()
    # 662,000 rows in batches of 192, once; the twenty sets
    assert settings("mmret_mllm_mmeb")["steps"] == round(662_000 / 192)
    assert len({source["name"] for source in settings("mmret_mllm_mmeb")["sources"]}) == 20


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_two_steps(name, triplets, models, tmp_path):
    place = llava(tmp_path / "llava") if "mllm" in name else f"{models}/clip"
    place = qwen3(tmp_path / "qwen3") if "qwen3" in name else place
    words = ["train", "--config", str(ROOT / "recipes" / f"{name}.yaml"), "--max-steps", "2", "--model", place]
    words += ["--batch_size", "4", "--workers", "0", "--triplets", triplets.path, "--work", str(tmp_path)]
    if "sources" in settings(name):
        rows = [{"qry": f"say {i}", "pos_text": f"said {i}", "neg_text": f"not {i}"} for i in range(8)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
        words += ["--sources", "[{path: ./rows.parquet}]"]
    assert parse([*words, "--out", str(tmp_path / "out" / "model")])() == 0
    made = open_artifact(tmp_path / "out" / "model", "model")
    assert made.manifest.stats["steps"] == 2
    assert load_mmret(made.path, device="cpu").encode(["a"]).shape[0] == 1
    if "eval_every" in settings(name):
        assert "validation/recall@1" in made.manifest.stats["evaluation"]


def test_a_qwen3_vl_that_was_trained_keeps_its_sizes_and_trains_the_named_layers(triplets, tmp_path):
    words = [
        "train",
        "--config",
        str(ROOT / "recipes" / "mmret_qwen3vl.yaml"),
        "--max-steps",
        "1",
        "--batch_size",
        "4",
    ]
    words += ["--triplets", triplets.path, "--work", str(tmp_path), "--model", qwen3(tmp_path / "qwen3")]
    assert parse([*words, "--workers", "0", "--lr", "0.01", "--max_pixels", "9216", "--dtype", "float32"])() == 0
    model = load_mmret(tmp_path / "model", device="cpu")
    assert model.preparer.side is None
    assert model[0].processor.image_processor.size["longest_edge"] == 9216
    before = load_mmret(tmp_path / "qwen3", device="cpu")[0].model.state_dict()
    after = model[0].model.state_dict()
    changed = {name.split(".")[-2] for name in before if not before[name].equal(after[name].to(before[name].dtype))}
    assert changed == set(settings("mmret_qwen3vl")["lora_layers"])


@pytest.mark.long
def test_the_mmeb_recipe_follows_the_mllm_recipe_in_one_work_folder(triplets, tmp_path):
    pq.write_table(
        pa.Table.from_pylist([{"qry": f"say {i}", "pos_text": f"said {i}"} for i in range(8)]),
        tmp_path / "rows.parquet",
    )
    words = [
        "--max-steps",
        "1",
        "--batch_size",
        "4",
        "--workers",
        "0",
        "--triplets",
        triplets.path,
        "--work",
        str(tmp_path),
    ]
    first = [str(ROOT / "recipes" / "mmret_mllm.yaml"), "--model", llava(tmp_path / "llava")]
    assert parse(["train", "--config", *first, *words])() == 0
    then = [str(ROOT / "recipes" / "mmret_mllm_mmeb.yaml"), "--sources", "[{path: ./rows.parquet}]"]
    assert parse(["train", "--config", *then, *words, "--out", str(tmp_path / "model-mmeb")])() == 0
    made = {name: open_artifact(tmp_path / name, "model") for name in ("model", "model-mmeb")}
    assert made["model"].manifest.inputs["model"] != made["model-mmeb"].manifest.inputs["model"]


def test_the_slurm_script_hands_its_words_on(tmp_path):
    told = tmp_path / "told"
    (tmp_path / "srun").write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > {told}\n')
    (tmp_path / "scontrol").write_text("#!/bin/bash\necho here\n")
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    settings = {"PATH": f"{tmp_path}:/usr/bin:/bin", "WORK": "/w", "CONFIG": "c.yaml", "SLURM_JOB_NODELIST": "here"}
    script = ["bash", str(ROOT / "recipes" / "slurm" / "train.sbatch"), "--out", "/w/model-mmeb"]
    subprocess.run(script, check=True, env=settings)
    words = ["--config", "c.yaml", "--work", "/w", "--out", "/w/model-mmeb"]
    assert told.read_text().splitlines()[-6:] == words


def test_accelerate_reads_its_settings():
    (file,) = (ROOT / "recipes" / "accelerate").glob("*.yaml")
    config = load_config_from_file(str(file))
    assert config.num_processes == 8 and not config.fsdp_config
