"""`Triplets` over data sets of one's own, as a notebook makes them, and saved as the published folder."""

import io
import json
import pickle

import pytest
from datasets import Dataset, load_dataset
from PIL import Image
from torch.utils.data import DataLoader

from megapairs_hf import push
from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.core.columns import add_columns, drop_errors
from megapairs_hf.core.errors import ArtifactError, ConfigError
from megapairs_hf.core.schema import TRIPLETS
from megapairs_hf.dataset import JoinTriplets, Triplets, load_triplets, save_triplets
from tests.making import make_work
from tests.small import ROOT

NAMES = ["a", "b", "c", "d", "unused"]


def png(shade, side=8):
    sink = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 90, 10)).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, name in enumerate(NAMES):
        (folder / f"{name}.png").write_bytes(png(50 * i))
    return folder


@pytest.fixture
def images(photos):
    """A folder of images as `datasets` reads it: paths, no bytes."""
    loaded = load_dataset("imagefolder", data_dir=str(photos), split="train")
    return loaded.add_column("image_id", NAMES).add_column("caption", [f"image {name}" for name in NAMES])


PAIRS = [
    {"query_id": "a", "target_id": "b", "negative_ids": ["c"], "split": "train", "raw": "secret"},
    {"query_id": "b", "target_id": "a", "negative_ids": ["c"], "split": "train", "raw": "secret"},
    {"query_id": "c", "target_id": "d", "negative_ids": [], "split": "validation", "raw": "secret"},
]


@pytest.fixture
def triplets(images):
    clusters = {"query_cluster": 0, "target_cluster": 1, "negative_clusters": [2]}
    texts = {"instructions": ["<b>redder</b>", "more red"], "model": "qwen", "relation": ["clip_image"]}
    pairs = Dataset.from_list([{**row, **clusters, **texts, "mine": "kept"} for row in PAIRS])
    return Triplets(drop_errors(add_columns(pairs, JoinTriplets(min_negatives=1))), images=images)


def test_a_row_has_its_images_and_datasets_sees_ids(triplets):
    row = triplets[0]
    assert row["q_img"].getpixel((0, 0)) == (0, 90, 10) and row["hns"][1].getpixel((0, 0)) == (100, 90, 10)
    assert row["q_text"] == ["<b>redder</b>", "more red"] and row["mine"] == "kept"
    assert triplets.ids(0)["hns"] == ["a", "c"]
    assert triplets.to_pandas()["t_img"].tolist() == ["b", "a", "d"]
    assert set(TRIPLETS.names) < set(triplets.column_names) == set(triplets.features)
    assert [row["q_img"].size for row in triplets[1:]] == [(8, 8)] * 2


def test_map_filter_select_and_shuffle_give_triplets(triplets):
    mapped = triplets.map(lambda row: {"words": len(row["q_text"][1].split())})
    assert mapped[0]["words"] == 2 and mapped[0]["t_img"].size == (8, 8)
    assert triplets.filter(lambda row: row["q_img"] == "b").ids(0)["t_img"] == "a"
    assert [triplets.select([2, 0]).ids(i)["q_img"] for i in (0, 1)] == ["c", "a"]
    assert sorted(triplets.shuffle(seed=1).to_pandas()["q_img"]) == ["a", "b", "c"]
    assert all(isinstance(one, Triplets) for one in (mapped, triplets.select([0]), triplets.shuffle(seed=0)))


def test_a_column_makes_splits(triplets):
    assert triplets.splits == {"train": 2, "validation": 1}
    assert triplets.split("validation").ids(0)["q_img"] == "c"
    with pytest.raises(ConfigError, match="no split 'test'; there are train, validation"):
        triplets.split("test")
    assert repr(triplets).startswith("Triplets: 3 triplets (train 2, validation 1) of 5 images\ncolumns: ")


def first_pixels(columns):
    return {"shade": [image.getpixel((0, 0))[0] for image in columns["q_img"]]}


def test_a_transform_gets_decoded_columns_and_workers_take_it(triplets):
    shades = triplets.with_transform(first_pixels)
    assert [row["shade"] for row in shades] == [0, 50, 100]
    assert shades.with_transform(None)[0]["q_img"].size == (8, 8)
    assert len(pickle.dumps(triplets)) < 30_000
    loader = DataLoader(shades, batch_size=2, num_workers=2, multiprocessing_context="spawn")
    assert [batch["shade"].tolist() for batch in loader] == [[0, 50], [100]]


def test_a_notebook_shows_images_and_escapes_texts(triplets):
    page = triplets._repr_html_()
    assert page.count("data:image/webp;base64,") == 8
    assert "&lt;b&gt;redder&lt;/b&gt;" in page and "<b>" not in page
    lacking = Triplets(triplets.dataset, triplets.images.filter(lambda row: row["image_id"] != "a"))
    assert "image &#x27;a&#x27; is missing" in lacking._repr_html_()


def test_what_is_saved_is_the_published_layout(triplets, tmp_path):
    made = save_triplets(triplets, tmp_path / "t")
    assert made.manifest.stats == {
        "triplets": {"train": 2, "validation": 1},
        "relations": {"clip_image": 3},
        "models": {"qwen": 3},
    }
    rows = load_dataset(made.path)
    assert {split: len(part) for split, part in rows.items()} == {"train": 2, "validation": 1}
    # columns of one's own are published, those of the pairs are not
    assert rows["train"].column_names == [*TRIPLETS.names, "mine"]
    images = load_dataset(made.path, "images", split="train")
    assert images["image_id"][:] == ["a", "b", "c", "d"]
    assert images["captions"][0] == ["image a"] and images["image"][3].getpixel((0, 0)) == (150, 90, 10)
    assert load_dataset(made.path, "preview", split="train")[0]["target_image"].size == (8, 8)
    again = load_triplets(made.path, "validation", check=True)
    assert again.ids(0)["q_img"] == "c" and again[0]["q_img"].getpixel((0, 0)) == (100, 90, 10)
    assert save_triplets(triplets, tmp_path / "t").fingerprint == made.fingerprint


def test_clusters_come_from_the_pairs_or_from_the_images(triplets, images, tmp_path):
    made = save_triplets(triplets, tmp_path / "t")
    assert load_dataset(made.path, "images", split="train")["cluster"][:] == [1, 0, 0, 1]
    own = Triplets(triplets.dataset, images.add_column("cluster", [7, 7, 8, 9, 9]))
    assert load_dataset(save_triplets(own, tmp_path / "o").path, "images", split="train")["cluster"][:] == [7, 7, 8, 9]
    bare = Triplets(triplets.dataset.select_columns(["q_img", "q_text", "t_img", "hns"]), images)
    made = save_triplets(bare, tmp_path / "bare")
    row = load_dataset(made.path, split="train")[0]
    assert (row["task"], row["language"], row["relation"], row["verified"]) == ("composed_image_retrieval", "", [], [])
    assert set(load_dataset(made.path, "images", split="train")["cluster"]) == {-1}


def test_saving_what_was_built_gives_the_same_rows(tmp_path):
    built = open_artifact(make_work(tmp_path / "work") / "triplets")
    made = save_triplets(load_triplets(built.path), tmp_path / "t")
    assert load_dataset(made.path, split="train").to_list() == load_dataset(built.path, split="train").to_list()
    with pytest.raises(ConfigError, match="there is no column 'q_text' in the triplets; open them with all columns"):
        save_triplets(load_triplets(built.path, columns=["q_img"]), tmp_path / "u")


def test_what_is_no_triplet_is_one_sentence(triplets, images):
    with pytest.raises(ConfigError, match=r"no column 'q_img' in the triplets; map `JoinTriplets\(\)` over pairs"):
        Triplets(Dataset.from_list(PAIRS), images)
    with pytest.raises(ConfigError, match=r"no column 'image_id' in the images; add it with `CheckImages\(\)`"):
        Triplets(triplets.dataset, images.remove_columns("image_id"))
    bad = triplets.dataset.remove_columns("error").add_column("error", ["", "x: y", ""])
    with pytest.raises(ConfigError, match=r"1 of 3 rows have an error; leave them out first: `drop_errors\(…\)`"):
        Triplets(bad, images)
    with pytest.raises(TypeError, match=r"the column, images by id, is \.dataset\['q_text'\]"):
        triplets["q_text"]
    with pytest.raises(TypeError, match=r"several, images by id, are \.ids"):
        triplets[[0, 1]]
    with pytest.raises(ConfigError, match=r"push takes `Triplets` or a folder, not a Dataset; make it Triplets"):
        push(triplets.dataset, "you/pairs")
    with pytest.raises(ConfigError, match="there is no triplet to save"):
        save_triplets(triplets.select([]), "nowhere")


def test_an_image_that_is_gone_is_named(triplets, photos):
    (photos / "d.png").rename(photos / "gone")
    with pytest.raises(
        ArtifactError, match=r"cannot read the image .d. .*d\.png: No such file.*put it back, or leave it out"
    ):
        triplets[2]
    (photos / "gone").rename(photos / "d.png")


def test_the_pages_snippets_run(tmp_path, monkeypatch, capsys):
    make_work(tmp_path / "work")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "dataset.md").read_text(encoding="utf-8")
    names = {}
    for block in page.split("```python\n")[1:]:
        exec(block.split("```")[0], names)  # the page is ours
    assert len(load_triplets(tmp_path / "own" / "triplets")) == 1
    assert capsys.readouterr().out.count('"pos"') == 3


def test_images_come_from_a_folder(photos):
    rows = Dataset.from_list([{"q_img": "a.png", "q_text": ["x"], "t_img": "b.png", "hns": ["a.png"]}])
    for folder in (photos, f"{photos}/"):
        assert Triplets(rows, folder)[0]["t_img"].getpixel((0, 0)) == (50, 90, 10)


def test_images_come_from_a_corpus_a_table_or_a_published_folder(triplets, photos, tmp_path, corpus):
    lines = [{"image_id": name, "image": f"{name}.png"} for name in NAMES]
    (photos / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    saved = save_triplets(triplets, tmp_path / "t")
    for images in (photos / "images.jsonl", saved.path):
        assert Triplets(triplets.dataset, images)[0]["hns"][1].getpixel((0, 0)) == (100, 90, 10)
    ids = corpus.table(["image_id"])["image_id"].to_pylist()
    rows = Dataset.from_list([{"q_img": ids[0], "q_text": ["x"], "t_img": ids[1], "hns": [ids[0]]}])
    for images in (corpus, corpus.path):
        assert Triplets(rows, images)[0]["t_img"].size == (32, 32)


@pytest.mark.parametrize("path", ["/etc/passwd", "../private.png", "link.png"])
def test_a_table_of_images_names_no_file_outside_its_folder(path, triplets, photos, tmp_path):
    private = photos.parent / "private.png"
    private.write_bytes(png(7))
    (photos / "link.png").symlink_to(private)
    lines = [{"image_id": name, "image": path if name == "b" else f"{name}.png"} for name in NAMES]
    (photos / "strange.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    try:
        stranger = Triplets(triplets.dataset, photos / "strange.jsonl")
        for read in (lambda: stranger[0], lambda: save_triplets(stranger, tmp_path / "t")):
            with pytest.raises(ArtifactError, match=r"cannot read the image 'b' \(outside_source: .*leave it out"):
                read()
    finally:
        (photos / "link.png").unlink()
        (photos / "strange.jsonl").unlink()


def test_a_folder_of_images_serves_as_the_images(triplets, photos):
    rows = triplets.dataset.map(lambda row: {name: f"{row[name]}.png" for name in ("q_img", "t_img")})
    rows = rows.map(lambda row: {"hns": [f"{name}.png" for name in row["hns"]]})
    assert Triplets(rows, photos)[0]["t_img"].getpixel((0, 0)) == (50, 90, 10)


def test_what_is_no_image_is_never_published(triplets, images, tmp_path):
    """A `Dataset` of a script's own may name any file, as `datasets` reads them."""
    (tmp_path / "secret.png").write_text("root:x:0:0:root:/root:/bin/bash\n")
    own = Dataset.from_list(
        [
            {"image_id": name, "image": str(tmp_path / "secret.png") if name == "b" else row["path"]}
            for name, row in zip(NAMES, triplets.images["image"], strict=True)
        ]
    )
    stranger = Triplets(triplets.dataset, own.cast_column("image", triplets.images.features["image"]))
    for publish in (lambda: save_triplets(stranger, tmp_path / "t"), lambda: stranger.push_to_hub("a/b")):
        with pytest.raises(ArtifactError, match=r"'b' is no image \(not_an_image: starts with b'root:x:0:0"):
            publish()
    assert b"root:x" not in b"".join(path.read_bytes() for path in (tmp_path / "t").rglob("*") if path.is_file())
