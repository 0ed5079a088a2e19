import pickle

import pytest
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.losses import MultipleNegativesRankingLoss

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.cli import main
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.dataset import export_megapairs, import_megapairs, load_triplets, training_view
from megapairs_hf.dataset.views import draw
from megapairs_hf.images.decode import pixel_sha256
from megapairs_hf.models.loading import load_mmret
from tests.making import make_work


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_work(tmp_path_factory.mktemp("views") / "work")


@pytest.fixture(scope="module")
def triplets(work):
    return load_triplets(str(work / "triplets"))


def test_a_view_holds_what_was_drawn(triplets):
    view = training_view(triplets, negatives=3, seed=1)
    assert view.column_names == ["anchor", "positive", "negative_1", "negative_2", "negative_3"]
    assert len(view) == len(triplets)
    row, ids = view[7], triplets.ids(7)
    assert row["anchor"]["text"] in ids["q_text"]
    assert list(row["anchor"]) == ["text", "image"]
    shown = {name: pixel_sha256(triplets.image(name)) for name in (ids["t_img"], *ids["hns"])}
    assert pixel_sha256(row["positive"]) == shown[ids["t_img"]]
    # the query image is the first negative, the others are distinct mined ones
    assert pixel_sha256(row["negative_1"]) == shown[ids["q_img"]] == pixel_sha256(row["anchor"]["image"])
    assert len({pixel_sha256(row[f"negative_{i}"]) for i in (1, 2, 3)}) == 3


def test_draws_depend_on_seed_epoch_and_row_only(triplets):
    rows = triplets.ids(range(len(triplets)))
    first = [draw(row, 4, "0/0") for row in rows]
    assert first == [draw(row, 4, "0/0") for row in reversed(rows)][::-1]
    assert first != [draw(row, 4, "0/1") for row in rows]
    assert all(names[0] == row["q_img"] for (_, names), row in zip(first, rows, strict=True))
    short = {"q_img": "a", "t_img": "b", "q_text": ["t"], "hns": ["a"]}
    assert draw(short, 3, "0/0") == ("t", ["a", "a", "a"])
    with pytest.raises(ConfigError, match="`negatives` is 0"):
        training_view(triplets, negatives=0)


def test_a_worker_receives_names_and_not_images(triplets):
    view = training_view(triplets, negatives=2)
    sent = pickle.dumps(triplets)
    assert len(sent) < 20_000
    assert pickle.loads(sent).ids(3) == triplets.ids(3)
    assert pickle.loads(pickle.dumps(view))[0]["anchor"]["text"] == view[0]["anchor"]["text"]


def test_the_trainer_of_sentence_transformers_takes_a_step_on_imported_data(work, models, tmp_path):
    written = export_megapairs(open_artifact(work / "triplets"), tmp_path / "released")
    import_megapairs(written["train"], tmp_path / "released" / "images", out=tmp_path / "t")
    view = training_view(load_triplets(str(tmp_path / "t")), negatives=2)
    model = load_mmret(f"{models}/clip", device="cpu")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=1,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=view, loss=MultipleNegativesRankingLoss(model)
    )
    told = trainer.train()
    assert told.training_loss > 0
    assert any((old != new).any() for old, new in zip(before, model.parameters(), strict=True))


def test_the_command_line_exports_imports_and_excludes(work, tmp_path, capsys):
    folder = str(work / "triplets")
    assert main(["dataset", "export", folder, str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.split()
    assert lines == [str(tmp_path / "out" / "train.jsonl"), str(tmp_path / "out" / "validation.jsonl")]
    (tmp_path / "ids.txt").write_text("c001\n")
    words = [lines[0], str(tmp_path / "out" / "images"), "--out", str(tmp_path / "t")]
    assert main(["dataset", "import", *words, "--exclude", str(tmp_path / "ids.txt")]) == 0
    assert "c001" not in load_triplets(str(tmp_path / "t")).images["image_id"]
