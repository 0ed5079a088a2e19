"""What a batch is made of: sampling, masks, mixtures, and images that cannot be read."""

import json
import math
import pickle
import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from megapairs_hf.core.errors import ArtifactError, StaleArtifactError, TrainingError
from megapairs_hf.core.inputs import Input
from megapairs_hf.dataset import Triplets, load_triplets
from megapairs_hf.models import load_mmret
from megapairs_hf.training import TrainConfig, train
from megapairs_hf.training.config import SourceConfig
from megapairs_hf.training.data.batch import make_batch
from megapairs_hf.training.data.dataset import Example
from megapairs_hf.training.data.mmeb import open_source
from megapairs_hf.training.data.opened import opened_triplets
from megapairs_hf.training.data.sampler import sample_pools
from megapairs_hf.training.data.triplets import TripletPool
from megapairs_hf.training.encoder import prepared
from megapairs_hf.training.retrieval_task import ContrastTask
from tests.making import make_work
from tests.models.tiny import llava
from tests.training.test_gradients import SETTINGS, apart, learnt, made_task


def example(query, text, target, negatives=(), texts=()):
    same = tuple(Input(one, query) for one in (text, *texts))
    candidates = (Input(None, target), *(Input(None, name) for name in negatives))
    return Example(f"{query}-{target}", Input(text, query), candidates, same)


def masks(examples, cluster=str):
    batch = make_batch(0, 0, examples, 0, 1, joint=False, clusters=lambda names: [cluster(name) for name in names])
    return batch.mask()


def test_false_negatives_are_masked_and_counted():
    # row 1 has the same target, row 2 a near-duplicate of it, row 3 answers the same query and text
    rows = [
        example("q", "red", "t", ["q"]),
        example("p", "blue", "t", ["a"]),
        example("r", "green", "t-again", ["b"]),
        example("q", "large", "u", ["t"], texts=["red"]),
    ]
    masked, counts = masks(rows, lambda name: name.removesuffix("-again"))
    #                          t  q    t  a    t' b    u  t
    assert masked[0].tolist() == [0, 0, 1, 0, 1, 0, 1, 1]
    assert counts == (4, 5, 1)
    assert masked[3].tolist() == [0] * 8  # its text, "large", is nobody else's


@pytest.mark.parametrize("name", ["triplets/train-00000-of-00001", "images/train-00001-of-00002"])
def test_a_flipped_bit_of_triplets_or_images_never_trains(tmp_path, name):
    folder = make_work(tmp_path) / "triplets"
    assert len(opened_triplets(folder).split("train")) == 30
    file = folder / f"{name}.parquet"
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name}.parquet is damaged"):
        opened_triplets(folder).split("train")
    # a split that is not read costs nothing
    assert name.startswith("images") or len(opened_triplets(folder).split("validation")) == 8


def test_rows_with_fewer_negatives_are_filled_with_nothing():
    masked, counts = masks([example("q", "x", "t", ["a", "b"]), example("p", "y", "u")])
    assert masked.tolist() == [[0, 0, 0, 0, 1, 1]] * 2
    assert counts == (0, 0, 0)


def test_each_part_stands_once_and_sums_to_what_the_row_says():
    rows = [example("q", "red", "t", ["q"]), example("q", "blue", "u", ["t"])]
    batch = make_batch(0, 0, rows, 0, 1, joint=False, clusters=list)
    assert [part.image or part.text for part in batch.inputs] == ["q", "t", "u", "red", "blue"]
    assert batch.queries.tolist() == [[0, 3], [0, 4]]
    joint = make_batch(0, 0, rows, 0, 1, joint=True, clusters=list)
    assert Counter(part.role for part in joint.inputs) == {"document": 3, "query": 2}
    assert all(len({(joint.inputs[i].role, joint.inputs[i].kind) for i in chunk}) == 1 for chunk in joint.chunks(4))


def test_instructions_are_drawn_again_in_each_epoch(model, rows):
    task = made_task(model, rows, batch_size=len(rows) // 2, steps=40)
    sampled = {}
    for step in range(20):
        pool = task.pools[0]
        for row in pool.examples(range(10), step):
            sampled.setdefault(row.name, set()).add(row.query.text)
    assert all(len(texts) > 1 for texts in sampled.values())
    again = made_task(model, rows, batch_size=len(rows) // 2, steps=40)
    assert again.batch(3, 0, 1).inputs == task.batch(3, 0, 1).inputs


def test_relations_choose_rows(rows):
    config = TrainConfig(**SETTINGS, relations=("clip_text",))
    pool = TripletPool(rows, config)
    assert 0 < pool.rows < len(rows)
    assert all("clip_text" in names for names in pool.table["relation"])


def test_pools_are_drawn_by_weight_and_counted():
    pools, before = sample_pools([3, 1], 4000, 0)
    assert abs(np.mean(pools == 0) - 0.75) < 0.03
    assert before[pools == 1].tolist() == list(range(int((pools == 1).sum())))


@pytest.fixture
def table(tmp_path):
    """Rows as in MMEB's training sets: images to texts, and texts to texts; 40 of each."""
    colors = np.random.default_rng(0).integers(0, 255, (40, 3))
    (tmp_path / "images").mkdir()
    for i, color in enumerate(colors):
        Image.new("RGB", (40, 30), tuple(map(int, color))).save(tmp_path / "images" / f"{i}.png")
    rows = [
        {"qry": "<|image_1|>\nWhat is it?", "qry_image_path": f"{i}.png", "pos_text": f"thing {i}", "neg_text": "none"}
        for i in range(40)
    ]
    rows += [{"qry": f"say {i}", "qry_image_path": "", "pos_text": f"said {i}", "neg_text": ""} for i in range(40)]
    random.Random(0).shuffle(rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    return tmp_path


def test_tables_become_pools_of_one_kind(table, model):
    config = TrainConfig(**SETTINGS)
    pools, weights = open_source(SourceConfig("./rows.parquet", images="./images", weight=6.0), config, table)
    assert weights == [3.0, 3.0]
    kinds = []
    for i in range(len(pools)):
        task = ContrastTask(model, pools, [1 - i, i], config)
        batch = task.batch(0, 0, 1)
        kinds.append({part.image is not None for part in batch.inputs})
        assert all("<|" not in (part.text or "") for part in batch.inputs)
        loss, _ = learnt(task)
        assert loss > 0
    assert {frozenset(kind) for kind in kinds} == {frozenset({True, False}), frozenset({False})}


def test_mixtures_train(table, triplets, models, tmp_path):
    source = SourceConfig(str(table / "rows.parquet"), images=str(table / "images"), weight=400.0)
    config = TrainConfig(**{**SETTINGS, "steps": 12}, sources=(source,), micro_batch=5)
    made = train(triplets, config=config, out=tmp_path / "m", work=models)
    lines = [json.loads(line) for line in (tmp_path / "m" / "training_log.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    assert any(line["images"] == 0 for line in lines), "no batch of texts alone"
    assert made.manifest.stats["rows"] == len(load_triplets(triplets.path)) + 80


def test_sources_that_cannot_be(table, tmp_path):
    config = TrainConfig(**SETTINGS)
    with pytest.raises(ArtifactError, match="cannot open the source"):
        open_source(SourceConfig(str(tmp_path / "none.parquet")), config, tmp_path)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(TrainingError, match="has no columns qry"):
        open_source(SourceConfig(str(tmp_path / "other.parquet")), config, tmp_path)
    pools, _ = open_source(SourceConfig(str(table / "rows.parquet"), images=str(table)), config, tmp_path)
    with pytest.raises(ArtifactError, match="lies outside"):
        pools[0].files(["../x.png"])


def spoil(monkeypatch, names):
    """Make the files of these images broken."""
    whole = TripletPool.files

    def files(self, wanted):
        return {name: b"\x89PNG broken" if name in names else file for name, file in whole(self, wanted).items()}

    monkeypatch.setattr(TripletPool, "files", files)


@pytest.mark.parametrize("micro", [None, 5])
def test_unreadable_images_are_noted_and_stop_the_run_when_they_are_many(
    triplets, models, rows, tmp_path, monkeypatch, micro
):
    query, negative = rows.ids(0)["q_img"], rows.ids(5)["t_img"]
    spoil(monkeypatch, {query, negative})
    config = TrainConfig(**{**SETTINGS, "steps": 25, "batch_size": 16}, micro_batch=micro)
    made = train(triplets, config=config, out=tmp_path / "m", work=models)
    assert {row["key"] for row in made.rejected().to_pylist()} == {query, negative}
    assert made.manifest.rejected == {"unreadable": 2}
    assert made.manifest.stats["steps"] == 25
    lines = [json.loads(line) for line in (tmp_path / "m" / "training_log.jsonl").read_text().splitlines()]
    assert sum(line.get("unreadable", 0) for line in lines) >= 2
    few = TrainConfig(**{**SETTINGS, "steps": 25, "batch_size": 16}, micro_batch=micro, max_rejected=1)
    with pytest.raises(TrainingError, match="2 images cannot be read, more than max_rejected 1"):
        train(triplets, config=few, out=tmp_path / "few", work=models)


@pytest.mark.parametrize("micro", [None, 5])
@pytest.mark.parametrize("broken", ["query", "positive", "negative", "all of them"])
def test_rows_with_unreadable_images_teach_nothing(model, rows, monkeypatch, broken, micro):
    task = made_task(model, rows, temperature=0.1, micro_batch=micro)
    batch = task.batch(0, 0, 1)
    table = batch.candidates[:, 0].reshape(8, batch.width)
    lost = {"query": {0}, "positive": {1}, "negative": {2}, "all of them": {0, 1, 2}}[broken]
    positions = {0: batch.queries[0, 0], 1: table[1, 0], 2: table[2, 2]}
    names = {batch.inputs[positions[i]].image for i in lost}
    spoil(monkeypatch, names)
    loss, gradients = learnt(task)
    monkeypatch.undo()

    # written out: what is left of the candidates, for the rows that are left
    task.module.zero_grad()
    index = {part: i for i, part in enumerate(batch.inputs)}
    raw = []
    for part in batch.inputs:
        value = part.text if part.image is None else task.pools[0].files([part.image])[part.image]
        kind = "text" if part.image is None else "image"
        raw.append(model[0](model.preprocess([{kind: value}]))["sentence_embedding"][0])
    spoiled = {index[part] for part in batch.inputs if part.image in names}
    candidates = [i for i in batch.candidates[:, 0] if i not in spoiled]
    units = torch.nn.functional.normalize(torch.stack([raw[i] for i in candidates]), dim=-1)
    total = torch.zeros(())
    for row, (image, text) in enumerate(batch.queries):
        if image in spoiled or table[row, 0] in spoiled:
            continue
        own = table[row, 0]
        logits = units @ torch.nn.functional.normalize(raw[image] + raw[text], dim=-1) / 0.1
        first = candidates.index(own)
        others = [k for k, candidate in enumerate(candidates) if candidate != own]
        total = total + torch.logsumexp(logits[[first, *others]], 0) - logits[first]
    (total / 8).backward()
    expected = {name: p.grad.clone() for name, p in task.module.named_parameters() if p.grad is not None}
    assert math.isfinite(loss)
    assert apart(gradients, expected) < 1e-5
    assert set(task.bad) == {f"0/{name}" for name in names}
    task.close()


def test_worker_processes_decode_the_same(model, rows):
    loss, gradients = learnt(made_task(model, rows, temperature=0.1))
    task = made_task(model, rows, temperature=0.1, workers=2, micro_batch=9)
    again, others = learnt(task)
    task.close()
    assert again == pytest.approx(loss, rel=1e-5)
    assert apart(gradients, others) < 1e-5


def test_a_language_model_sees_each_input_once_and_trains_with_cached_gradients(rows, tmp_path):
    model = load_mmret(llava(tmp_path / "llava"), device="cpu")
    settings = {"temperature": 0.1, "negatives": 2, "batch_size": 4}
    task = made_task(model, rows, **settings)
    batch = task.batch(0, 0, 1)
    assert len(batch.inputs) == len(set(batch.inputs))
    assert sum(part.role == "query" for part in batch.inputs) == 4
    loss, gradients = learnt(task)
    again, cached = learnt(made_task(model, rows, **settings, micro_batch=3))
    assert again == pytest.approx(loss, rel=1e-4)
    assert apart(gradients, cached) < 1e-4
    queries = [part for part in batch.inputs if part.role == "query"]
    asked = [{"text": p.text, "image": rows.image(p.image)} for p in queries]
    answers = [rows.image(batch.inputs[i].image) for i in batch.candidates[:, 0]]
    model.eval()
    left, right = model.encode_query(asked), model.encode_document(answers)
    logits = left.astype(float) @ right.T.astype(float) / 0.1
    masked, _ = batch.mask()
    logits[masked] = -np.inf
    order = [queries.index(batch.inputs[place]) for place in batch.queries[:, 0]]
    own = 3 * np.arange(4)
    expected = np.mean([np.log(np.exp(row - row[k]).sum()) for row, k in zip(logits[order], own, strict=True)])
    assert loss == pytest.approx(expected, rel=1e-4)


def test_images_of_unknown_cluster_are_in_no_cluster(rows):
    names = rows.images["image_id"][:]
    images = rows.images.remove_columns("cluster").add_column("cluster", [5, 5] + [-1] * (len(names) - 2))
    pool = TripletPool(Triplets(rows.dataset, images), TrainConfig(**SETTINGS, cluster_column="cluster"))
    # of four names, the first two are of one cluster and the others of none
    one, two, *others = pool.clusters([*names[:4], "no such image"])
    assert one == two and len({one, *others}) == 4


def test_a_cluster_whose_name_is_an_images_id_is_not_that_image(rows):
    names = rows.images["image_id"][:4]
    renamed = [*"ab7", *names[3:], *rows.images["image_id"][4:]]
    images = rows.images.remove_columns(["image_id", "cluster"]).add_column("image_id", renamed)
    images = images.add_column("cluster", ["7", "7", None, *map(str, range(100, 97 + len(renamed)))])
    pool = TripletPool(Triplets(rows.dataset, images), TrainConfig(**SETTINGS, cluster_column="cluster"))
    # a and b are near-duplicates, and neither is the image "7"
    masked, counts = masks(
        [example("q", "x", "a", ["7"]), example("p", "y", "b")], lambda one: pool.clusters([one])[0]
    )
    assert masked.tolist() == [[0, 0, 1, 1], [1, 0, 0, 1]]
    assert counts == (0, 2, 0)


def test_workers_are_sent_no_row_numbers(rows, table):
    pool = TripletPool(rows, TrainConfig(**SETTINGS, relations=("clip_text",), group_siblings=2))
    size = len(pickle.dumps(pool))
    pool.queries = np.zeros(10**6, int)
    assert len(pickle.dumps(pool)) == size
    name = rows.ids(0)["q_img"]
    assert pickle.loads(pickle.dumps(pool)).files([name]) == pool.files([name])
    (shown, *_), _ = open_source(SourceConfig("./rows.parquet", images="./images"), TrainConfig(**SETTINGS), table)
    again = pickle.loads(pickle.dumps(shown))
    assert not {"table", "config"} & set(vars(again))
    assert again.files(["3.png"]) == shown.files(["3.png"])


def test_an_epoch_draws_every_row_once():
    sizes = [50_000, 7_000, 960, 192, 200]
    steps = sum(sizes) // 192
    pools, _ = sample_pools(sizes, steps, 0)
    sampled = np.bincount(pools, minlength=5)
    assert sampled.sum() == steps
    assert all(abs(count - size / 192) < 1 for count, size in zip(sampled, sizes, strict=True))
    assert not np.array_equal(pools, np.sort(pools))
    assert not np.array_equal(pools, sample_pools(sizes, steps, 1)[0])


def test_a_cap_on_the_rows_of_a_source_draws_them_by_the_seed(table):
    source = SourceConfig("./rows.parquet", images="./images", rows=30)

    def names(seed):
        pools, weights = open_source(source, TrainConfig(**SETTINGS, seed=seed), table)
        assert sum(pool.rows for pool in pools) == sum(weights) == 30
        return [[row["pos_text"] for row in pool.table] for pool in pools]

    assert names(0) == names(0) != names(1)
    with pytest.raises(Exception, match="`rows` is"):
        SourceConfig("x", rows=0)


def test_queries_of_a_source_have_the_frame_alone_and_triplets_the_models_instruction(table, rows, tmp_path):
    model = load_mmret(llava(tmp_path / "llava"), device="cpu")
    config = TrainConfig(**{**SETTINGS, "batch_size": 4})

    def fed(source):
        pools = [TripletPool(rows, config)] if source is None else open_source(source, config, table)[0]
        shown = [pool for pool in pools if pool.examples([0], 0)[0].query.image is not None]
        task = ContrastTask(model, shown, [1], config)
        batch = task.batch(0, 0, 1)
        parts = [part for part in batch.inputs if part.role == "query"]
        files = task.pools[0].files([part.image for part in parts])
        given = [{"text": part.text, "image": files[part.image]} for part in parts]
        images = task.images.load(0, [part.image for part in parts])
        return prepared(model, parts, images, "cpu", task.pools[0].prompted)["input_ids"], given

    def equal(found, **settings):
        ids, given = found
        return torch.equal(ids, model.preprocess(given, **settings)["input_ids"])

    place = {"path": "./rows.parquet", "images": "./images"}
    # as `encode_query` gives a query of MMEB, and a composed query
    assert equal(fed(SourceConfig(**place)), task="query")
    assert not equal(fed(SourceConfig(**place)))
    assert equal(fed(None), prompt=model.prompts["query"], task="query")
    assert not equal(fed(SourceConfig(**place)), prompt=model.prompts["query"], task="query")


def test_a_source_that_changed_is_noticed(tmp_path, triplets, models):
    rows = [{"qry": f"say {i}", "pos_text": f"said {i}"} for i in range(16)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    config = TrainConfig(**{**SETTINGS, "steps": 1}, weight=0, sources=(SourceConfig(str(tmp_path / "rows.parquet")),))
    made = train(triplets, config=config, out=tmp_path / "m", work=models)
    assert train(triplets, config=config, out=tmp_path / "m", work=models).fingerprint == made.fingerprint
    pq.write_table(pa.Table.from_pylist(rows[::-1]), tmp_path / "rows.parquet")
    with pytest.raises(StaleArtifactError, match=r"sources\[0\]"):
        train(triplets, config=config, out=tmp_path / "m", work=models)
