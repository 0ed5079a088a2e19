"""Every run is measured before and after, on images that it never saw, and says plainly whether it helped."""

import dataclasses
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.artifacts.workspace import open_work, read_results
from megapairs_hf.dataset import Triplets, load_triplets
from megapairs_hf.evaluation.fusion_weight import GRID, fit_model_weight, fit_weight
from megapairs_hf.evaluation.results_table import results_tables
from megapairs_hf.models import load_mmret
from megapairs_hf.report.config import ReportConfig
from megapairs_hf.report.page import write_report
from megapairs_hf.training import TrainConfig, train
from megapairs_hf.training.data.captions import CaptionPool
from megapairs_hf.training.data.held_out import hold_out
from megapairs_hf.training.data.triplets import TripletPool
from megapairs_hf.training.validation import Validation
from megapairs_hf.training.verdict import FUSED, IMAGE, TEXT, WEIGHTED, Ranks, result_records, verdict
from tests.making import image_rows
from tests.models import tiny
from tests.small import megapairs
from tests.training.test_gradients import SETTINGS, made_task


def ranks_of(fused, weighted=None, weight=0.5):
    other = list(weighted or fused)
    return Ranks({IMAGE: other, TEXT: other, WEIGHTED: other, FUSED: list(fused)}, weight)


def hits(right, count=200):
    """Ranks of which so many are first."""
    return [1] * right + [7] * (count - right)


WORSE, UNSHOWN = "training did not help, it made the model worse: ", "training did not help: "
UNSURE = "training may have helped: "
LESS, HELPED = "training did not help more than a weight would: ", "training helped: "


@pytest.mark.parametrize(
    ("before", "bar", "after", "start", "part"),
    [
        (40, 50, 90, HELPED, "recall@1 of image + text went from 20.0 to 45.0 %"),
        (90, 90, 40, WORSE, "from 45.0 to 20.0 %"),
        (40, 50, 40, UNSHOWN, "no better than the base beyond sampling error"),
        (40, 50, 41, UNSURE, "(+0.5 points, 95 % interval"),
        (40, 50, 41, UNSURE, "; the interval holds 0: only more held-out queries can tell"),
        (41, 50, 40, UNSHOWN, "(−0.5 points, 95 % interval"),
        (40, 80, 60, LESS, "the base with that weight finds more"),
        (40, 60, 60, HELPED, "from 20.0 to 30.0 %"),
        (0, 0, 0, UNSHOWN, "from 0.0 to 0.0 %"),
        (200, 200, 200, UNSHOWN, "from 100.0 to 100.0 %"),
    ],
)
def test_the_sentence(before, bar, after, start, part):
    found = verdict(ranks_of(hits(before), hits(bar), 0.7), ranks_of(hits(after), weight=0.35))
    assert found.sentence.startswith(start) and part in found.sentence
    assert found.helped == (start == HELPED)
    assert "on 200 held-out queries" in found.sentence
    assert "best weight of the image 0.35" in found.sentence and "before training 0.7" in found.sentence


@pytest.mark.parametrize("seed", range(5))
def test_no_sentence_says_helped_below_the_base(seed):
    rng = np.random.default_rng(seed)
    for _ in range(40):
        old, new = (hits(int(rng.integers(0, 200))) for _ in range(2))
        rng.shuffle(new)
        found = verdict(ranks_of(old), ranks_of(new))
        below = sum(rank == 1 for rank in new) <= sum(rank == 1 for rank in old)
        assert not (below and found.helped)
        assert found.sentence.startswith("training helped") == found.helped


@pytest.mark.parametrize(("count", "known"), [(1, False), (3, False), (19, False), (20, True), (60, True)])
def test_of_a_handful_of_queries_nothing_is_concluded(count, known):
    # all of them wrong before and right after: an interval without width
    result = verdict(ranks_of([7] * count), ranks_of([1] * count))
    assert result.helped == known and result.ci95 == (1.0, 1.0)
    assert result.sentence.startswith(HELPED if known else "nobody knows whether training helped: recall@1")
    assert f"on {count} held-out queries" in result.sentence


def test_the_interval_is_of_paired_differences():
    rng = np.random.default_rng(0)
    old, new = rng.integers(1, 4, 300), rng.integers(1, 3, 300)
    found = verdict(ranks_of(old.tolist()), ranks_of(new.tolist()))
    gaps = (new == 1).astype(float) - (old == 1)
    means = np.array([gaps[rng.integers(0, 300, 300)].mean() for _ in range(4000)])
    assert found.difference == pytest.approx(gaps.mean())
    assert np.allclose(found.ci95, np.quantile(means, [0.025, 0.975]), atol=0.01)


def test_records_are_those_that_tables_read():
    records = result_records(ranks_of(hits(40), hits(50), 0.7), ranks_of(hits(90)), 300)
    assert len(records) == 24 and {record["metric"] for record in records} == {"recall@1", "recall@10", "mrr"}
    (table,) = results_tables(records)
    rows = {(row.strategy, row.model): row for row in table.rows}
    assert rows[FUSED, "trained"].cells[0].text == "45.0"
    assert rows[FUSED, "trained"].cells[0].gain == pytest.approx(25)
    assert rows[WEIGHTED, "base"].apart == "image weight 0.7"
    first = next(record for record in records if record["strategy"] == FUSED)
    # the standard error of a proportion
    assert np.diff(first["ci95"])[0] == pytest.approx(2 * 1.96 * np.sqrt(0.2 * 0.8 / 200), abs=0.02)


# held-out triplets


def chain(count, clusters=None):
    """Triplets along a ring of images, each with negatives farther on."""
    names = [f"i{n:03d}" for n in range(count)]
    rows = {"q_img": [], "q_text": [], "t_img": [], "hns": []}
    for n in range(count):
        for step in (1, 2):
            rows["q_img"].append(names[n])
            rows["q_text"].append([f"by {step}"])
            rows["t_img"].append(names[(n + step) % count])
            rows["hns"].append([names[n], *(names[(n + far) % count] for far in (3, 4, 5))])
    images = {"image_id": names, "image": [{"bytes": b"", "path": None}] * count}
    if clusters is not None:
        images["cluster"] = clusters
    return Triplets(Dataset.from_dict(rows), Dataset.from_dict(images))


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("count", [100, 300])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_image_and_no_near_duplicate_is_in_both(count, clustered, seed):
    # every image has a near-duplicate half way around the ring
    clusters = [n % (count // 2) for n in range(count)] if clustered else None
    divided = hold_out(chain(count, clusters), 0.1, None, seed, 8)
    sides = [{*part.dataset["q_img"], *part.dataset["t_img"]} for part in (divided.train, divided.validation)]
    assert len(divided.validation) > 0 and not sides[0] & sides[1]
    assert sides[1] <= divided.images and not sides[0] & divided.images
    if clustered:
        of = {f"i{n:03d}": n % (count // 2) for n in range(count)}
        assert not {of[name] for name in sides[0]} & {of[name] for name in divided.images}
    again = hold_out(chain(count, clusters), 0.1, None, seed, 8)
    assert again.validation.dataset["q_img"] == divided.validation.dataset["q_img"]


@pytest.mark.parametrize("kind", ["numbers", "texts", "none"])
def test_images_without_a_known_cluster_stand_alone(kind):
    unknown = {"numbers": [-1, None], "texts": [None, None], "none": [-1, -1]}[kind]
    of = {"numbers": lambda n: n // 2, "texts": lambda n: f"c{n // 2}", "none": lambda n: -1}[kind]
    clusters = [unknown[n % 2] if n % 5 == 0 else of(n) for n in range(200)]
    triplets = chain(200, clusters)
    # the last ten images are named by triplets alone
    triplets = Triplets(triplets.dataset, triplets.images.select(range(190)))
    divided = hold_out(triplets, 0.1, None, 0, 8)
    known = dict(zip(triplets.images["image_id"], clusters, strict=False))
    inside = {known.get(name) for name in divided.images} - {-1, None}
    alike = {name for name, cluster in known.items() if cluster in inside}
    assert alike <= divided.images and len(divided.images) < 90
    sides = [{*part.dataset["q_img"], *part.dataset["t_img"]} for part in (divided.train, divided.validation)]
    assert sides[1] <= divided.images and not sides[0] & divided.images


def test_held_out_images_are_no_negatives():
    divided = hold_out(chain(200), 0.1, None, 0, 8)
    config = TrainConfig(**{**SETTINGS, "negatives": 4})
    pool = TripletPool(divided.train, config, divided.images)
    every = {name for names in divided.train.dataset["hns"] for name in names}
    assert every & divided.images
    for step in range(3):
        for example in pool.examples(range(pool.rows), step):
            assert not {item.image for item in example.candidates} & divided.images
    assert not {item.image for item in pool.inputs(range(pool.rows))} & divided.images


@pytest.mark.parametrize(("count", "smallest"), [(3, 2), (60, 10_000)])
def test_too_few_triplets_hold_out_nothing(count, smallest, capsys):
    triplets = chain(count)
    divided = hold_out(triplets, 0.05, None, 0, smallest)
    assert divided.validation is None and divided.train is triplets and not divided.images
    assert "too few to hold out any" in capsys.readouterr().err


# whole runs

LEARNS = {**SETTINGS, "steps": 150, "batch_size": 32, "lr": 3e-3, "temperature": 0.1}
HARMS = {**SETTINGS, "steps": 20, "lr": 3.0, "max_grad_norm": 1e9, "temperature": 1.0}
IDLES = {**SETTINGS, "steps": 2, "lr": 1e-12}


@pytest.fixture(scope="module")
def drawn():
    """Triplets whose text says what the target shows, so that there is something to learn of it."""
    images = image_rows("d")
    rows = {"q_img": [], "q_text": [], "t_img": [], "hns": []}
    rng = np.random.default_rng(0)
    for target in images:
        for query in rng.choice(len(images), 12, replace=False):
            if images[query] is not target:
                rows["q_img"].append(images[query]["image_id"])
                rows["q_text"].append([target["caption"]])
                rows["t_img"].append(target["image_id"])
                rows["hns"].append([images[query]["image_id"]])
    kept = {name: [image[name] for image in images] for name in ("image_id", "image", "caption")}
    return Triplets(Dataset.from_dict(rows), Dataset.from_dict(kept))


@pytest.fixture(scope="module")
def learnt(drawn, models, tmp_path_factory):
    """A model that training made better."""
    folder = tmp_path_factory.mktemp("learnt")
    return train(drawn, config=TrainConfig(**LEARNS), out=folder / "model", work=models)


def values(path, model, strategy, metric="recall@1"):
    (record,) = (
        record
        for record in read_results(Path(path) / "results.jsonl")
        if (record["model"], record["strategy"], record["metric"]) == (model, strategy, metric)
    )
    return record["value"]


def test_training_that_helps_says_so(learnt):
    stats = learnt.manifest.stats
    assert stats["helped"] and stats["verdict"].startswith("training helped: recall@1 of image + text went from")
    assert values(learnt.path, "trained", FUSED) > values(learnt.path, "base", FUSED)
    assert values(learnt.path, "trained", FUSED) >= values(learnt.path, "base", WEIGHTED)
    for model in ("base", "trained"):
        assert values(learnt.path, model, WEIGHTED) >= max(values(learnt.path, model, one) for one in (IMAGE, TEXT))


def test_training_that_harms_says_so(learnt, drawn, tmp_path):
    made = train(drawn, config=TrainConfig(**{**HARMS, "model": learnt.path}), out=tmp_path / "m")
    assert not made.manifest.stats["helped"]
    assert made.manifest.stats["verdict"].startswith("training did not help, it made the model worse")
    assert values(made.path, "trained", FUSED) < values(made.path, "base", FUSED)


def test_training_that_does_nothing_says_so(learnt, drawn, tmp_path):
    made = train(drawn, config=TrainConfig(**{**IDLES, "model": learnt.path}), out=tmp_path / "m")
    assert made.manifest.stats["verdict"].startswith("training did not help: ")
    assert "+0.0 points, 95 % interval +0.0 to +0.0" in made.manifest.stats["verdict"]
    # what this run starts from is what the other ended with
    assert values(made.path, "base", FUSED, "mrr") == values(learnt.path, "trained", FUSED, "mrr")


def test_a_run_on_triplets_in_hand_holds_some_out(rows, models, tmp_path, capsys):
    made = train(rows, config=TrainConfig(**SETTINGS, validation=0.2), out=tmp_path / "m", work=models)
    message = capsys.readouterr().err
    assert "held out" in message and "for validation" in message
    assert made.manifest.stats["rows"] < len(rows)
    some = rows.select(range(60))
    few = train(some, config=TrainConfig(**SETTINGS, validation=0.2), out=tmp_path / "few", work=models)
    assert "fewer than 20 queries tell nothing" in few.manifest.stats["verdict"]
    # nor do they tell a weight from which a search should start
    saved = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("m", "few")]
    assert ["fusion_weight" in config for config in saved] == [True, False]
    assert made.manifest.stats["verdict"].startswith("training ")


def test_measured_is_what_encode_gives(triplets, models, model, tmp_path):
    made = train(triplets, config=TrainConfig(**IDLES), out=tmp_path / "m", work=models)
    held = load_triplets(triplets.path, "validation")
    fitted = fit_model_weight(model, held)
    assert values(made.path, "base", WEIGHTED) == pytest.approx(fitted.best.value, abs=1e-6)
    assert made.manifest.stats["image_weight"] == fitted.weight
    curves = {r["model"]: r["curve"] for r in read_results(Path(made.path) / "results.jsonl") if "curve" in r}
    points = [[point.weight, point.value, *point.ci95] for point in fitted.curve]
    assert curves.keys() == {"base", "trained"} and curves["trained"] == curves["base"]  # nothing was learnt
    assert np.allclose(curves["base"], points, atol=1e-6)
    assert json.loads((Path(made.path) / "config.json").read_text())["fusion_weight"] == fitted.weight
    # the fused query as the model itself gives it
    names = list(dict.fromkeys([*held.dataset["t_img"], *held.dataset["q_img"]]))
    gallery = model.encode([held.image(name) for name in names])
    pairs = zip(held.dataset["q_img"], held.dataset["q_text"], strict=True)
    queries = model.encode([{"image": held.image(image), "text": texts[0]} for image, texts in pairs])
    scores = queries @ gallery.T
    own = [names.index(name) for name in held.dataset["q_img"]]
    goal = [names.index(name) for name in held.dataset["t_img"]]
    scores[np.arange(len(own)), own] = -9
    first = (scores > scores[np.arange(len(goal)), goal][:, None]).sum(1) == 0
    assert values(made.path, "base", FUSED) == pytest.approx(first.mean(), abs=1e-6)


def test_a_language_model_is_measured_with_its_prompts(rows, tmp_path):
    model = load_mmret(tiny.llava(tmp_path / "llava"), device="cpu")
    held = rows.select(range(12))
    task = made_task(model, rows, batch_size=4)
    task.pools.append(TripletPool(held, task.config))
    validation = Validation(task, 1, held, 0, 4)
    images, texts, fused, gallery = validation._embeddings()
    pairs = list(zip(held.dataset["q_img"], held.dataset["q_text"], strict=True))
    expected = model.encode_query([{"image": held.image(image), "text": words[0]} for image, words in pairs])
    assert np.allclose(fused, expected, atol=1e-4)
    assert np.allclose(gallery, model.encode_document([held.image(name) for name in validation.names]), atol=1e-4)
    assert set(validation.measure().of) == {IMAGE, TEXT, WEIGHTED, FUSED}
    assert fit_weight(images, texts, gallery, validation.targets, exclude=validation.own).weight in GRID
    task.close()


def test_unreadable_validation_images_are_left_out(model, rows, capsys):
    task = made_task(model, rows)
    held = rows.select(range(40))
    pool = TripletPool(held, task.config)
    lost, files = held.dataset["t_img"][0], pool.files
    pool.files = lambda names: {name: b"broken" if name == lost else files([name])[name] for name in names}
    task.pools.append(pool)
    validation = Validation(task, 1, held, 0)
    assert 0 < len(validation.queries) < 40 and lost not in validation.names
    assert f"1 images of the validation split cannot be read ({lost}: " in capsys.readouterr().err
    task.close()


def test_few_images_are_in_memory_while_a_model_is_measured(model, rows, monkeypatch):
    task = made_task(model, rows)
    task.pools.append(task.pools[0])
    validation = Validation(task, 1, rows.select(range(200)), 0, 4)
    read, features, alive, most, sizes = task.images.reader.read, task.features, [0], [0], set()
    guard = threading.Lock()

    def count(images):
        with guard:
            alive[0] += images
            most[0] = max(most[0], alive[0])

    def counted(pool, names):
        count(len(names))
        loaded = read(pool, names)
        sizes.update(np.asarray(value).shape for value, _ in loaded)
        return loaded

    def taken(pool, inputs, device, images):
        count(-sum(1 for _ in images.each()))
        return features(pool, inputs, device, images)

    monkeypatch.setattr(task.images.reader, "read", counted)
    monkeypatch.setattr(task, "features", taken)
    assert len(validation.names) > 60 and validation.recall()
    # two threads, which have two chunks of four each before them, besides the chunk that is measured
    assert alive == [0] and most[0] <= 4 * (2 * 2 + 1)
    # and they have the model's size, not their own
    assert sizes == {(32, 32, 3)}
    task.close()


def test_frozen_and_plain_measure_alike(triplets, models, tmp_path):
    for name, more in {"plain": {}, "frozen": {"freeze": ("vision", "text"), "head_lr": 1e-12}}.items():
        train(triplets, config=TrainConfig(**{**IDLES, **more}), out=tmp_path / name, work=models)
    one, two = (read_results(tmp_path / name / "results.jsonl") for name in ("plain", "frozen"))
    for left, right in zip(one, two, strict=True):
        assert left["value"] == pytest.approx(right["value"], abs=0.02)


def test_early_stopping_goes_by_the_validation_split(triplets, models, tmp_path):
    settings = {**SETTINGS, "steps": 30, "lr": 1e-12, "eval_every": 2, "patience": 3}
    config = TrainConfig(**settings, best_metric="validation/recall@1")
    stats = train(triplets, config=config, out=tmp_path / "m", work=models).manifest.stats
    # nothing changes, so the first evaluation stays the best
    assert (stats["steps"], stats["saved_step"]) == (8, 2)
    assert set(stats["evaluation"]) == {"validation/recall@1", "validation/recall@10"}


def test_captions_keep_the_text_alone(rows, model):
    config = TrainConfig(**SETTINGS, caption_share=0.25)
    pool = TripletPool(rows, config)
    captions = CaptionPool(pool, config)
    known = dict(zip(rows.images["image_id"], rows.images["caption"], strict=True))
    examples = captions.examples(range(captions.rows), 0)
    assert {example.candidates[0].image for example in examples} == {*rows.dataset["q_img"], *rows.dataset["t_img"]}
    for example in examples:
        assert example.query.text == known[example.candidates[0].image] and example.query.image is None
        # other images with the very caption are no negatives
        same = {name for name, caption in known.items() if caption == example.query.text}
        assert {item.image for item in example.answers} <= same - {example.candidates[0].image}
    with pytest.raises(Exception, match=r"`caption_share` is 0\.25, but .* fewer than batch_size"):
        CaptionPool(pool, dataclasses.replace(config, batch_size=1000))


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_captions_have_their_share_of_the_steps(triplets, models, tmp_path, monkeypatch, share):
    from megapairs_hf.training import stage

    taken = []
    task_class = stage.ContrastTask

    class Watched(task_class):
        def learn(self, module, step, accelerator):
            taken.append(int(self.sampled[step]))
            return super().learn(module, step, accelerator)

    monkeypatch.setattr(stage, "ContrastTask", Watched)
    config = TrainConfig(**{**SETTINGS, "steps": 20, "caption_share": share})
    train(triplets, config=config, out=tmp_path / "m", work=models)
    assert sum(taken) == round(20 * share)


def test_the_last_line_of_the_command_and_the_first_of_the_report(triplets, models, tmp_path):
    words = [word for name, value in IDLES.items() for word in (f"--{name}", str(value))]
    words += ["--model", f"{models}/clip", "--triplets", triplets.path, "--work", tmp_path]
    done = megapairs("train", *words)
    assert done.returncode == 0, done.stderr
    sentence = open_artifact(tmp_path / "model", "model").manifest.stats["verdict"]
    assert done.stderr.strip().splitlines()[-1] == sentence
    assert sentence.startswith("training did not help: ")
    page = write_report(tmp_path, tmp_path / "report.html", config=ReportConfig()).read_text()
    header = page.split("</h1>", 1)[1].lstrip()
    assert header.startswith('<p class="verdict">Training did not help: ')
    assert "held-out triplets" in page and "best weighted sum" in page
    assert "recall@1 by weight of the image, 0 (text alone) to 1 (image alone): base (pale) best" in page
    assert open_work(tmp_path).verdict() == sentence
    assert len(json.loads((tmp_path / "model" / "results.jsonl").read_text().splitlines()[0])) > 8
    assert torch.is_tensor(load_mmret(str(tmp_path / "model"), device="cpu").encode("red", convert_to_tensor=True))
