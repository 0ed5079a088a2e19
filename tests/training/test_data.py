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
from megapairs_hf.training.data.sampler import sample_others, sample_pools
from megapairs_hf.training.data.triplets import TripletPool
from megapairs_hf.training.encoder import prepared
from megapairs_hf.training.retrieval_task import ContrastTask
from tests.models.tiny import llava
from tests.training.test_gradients import SETTINGS, apart, learnt, made_task


def example(query, text, target, negatives=(), texts=()):
    same = tuple(Input(one, query) for one in (text, *texts))
    candidates = (Input(None, target), *(Input(None, name) for name in negatives))
    return Example(f"{query}-{target}", Input(text, query), candidates, same)


def masks(examples, cluster=str):
    batch = make_batch(0, 0, examples, 0, 1, joint=False, cluster=cluster)
    return batch.mask(0, len(examples))


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


def test_rows_with_fewer_negatives_are_filled_with_nothing():
    masked, counts = masks([example("q", "x", "t", ["a", "b"]), example("p", "y", "u")])
    assert masked.tolist() == [[0, 0, 0, 0, 1, 1]] * 2
    assert counts == (0, 0, 0)


def test_each_part_stands_once_and_sums_to_what_the_row_says():
    rows = [example("q", "red", "t", ["q"]), example("q", "blue", "u", ["t"])]
    batch = make_batch(0, 0, rows, 0, 1, joint=False, cluster=str)
    assert [part.image or part.text for part in batch.inputs] == ["q", "t", "u", "red", "blue"]
    assert batch.queries.tolist() == [[0, 3], [0, 4]]
    joint = make_batch(0, 0, rows, 0, 1, joint=True, cluster=str)
    assert Counter(part.role for part in joint.inputs) == {"document": 3, "query": 2}
    assert all(len({(joint.inputs[i].role, joint.inputs[i].kind) for i in chunk}) == 1 for chunk in joint.chunks(4))


def test_instructions_are_drawn_again_in_each_epoch(model, rows):
    task = made_task(model, rows, batch_size=len(rows) // 2, steps=40)
    sampled = {}
    for step in range(20):
        pool = task.pools[0]
        for row in pool.examples(range(10), step, ()):
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
def test_unreadable_images_are_left_out_and_the_batch_refilled(triplets, models, rows, tmp_path, monkeypatch, micro):
    query, negative = rows.ids(0)["q_img"], rows.ids(5)["t_img"]
    spoil(monkeypatch, {query, negative})
    config = TrainConfig(**{**SETTINGS, "steps": 25, "batch_size": 16}, micro_batch=micro)
    made = train(triplets, config=config, out=tmp_path / "m", work=models)
    assert {row["key"] for row in made.rejected().to_pylist()} == {query, negative}
    assert made.manifest.rejected == {"unreadable": 2}
    assert made.manifest.stats["steps"] == 25
    few = TrainConfig(**{**SETTINGS, "steps": 25, "batch_size": 16}, micro_batch=micro, max_rejected=1)
    with pytest.raises(TrainingError, match="2 images cannot be read, more than max_rejected 1"):
        train(triplets, config=few, out=tmp_path / "few", work=models)


def test_others_are_drawn_evenly_from_those_not_taken():
    counts = Counter()
    for seed in range(3000):
        sampled = sample_others(9, {0, 3, 4, 8}, 2, random.Random(seed))
        assert len(set(sampled)) == 2
        counts.update(sampled)
    assert set(counts) == {1, 2, 5, 6, 7}
    # 1,200 each, within four standard deviations
    assert all(abs(count - 1200) < 4 * math.sqrt(3000 * 0.4 * 0.6) for count in counts.values())
    assert sorted(sample_others(9, {0, 3, 4, 8}, 20, random.Random(0))) == [1, 2, 5, 6, 7]
    assert sample_others(3, {0, 1, 2}, 1, random.Random(0)) == []
    assert sample_others(10**12, {7}, 3, random.Random(5)) == sample_others(10**12, {7}, 3, random.Random(5))


@pytest.mark.parametrize("kind", ["triplets", "table"])
def test_a_batch_is_filled_up_while_any_whole_row_is_left(rows, model, tmp_path, kind):
    batch_size = 32
    config = TrainConfig(**{**SETTINGS, "batch_size": batch_size, "steps": 40})
    if kind == "triplets":
        rows = rows.select(range(35))
        pool = TripletPool(rows, config)
    else:
        told = [{"qry": f"say {i}", "qry_image_path": f"{i}.png", "pos_text": f"said {i}"} for i in range(35)]
        pq.write_table(pa.Table.from_pylist(told), tmp_path / "rows.parquet")
        source = SourceConfig(str(tmp_path / "rows.parquet"), weight=1.0)
        (pool,), _ = open_source(source, config, tmp_path)
    task = ContrastTask(model, [pool], [1], config)

    def readable(bad):
        return sum(row is not None for row in pool.examples(range(35), 0, bad))

    # all images break that leave enough rows; some spoil several
    bad, more = [], ""
    for name in [row.candidates[0].image or row.query.image for row in pool.examples(range(35), 0, ())]:
        if readable([*bad, name]) >= batch_size:
            bad.append(name)
        else:
            more = name
    task.bad = {f"0/{one}": "broken" for one in bad}
    assert readable(bad) == batch_size and bad
    for step in range(40):
        assert len(task.batch(step, 0, 1).names) == batch_size
    task.bad[f"0/{more}"] = "broken"
    with pytest.raises(TrainingError, match=f"has only {readable([*bad, more])} rows with readable images"):
        task.batch(0, 0, 1)
    task.close()


def test_worker_processes_decode_the_same(model, rows):
    loss, gradients = learnt(made_task(model, rows, temperature=0.1))
    task = made_task(model, rows, temperature=0.1, workers=1, cache_gb=0.0, micro_batch=9)
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
    masked, _ = batch.mask(0, 4)
    logits[masked] = -np.inf
    order = [queries.index(batch.inputs[place]) for place in batch.queries[:, 0]]
    own = 3 * np.arange(4)
    expected = np.mean([np.log(np.exp(row - row[k]).sum()) for row, k in zip(logits[order], own, strict=True)])
    assert loss == pytest.approx(expected, rel=1e-4)


def test_images_of_unknown_cluster_are_in_no_cluster(rows):
    names = rows.images["image_id"][:]
    images = rows.images.remove_columns("cluster").add_column("cluster", [5, 5] + [-1] * (len(names) - 2))
    pool = TripletPool(Triplets(rows.dataset, images), TrainConfig(**SETTINGS, cluster_column="cluster"))
    assert pool.cluster(names[0]) == pool.cluster(names[1]) == "cluster 5"
    assert pool.cluster(names[2]) != pool.cluster(names[3])


def test_a_cluster_whose_name_is_an_images_id_is_not_that_image(rows):
    pool = TripletPool(rows, TrainConfig(**SETTINGS))
    pool.clusters = {"a": "7", "b": "7"}
    # a and b are near-duplicates, and neither is the image "7"
    masked, counts = masks([example("q", "x", "a", ["7"]), example("p", "y", "b")], pool.cluster)
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


def test_queries_of_a_source_have_no_prompt_and_triplets_the_models(table, rows, tmp_path):
    model = load_mmret(llava(tmp_path / "llava"), device="cpu")
    config = TrainConfig(**{**SETTINGS, "batch_size": 4})

    def fed(source):
        pools = [TripletPool(rows, config)] if source is None else open_source(source, config, table)[0]
        shown = [pool for pool in pools if pool.examples([0], 0, ())[0].query.image is not None]
        task = ContrastTask(model, shown, [1], config)
        batch = task.batch(0, 0, 1)
        parts = [part for part in batch.inputs if part.role == "query"]
        files = task.pools[0].files([part.image for part in parts])
        given = [{"text": part.text, "image": files[part.image]} for part in parts]
        images, _ = task.images.load(0, [part.image for part in parts])
        return prepared(model, parts, images, "cpu", task.pools[0].prompted)["input_ids"], given

    def equal(found, **settings):
        ids, given = found
        return torch.equal(ids, model.preprocess(given, **settings)["input_ids"])

    place = {"path": "./rows.parquet", "images": "./images"}
    # as `encode` gives a query of MMEB, as `encode_query` gives a composed query
    assert equal(fed(SourceConfig(**place)))
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
