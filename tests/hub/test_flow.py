"""The real huggingface_hub, datasets and sentence-transformers clients, in child processes, against the loopback Hub.

Push a data set, load it in every way, train on it, push the model, load that in every way, push its results.
"""

import json
import shutil

import pytest
import yaml

from tests.hub.children import child, megapairs
from tests.making import make_work, result_records
from tests.small import make_small_models

DATASET, MODEL = ("dataset", "org/megapairs"), ("model", "org/mmret-base")

TRAIN = """
import sys
from datasets import load_dataset
from megapairs_hf.training import TrainConfig, train

out, backbone = sys.argv[1:]
print({k: len(v) for k, v in load_dataset("org/megapairs").items()})
print(next(iter(load_dataset("org/megapairs", split="train", streaming=True)))["q_img"])
image = next(iter(load_dataset("org/megapairs", "images", split="train", streaming=True)))["image"]
print(image.size)
config = TrainConfig(model=backbone, steps=3, batch_size=8, lr=1e-3, negatives=1, log_every=1, warmup_steps=1)
print(train("org/megapairs", config=config, out=out).manifest.stats["steps"])
"""

LOAD = """
import sys
from pathlib import Path
from PIL import Image
from huggingface_hub import hf_hub_download
from sentence_transformers import SentenceTransformer
from megapairs_hf import load_mmret

for name, color in {"room.jpg": "red", "a.jpg": "blue", "b.jpg": "green"}.items():
    Image.new("RGB", (40, 30), color).save(name)
query = [{"image": "room.jpg", "text": "the same at night"}]
theirs = SentenceTransformer("org/mmret-base", trust_remote_code=True, device="cpu").encode_query(query)
ours = load_mmret("org/mmret-base", device="cpu").encode_query(query)
print(theirs.shape, bool((abs(theirs - ours) < 1e-6).all()))
snippets = 0
for repo, kind in (("org/megapairs", "dataset"), ("org/mmret-base", "model")):
    card = Path(hf_hub_download(repo, "README.md", repo_type=kind)).read_text()
    for snippet in card.split("```python\\n")[1:]:
        exec(snippet.split("```")[0], {})
        snippets += 1
print(snippets, "snippets")
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("flow")


@pytest.fixture(scope="module")
def work(home):
    from megapairs_hf.artifacts.artifact import open_artifact

    work = make_work(home / "work")
    shutil.rmtree(work / "model")
    make_small_models(home / "small", open_artifact(work / "corpus"))
    return work


def names(hub, repo, branch="main"):
    return set(hub.commits[hub.heads[repo][branch]])


@pytest.fixture(scope="module")
def trained(shared_hub, home, work):
    """The data set pushed, loaded, trained on, and the model pushed."""
    words = ["--license", "cc-by-4.0"]
    done = megapairs(shared_hub, home, "push", "dataset", work / "triplets", "org/megapairs", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{shared_hub.endpoint}/datasets/org/megapairs"
    told = child(shared_hub, home, TRAIN, work / "model", home / "small" / "clip")
    assert told.splitlines() == ["{'train': 30, 'validation': 8}", "c000", "(120, 96)", "3"]
    words = ["--license", "mit", "--datasets", "org/megapairs"]
    done = megapairs(shared_hub, home, "push", "model", work / "model", "org/mmret-base", *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{shared_hub.endpoint}/org/mmret-base"
    return work


def test_only_what_is_published_is_there(shared_hub, trained):
    assert names(shared_hub, DATASET) == {
        ".gitattributes",
        "README.md",
        "triplets/train-00000-of-00001.parquet",
        "triplets/validation-00000-of-00001.parquet",
        "images/train-00000-of-00002.parquet",
        "images/train-00001-of-00002.parquet",
    }
    model = names(shared_hub, MODEL)
    assert {"model.safetensors", "modules.json", "modeling_mmret.py", "README.md"} < model
    assert not any(
        "manifest" in n or "log" in n or n.split("/")[-1].startswith(".") for n in model - {".gitattributes"}
    )


def test_the_pushed_model_and_the_cards_own_snippets_run(shared_hub, home, trained):
    told = child(shared_hub, home, LOAD).splitlines()
    assert "(1, 24) True" in told and told[-1] == "3 snippets"


def test_results_are_added_replaced_only_when_told_and_proposed(shared_hub, home, trained):
    results, change = trained / "results", ["--benchmarks", "{held-out-scenes: org/scenes}"]
    push = ["push", "results", results, "org/mmret-base", *change]
    done = megapairs(shared_hub, home, *push)
    assert done.returncode == 0, done.stderr
    files = shared_hub.commits[shared_hub.heads[MODEL]["main"]]
    entries = yaml.safe_load(files[".eval_results/held-out-scenes-test-fused.yaml"])
    assert entries[0]["dataset"] == {"id": "org/scenes", "task_id": "test_recall-1"} and entries[0]["value"] == 25.7
    card = files["README.md"].decode()
    index = yaml.safe_load(card.split("---")[1])["model-index"]
    # the other one is what `train` measured
    metrics = {result["dataset"]["name"]: len(result["metrics"]) for result in index[0]["results"]}
    assert metrics == {"held-out scenes": 12, "held-out triplets": 12}
    assert "| fused | trained | **25.7** |" in card and "not evaluated" not in card
    commits = len(shared_hub.messages)
    assert megapairs(shared_hub, home, *push).returncode == 0
    assert len(shared_hub.messages) == commits

    better = [{**record, "value": record["value"] / 2} for record in result_records()]
    (home / "work2" / "results").mkdir(parents=True)
    (home / "work2" / "results" / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in better))
    push[2] = home / "work2" / "results"
    done = megapairs(shared_hub, home, *push)
    assert done.returncode == 1 and "pass --overwrite to replace it" in done.stderr
    done = megapairs(shared_hub, home, *push, "--create-pr", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{shared_hub.endpoint}/org/mmret-base/discussions/1"
    assert shared_hub.commits[shared_hub.heads[MODEL]["main"]] == files
    proposed = shared_hub.commits[shared_hub.heads[MODEL]["refs/pr/1"]]
    entries = yaml.safe_load(proposed[".eval_results/held-out-scenes-test-fused.yaml"])
    assert entries[0]["value"] == 12.85
