"""Pushes: the folder that would be uploaded loads as it is, and what reaches a Hub on the loopback loads from there.

huggingface_hub reads its endpoint when it is imported, so everything that talks to the double runs in a child process.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from megapairs_hf.core.errors import (
    ArtifactError,
    CardError,
    ConfigError,
    HubError,
    IncompleteArtifactError,
    MegaPairsError,
)
from megapairs_hf.dataset import ImportConfig, import_megapairs, load_triplets
from megapairs_hf.hub.config import PushConfig
from megapairs_hf.hub.prepare import prepare
from megapairs_hf.hub.push_results import prepare_results
from megapairs_hf.hub.upload import push
from tests.hub.children import child
from tests.making import begin, make_work, result_records
from tests.small import ROOT, files_of

LICENSED = {"repo_id": "org/scenes", "license": "cc0-1.0"}


def save_tiny_model(folder):
    """A text model with weights of its own: it needs no download and has the files of any Sentence Transformer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[UNK]", "red", "green", "circle", "square"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=4), Normalize()], device="cpu")
    model.save_pretrained(str(folder), create_model_card=False)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = make_work(tmp_path_factory.mktemp("hub") / "work")
    model = work / "model"
    log = (model / "training_log.jsonl").read_text()
    shutil.rmtree(model)
    with begin(model, "model", ["modules.json"], steps=200) as writer:
        save_tiny_model(model)
        writer.adopt(0, 1, [], {})
        writer.finish({"steps": 200, "final_loss": 0.51})
    (model / "training_log.jsonl").write_text(log)
    (model / "checkpoint-100").mkdir()
    (model / "checkpoint-100" / "model.safetensors").write_bytes(b"older")
    (model / "optimizer.pt").write_bytes(b"state")
    return work


def test_the_dataset_folder_holds_the_data_and_nothing_else(work, tmp_path):
    (work / "triplets" / "notes.txt").write_text("mine")
    names = prepare("dataset", work / "triplets", work, PushConfig(**LICENSED), tmp_path / "out")
    there = {p.relative_to(tmp_path / "out").as_posix(): p for p in (tmp_path / "out").rglob("[!.]*") if p.is_file()}
    assert sorted(there) == [
        "README.md",
        "images/train-00000-of-00002.parquet",
        "images/train-00001-of-00002.parquet",
        "triplets/train-00000-of-00001.parquet",
        "triplets/validation-00000-of-00001.parquet",
    ]
    assert names == sorted(there)


def test_the_cards_own_snippet_runs_on_the_dataset_folder(work, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    out = tmp_path / "out"
    assert push(work / "triplets", **LICENSED, dry_run=True, out=out) == str(out)
    from datasets import load_dataset

    cache = {"cache_dir": str(tmp_path / "cache")}
    triplets, images = load_dataset(str(out), **cache), load_dataset(str(out), "images", **cache)
    assert {split: len(rows) for split, rows in triplets.items()} == {"train": 30, "validation": 8}
    assert triplets["train"][0]["hns"][0] == triplets["train"][0]["q_img"]
    assert len(images["train"]) == 72 and images["train"][0]["image"].size == (120, 96)
    snippet = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    exec(snippet.replace("org/scenes", str(out)), {})  # the card's code is ours
    assert "(120, 96) (120, 96)" in capsys.readouterr().out


def test_the_model_folder_holds_the_model_and_nothing_else(work, tmp_path, capsys):
    names = set(prepare("model", work / "model", work, PushConfig(**LICENSED), tmp_path / "out"))
    assert {"README.md", "modules.json"} < names
    assert not any("checkpoint" in n or n.endswith((".pt", ".jsonl")) or n == "manifest.json" for n in names)
    said = capsys.readouterr().err
    assert "checkpoint-100/model.safetensors" in said and "optimizer.pt" in said
    from sentence_transformers import SentenceTransformer

    ours = SentenceTransformer(str(work / "model"), device="cpu").encode(["red circle"])
    assert (SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(["red circle"]) == ours).all()


def test_a_folder_of_the_same_push_is_written_again_and_any_other_is_left_alone(work, tmp_path):
    config = PushConfig(**LICENSED)
    first = prepare("dataset", work / "triplets", work, config, tmp_path)
    assert prepare("dataset", work / "triplets", work, config, tmp_path) == first
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(HubError, match=r"thesis\.tex.*--out"):
        prepare("dataset", work / "triplets", work, config, tmp_path)


def test_what_a_killed_push_had_not_renamed_is_in_nobodys_way(work, tmp_path):
    whole = push(work / "triplets", **LICENSED, dry_run=True, out=tmp_path / "whole")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "..prepared.4711.tmp").write_text("READ")
    (tmp_path / "out" / ".README.md.4711.tmp").write_text("# Sce")
    push(work / "triplets", **LICENSED, dry_run=True, out=tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(Path(whole))


def test_a_shard_that_was_changed_is_not_pushed(work, tmp_path):
    shutil.copytree(work / "triplets", tmp_path / "triplets")
    shards = tmp_path / "triplets" / "triplets"
    shutil.copy(shards / "validation-00000-of-00001.parquet", shards / "train-00000-of-00001.parquet")
    with pytest.raises(HubError, match="was changed after it was made"):
        prepare("dataset", tmp_path / "triplets", work, PushConfig(**LICENSED), tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", None])
@pytest.mark.parametrize(
    "name",
    [f"triplets/{part}/train-00000-of-0000{n}.parquet" for part, n in (("triplets", 1), ("images", 2))]
    + [
        "model/modules.json",
        "model/model.safetensors",
        "model/tokenizer.json",
    ],
)
def test_a_damaged_or_lost_file_is_named_and_never_pushed(work, tmp_path, name, content):
    kind = name.partition("/")[0]
    shutil.copytree(work / kind, tmp_path / kind)
    file = tmp_path / name
    if kind == "model":
        record = json.loads((tmp_path / kind / "manifest.json").read_text())
        record["files"] = {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}
        (tmp_path / kind / "manifest.json").write_text(json.dumps(record))
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(MegaPairsError, match=f"{re.escape(name.partition('/')[2])}|safetensors weights"):
        prepare(
            "dataset" if kind == "triplets" else "model",
            tmp_path / kind,
            work,
            PushConfig(**LICENSED),
            tmp_path / "out",
        )


def test_a_card_is_asked_for_its_license_before_anything_is_written(work, tmp_path):
    with pytest.raises(CardError, match="--license"):
        push(work / "triplets", "org/scenes", dry_run=True, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_not_finished_is_not_pushed(work, tmp_path):
    shutil.copytree(work / "triplets", tmp_path / "triplets")
    (tmp_path / "triplets" / "manifest.json").rename(tmp_path / "triplets" / ".plan.json")
    with pytest.raises(IncompleteArtifactError, match="is not finished; run the command that makes it again"):
        prepare("dataset", tmp_path / "triplets", work, PushConfig(**LICENSED), tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"_name_or_path": "/home/ann/models/clip"}', r"config\.json line 1 names a folder of this machine"),
        ('{"token": "hf_' + "aB3" * 12 + '"}', r"config\.json line 1 holds what looks like a token of the Hub"),
        ('{"a": "C:\\\\Users\\\\ann"}', "names a folder of this machine"),
    ],
)
def test_a_text_that_tells_a_secret_stays_here(work, tmp_path, text, said):
    shutil.copytree(work / "model", tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text(text)
    with pytest.raises(HubError, match=said) as told:
        prepare("model", tmp_path / "model", work, PushConfig(**LICENSED), tmp_path / "out")
    assert "hf_aB3" not in str(told.value)


def test_a_data_set_that_is_elsewhere_is_fetched_and_pushed_from_here(work, tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("MEGAPAIRS_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").put(str(work) + "/", "/far/", recursive=True)
    config = PushConfig(**LICENSED)
    far = prepare("dataset", "memory://far/triplets", "memory://far", config, tmp_path / "far")
    assert far == prepare("dataset", work / "triplets", work, config, tmp_path / "near")
    with pytest.raises(HubError, match="must be a folder of this machine; name one with --out"):
        prepare("dataset", work / "triplets", work, config, "memory://far/out")


def test_the_dry_run_shows_files_and_sizes_and_writes_the_card(work, tmp_path, capsys):
    from megapairs_hf.cli import main

    words = [work / "triplets", "org/scenes", "--license", "mit", "--dry-run", "--out", tmp_path / "out"]
    assert main(["push", "dataset", *map(str, words)]) == 0
    shown = capsys.readouterr().out
    for path in (p for p in (tmp_path / "out").rglob("[!.]*") if p.is_file()):
        assert f"{path.stat().st_size:,}  {path.relative_to(tmp_path / 'out')}" in shown
    card = tmp_path / "out" / "README.md"
    assert f"the card: {card}" in shown
    assert card.read_text().splitlines()[-1] not in shown


def changed(shard, column, row, value):
    """Write another value into a shard, as a stage could have."""
    table = pq.read_table(shard)
    values = table[column].to_pylist()
    values[row] = value
    place, field = table.column_names.index(column), table.schema.field(column)
    pq.write_table(table.set_column(place, field, pa.array(values, field.type)), shard)


@pytest.mark.parametrize(
    ("file", "column", "value"),
    [
        ("images/train-00001-of-00002.parquet", "caption", "my token is hf_{}"),
        ("triplets/train-00000-of-00001.parquet", "q_text", ["change it", "hf_{} at night"]),
    ],
)
def test_a_token_in_a_caption_or_an_instruction_stays_here(tmp_path, file, column, value):
    work = make_work(tmp_path / "work")
    token = "aB3" * 12
    filled = [part.format(token) for part in value] if isinstance(value, list) else value.format(token)
    changed(work / "triplets" / file, column, 5, filled)
    with pytest.raises(HubError, match=f"{file}, column {column}, holds what looks like a token") as told:
        prepare("dataset", work / "triplets", work, PushConfig(**LICENSED), tmp_path / "out")
    assert token not in str(told.value)


class Card:
    """A Hub that has one card."""

    def __init__(self, path, text):
        self.path = path
        path.write_text(text)

    def hf_hub_download(self, *_, **__):
        return str(self.path)


def results_of(folder, options, **settings):
    records = [{**record, "options": options} for record in result_records()]
    (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    text = "---\nlicense: mit\n---\n# x\nsee /home/theirs/x\n<!-- results -->\n<!-- /results -->\n"
    api = Card(folder / "card.md", text)
    prepare_results(api, folder / "results.jsonl", PushConfig(**LICENSED, **settings), folder / "out")
    return (folder / "out" / "README.md").read_text()


def test_results_tell_no_folder_and_no_token_of_their_options(tmp_path):
    card = results_of(tmp_path, {"images": "/home/anna/circo/images", "api_key": "x", "k": 5})
    assert "anna" not in card and "images: images" in card and "(withheld)" in card and "see /home/theirs/x" in card
    with pytest.raises(HubError, match=r"README\.md line \d+ holds what looks like a token"):
        results_of(tmp_path, {"key": "hf_" + "a" * 30})


def imported(folder, train, validation=()):
    """A data set of our import; each line is two letters, the images of query and target."""
    from PIL import Image

    (folder / "images").mkdir(parents=True)
    for i, name in enumerate(sorted({*"".join((*train, *validation))})):
        Image.new("RGB", (16, 16), (20 * i, 9, 9)).save(folder / "images" / f"{name}.png")
    for side, pairs in (("train", train), ("validation", validation)):
        rows = [{"q_img": f"{q}.png", "q_text": ["x"], "t_img": f"{t}.png", "hns": [f"{q}.png"]} for q, t in pairs]
        (folder / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = {"validation": folder / "validation.jsonl"} if validation else {}
    return import_megapairs(folder / "train.jsonl", folder / "images", out=folder / "work" / "triplets", **more)


def without(folder, name):
    """The import again, without an image."""
    (folder / "ids.txt").write_text(name)
    config = ImportConfig(exclude=str(folder / "ids.txt"))
    out = folder / "work" / "triplets"
    return import_megapairs(folder / "train.jsonl", folder / "images", config=config, out=out, overwrite=True)


def test_a_folder_prepared_again_shows_no_excluded_image(tmp_path):
    made = imported(tmp_path, ["ab", "cd"])
    prepare("dataset", made.path, tmp_path / "work", PushConfig(**LICENSED), tmp_path / "out")
    assert len(load_triplets(str(tmp_path / "out"))) == 2
    without(tmp_path, "a.png")
    prepare("dataset", made.path, tmp_path / "work", PushConfig(**LICENSED), tmp_path / "out")
    again = load_triplets(str(tmp_path / "out"), check=True)
    assert [again.ids(i)["q_img"] for i in range(len(again))] == ["c.png"]


def test_a_name_that_the_hub_does_not_take_is_told_by_a_dry_run_too(work, tmp_path):
    for name in ("org/two--dashes", "org/scenes.git"):
        with pytest.raises(HubError, match=r"is no repository name: .*; use organization/name"):
            push(work / "triplets", name, license="mit", dry_run=True, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_whose_files_are_links_is_prepared(work, tmp_path):
    shutil.copytree(work / "model", tmp_path / "model")
    weights = next((tmp_path / "model").rglob("model.safetensors"))
    (tmp_path / "blobs").mkdir()
    content = weights.read_bytes()
    weights.rename(tmp_path / "blobs" / "x")
    weights.symlink_to("../blobs/x")
    prepare("model", tmp_path / "model", work, PushConfig(**LICENSED), tmp_path / "deep" / "er" / "out")
    sent = tmp_path / "deep" / "er" / "out" / "model.safetensors"
    assert sent.read_bytes() == content and not sent.is_symlink()


def test_results_are_prepared_again_for_fewer_benchmarks(tmp_path):
    results_of(tmp_path, {}, benchmarks={"held-out scenes": "org/circo"})
    assert list((tmp_path / "out" / ".eval_results").iterdir())
    results_of(tmp_path, {})
    assert not list((tmp_path / "out" / ".eval_results").iterdir())
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(HubError, match=r"thesis\.tex"):
        results_of(tmp_path, {})


def test_a_split_of_which_every_line_was_rejected_is_in_no_card(tmp_path):
    made = imported(tmp_path, ["ab"], ["ba"])
    assert made.manifest.rejected == {"crosses_splits": 1}
    out = push(made.path, **LICENSED, dry_run=True, out=tmp_path / "out")
    from datasets import load_dataset

    assert {split: len(rows) for split, rows in load_dataset(out).items()} == {"train": 1}
    assert len(load_dataset(out, "preview", split="train")) == 1
    assert "validation" not in (tmp_path / "out" / "README.md").read_text()


def test_what_does_not_load_is_told_before_anything_is_uploaded(tmp_path):
    made = imported(tmp_path, ["ab"])
    folder = tmp_path / "work" / "triplets"
    preview = folder / "preview" / "train-00000-of-00001.parquet"
    # a row group of no rows: a parquet file that every other reader takes
    pq.write_table(pq.read_table(preview).slice(0, 0), preview)
    told = json.loads((folder / "manifest.json").read_text())
    told["shards"][-1]["sha256"] = hashlib.sha256(preview.read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(HubError, match=r"does not load \(.*\), so nothing was uploaded"):
        push(made.path, **LICENSED, dry_run=True, out=tmp_path / "out")


def test_a_full_disk_is_no_fault_of_the_data(work, tmp_path, monkeypatch):
    def load(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("datasets.load_dataset_builder", load)
    with pytest.raises(HubError, match="nothing was uploaded; free some space and run the same command again"):
        push(work / "triplets", **LICENSED, dry_run=True, out=tmp_path / "out")


# ---- against the double -------------------------------------------------------------------------------------------

PUSH = """
import sys, json
from megapairs_hf.core.errors import MegaPairsError
from megapairs_hf.hub.upload import push
kind, path, out, settings = sys.argv[1:]
try:
    print(push(path, kind=kind, out=out, **json.loads(settings)))
except MegaPairsError as error:
    print(type(error).__name__, error)
"""


def push_to(hub, tmp_path, work, kind="dataset", token="good", endpoint=None, **settings):
    path = work / ("triplets" if kind == "dataset" else "model")
    config = json.dumps(LICENSED | settings)
    return child(hub, tmp_path, PUSH, kind, path, tmp_path / "out", config, token=token, endpoint=endpoint)


def test_a_stale_shard_of_an_earlier_push_is_deleted(hub, work, tmp_path):
    repo = ("dataset", "org/scenes")
    hub.private[repo] = False
    hub.commit(repo, "main", {"triplets/train-00001-of-00002.parquet": b"old", "images.md": b"theirs"})
    told = push_to(hub, tmp_path, work)
    assert told.startswith("HubError org/scenes holds something else (") and "--overwrite" in told
    push_to(hub, tmp_path, work, overwrite=True)
    now = hub.commits[hub.heads[repo]["main"]]
    assert "triplets/train-00001-of-00002.parquet" not in now and "images.md" in now


def test_what_is_meant_to_be_private_does_not_go_into_a_public_repository(hub, work, tmp_path):
    repo = ("dataset", "org/scenes")
    hub.private[repo] = False
    before = hub.commit(repo, "main", {"README.md": b"theirs"})
    told = push_to(hub, tmp_path, work, private=True)
    assert told.startswith("HubError org/scenes exists and is public") and hub.heads[repo]["main"] == before


def test_a_pull_request_leaves_main_as_it_was(hub, work, tmp_path):
    repo = ("dataset", "org/scenes")
    hub.private[repo] = False
    before = hub.commit(repo, "main", {"README.md": b"theirs"})
    assert push_to(hub, tmp_path, work, create_pr=True).endswith("/datasets/org/scenes/discussions/1")
    assert hub.heads[repo]["main"] == before and "refs/pr/1" in hub.heads[repo]


def test_a_branch_is_made_and_filled(hub, work, tmp_path):
    told = push_to(hub, tmp_path, work, revision="v2", private=True, commit_message="First scenes")
    assert told.endswith("/datasets/org/scenes/tree/v2")
    assert hub.private[("dataset", "org/scenes")] and hub.messages == ["First scenes"]
    heads = hub.heads[("dataset", "org/scenes")]
    assert "README.md" in hub.commits[heads["v2"]] and "README.md" not in hub.commits[heads["main"]]


@pytest.mark.parametrize(
    ("settings", "how", "said"),
    [
        ({}, {"token": "bad"}, "hf auth login"),
        ({}, {"token": ""}, "hf auth login"),
        ({"repo_id": "closed/scenes"}, {}, "may not write there"),
        ({"repo_id": "full/scenes"}, {}, "(You have exceeded your storage quota)"),
        ({"repo_id": "broken/scenes"}, {}, "run the same command again later"),
        ({}, {"endpoint": "http://127.0.0.1:9"}, "does not answer"),
    ],
    ids=["bad token", "not logged in", "no permission", "quota", "hub fails", "no hub"],
)
def test_what_the_hub_refuses_becomes_one_sentence(hub, work, tmp_path, settings, how, said):
    told = push_to(hub, tmp_path, work, **how, **settings)
    assert told.startswith("HubError ") and said in told and "\n" not in told


def test_a_name_that_is_taken_by_the_other_kind_is_told(hub, work, tmp_path):
    hub.private[("model", "shared/scenes")] = False
    hub.commit(("model", "shared/scenes"), "main", {"README.md": b"theirs"})
    told = push_to(hub, tmp_path, work, repo_id="shared/scenes")
    assert told.startswith("HubError cannot push shared/scenes: there is no repository of this kind and name")


def test_another_data_set_of_ours_is_replaced_only_when_told(hub, work, tmp_path):
    push_to(hub, tmp_path, work)
    before = hub.heads[("dataset", "org/scenes")]["main"]
    imported(tmp_path, ["ab", "cd"])
    told = push_to(hub, tmp_path, tmp_path / "work")
    assert told.startswith("HubError org/scenes holds something else (") and "--overwrite" in told
    assert hub.heads[("dataset", "org/scenes")]["main"] == before
    push_to(hub, tmp_path, tmp_path / "work", overwrite=True)
    assert {name for name in hub.commits[hub.heads[("dataset", "org/scenes")]["main"]] if "/" in name} == {
        "images/train-00000-of-00001.parquet",
        "preview/train-00000-of-00001.parquet",
        "triplets/train-00000-of-00001.parquet",
    }


# ---- triplets of a notebook -----------------------------------------------------------------------------------------

NOTEBOOK = """
import sys
from pathlib import Path

from datasets import Dataset, load_dataset
from huggingface_hub import HfApi, hf_hub_download
from PIL import Image

from megapairs_hf import load_triplets
from megapairs_hf.core.columns import add_columns, drop_errors
from megapairs_hf.dataset import JoinTriplets, Triplets
from megapairs_hf.hub.upload import push

folder = Path(sys.argv[1])
folder.mkdir()
names = ["a", "b", "c", "unused"]
for shade, name in enumerate(names):
    Image.new("RGB", (8, 8), (60 * shade, 9, 9)).save(folder / f"{name}.png")
images = load_dataset("imagefolder", data_dir=str(folder), split="train").add_column("image_id", names)
texts = {"instructions": ["redder", "more red"], "relation": ["clip_image"]}
texts |= {"model": "Qwen/Qwen3", "raw": "kept at home"}
pairs = [{"query_id": q, "target_id": t, "negative_ids": [n], "split": s, **texts}
         for q, t, n, s in (("a", "b", "c", "train"), ("b", "c", "a", "train"), ("c", "a", "b", "validation"))]
triplets = Triplets(drop_errors(add_columns(Dataset.from_list(pairs), JoinTriplets())), images=images)
print(push(triplets, "org/unlicensed"))
print(push(triplets, "org/scenes", license="cc-by-4.0", private=True))
print(triplets.push_to_hub("org/plain"))
print(triplets.push_to_hub("org/proposed", create_pr=True).pr_url)
for repo in ("org/scenes", "org/plain"):
    loaded = load_triplets(repo, check=True)
    print(len(loaded), loaded[0]["t_img"].getpixel((0, 0)), loaded.column_names == list(loaded.features))
    print({split: part.num_rows for split, part in load_dataset(repo).items()})
    print(load_dataset(repo, "images", split="train")["image_id"][:])
    print(load_dataset(repo, "preview", split="train")[0]["target_image"].size)
print(Path(hf_hub_download("org/scenes", "README.md", repo_type="dataset")).read_text())
"""


def test_triplets_of_a_notebook_are_pushed_with_and_without_a_card_and_read_back(hub, tmp_path):
    lines = child(hub, tmp_path, NOTEBOOK, tmp_path / "photos").splitlines()
    assert lines[0] == f"{hub.endpoint}/datasets/org/unlicensed"
    unlicensed = hub.commits[hub.heads[("dataset", "org/unlicensed")]["main"]]["README.md"].decode()
    assert "license: unknown" in unlicensed and "named no license; ask before you use it" in unlicensed
    assert lines[1] == f"{hub.endpoint}/datasets/org/scenes"
    assert lines[3] == f"{hub.endpoint}/datasets/org/proposed/discussions/1"
    once = ["2 (60, 9, 9) True", "{'train': 2, 'validation': 1}", "['a', 'b', 'c']", "(8, 8)"]
    assert lines[4:12] == once * 2
    card = "\n".join(lines[12:])
    assert "3 triplets of query image" in card and "- en" in card and r"3 by clip\_image" in card
    assert r"written by Qwen/Qwen3 (3 triplets)" in card
    assert "mined from" not in card and "pairs were mined" not in card and "| stage |" not in card
    assert hub.private[("dataset", "org/scenes")] and not hub.private[("dataset", "org/plain")]
    plain = {name for name in hub.commits[hub.heads[("dataset", "org/plain")]["main"]] if name.endswith(".parquet")}
    scenes = {name for name in hub.commits[hub.heads[("dataset", "org/scenes")]["main"]] if name.endswith(".parquet")}
    assert plain == scenes
    proposed = hub.heads[("dataset", "org/proposed")]
    assert len([name for name in hub.commits[proposed["refs/pr/1"]] if name.endswith(".parquet")]) == len(plain)
    assert not any(name.endswith(".parquet") for name in hub.commits[proposed["main"]])
    assert not any(b"kept at home" in content for content in hub.objects.values())


def test_a_dry_run_of_triplets_leaves_the_folder(work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = push(load_triplets(work / "triplets"), "org/scenes", license="mit", dry_run=True)
    assert place == str(Path("publish") / "dataset") and len(load_triplets(place, check=True)) == 30


def test_what_a_folder_holds_is_found_out(work, tmp_path):
    model = push(work / "model", "org/scenes", license="mit", dry_run=True, out=tmp_path / "model")
    assert (Path(model) / "modules.json").is_file()
    with pytest.raises(HubError, match="holds pairs, which is not pushed; name a folder with triplets, model"):
        push(work / "pairs", "org/scenes", license="mit")
    with pytest.raises(ArtifactError, match="name one of its folders"):
        push(work, "org/scenes", license="mit")
    with pytest.raises(ConfigError, match="unknown key 'privat'; did you mean 'private'"):
        push(work / "model", "org/scenes", privat=True)


def test_the_pages_snippet_runs(work, tmp_path, monkeypatch):
    shutil.copytree(work, tmp_path / "work")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "publishing.md").read_text(encoding="utf-8")
    exec(page.split("```python\n")[1].split("```")[0], {})  # the page is ours
    assert (tmp_path / "work" / "publish" / "dataset" / "README.md").is_file()
    assert (tmp_path / "publish" / "dataset" / "README.md").is_file()


@pytest.mark.parametrize("kind", ["triplets", "model"])
def test_a_license_off_the_list_is_named_in_the_dry_run(work, tmp_path, capsys, kind):
    push(work / kind, "org/a", license="apache2", dry_run=True, out=tmp_path / "out")
    sentence = "the license apache2 is not on the Hub's list; did you mean apache-2.0?"
    assert sentence in capsys.readouterr().err
    push(work / kind, "org/a", license="apache-2.0", dry_run=True, out=tmp_path / "out")
    assert "license" not in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["triplets", "model"])
def test_other_has_a_name_and_a_link(work, tmp_path, capsys, kind):
    push(work / kind, "org/a", license="other", dry_run=True, out=tmp_path / "bare")
    assert "`license: other` says nothing without a name and a link" in capsys.readouterr().err
    named = {"license": "other", "license_name": "house-license", "license_link": "https://example.org/house"}
    push(work / kind, "org/a", **named, dry_run=True, out=tmp_path / "named")
    assert capsys.readouterr().err.count("license") == 0
    card = (tmp_path / "named" / "README.md").read_text(encoding="utf-8")
    metadata = yaml.safe_load(card.split("---")[1])
    assert {key: metadata[key] for key in named} == named
    assert "`house-license` ([its text](https://example.org/house)), as given by" in card


def test_a_data_set_is_checked_without_arrow_s_scanner(work, tmp_path, monkeypatch):
    """A thread of that scanner aborts a process that exits meanwhile (status 134)."""
    from datasets.packaged_modules.parquet.parquet import Parquet

    def scanning(*_, **__):
        raise AssertionError("the data set was opened by the scanner")

    monkeypatch.setattr(Parquet, "_generate_tables", scanning)
    push(work / "triplets", "org/scenes", license="cc0-1.0", dry_run=True, out=tmp_path / "out")


@pytest.mark.long
def test_fifty_dry_runs_end_with_status_0(work, tmp_path):
    words = ["push", "dataset", str(work / "triplets"), "org/scenes", "--license", "cc0-1.0", "--dry-run", "--out"]
    command = [sys.executable, "-m", "megapairs_hf", *words]
    out = [tmp_path / f"{i}" for i in range(50)]
    done = [subprocess.run([*command, folder], check=False, capture_output=True, cwd=ROOT) for folder in out]
    assert [(one.returncode, one.stderr) for one in done if one.returncode] == []
