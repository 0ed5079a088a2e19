import json

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, List, Value, load_dataset

from megapairs_hf import load_triplets
from megapairs_hf.annotation import DescribeConfig, InstructConfig, describe_pairs, instruct_pairs
from megapairs_hf.core.errors import ArtifactError, ConfigError
from megapairs_hf.core.schema import PAIRS, TRIPLETS
from megapairs_hf.dataset import BuildConfig, build_triplets
from megapairs_hf.dataset.split import validation_keys
from megapairs_hf.images.decode import pixel_sha256
from tests.annotation.conftest import make_artifact
from tests.small import files_of, small_pairs


@pytest.fixture(scope="module")
def annotated(corpus, models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("annotated")
    pairs = small_pairs(corpus, models, folder)
    described = describe_pairs(pairs, corpus, config=DescribeConfig(engine="rule_based"), out=folder / "descriptions")
    told = instruct_pairs(described, corpus, config=InstructConfig(engine="rule_based"), out=folder / "instructions")
    return told, pairs


@pytest.fixture(scope="module")
def triplets(annotated, corpus, tmp_path_factory):
    config = BuildConfig(validation=0.2, preview=5, min_negatives=1)
    return build_triplets(*annotated, corpus, config=config, out=tmp_path_factory.mktemp("triplets") / "triplets")


def images_of(rows):
    return {name for row in rows for name in (row["q_img"], row["t_img"], *row["hns"])}


def test_the_folder_is_a_data_set(triplets):
    loaded = load_dataset(triplets.path)
    assert set(loaded) == {"train", "validation"}
    assert loaded["train"].column_names == TRIPLETS.names
    assert loaded["train"].features["verified"] == List(Value("float32"))
    assert set(loaded["train"]["task"]) == {"composed_image_retrieval"} and set(loaded["train"]["language"]) == {"en"}
    assert loaded["train"]["verified"][0] == []
    images = load_dataset(triplets.path, "images", split="train")
    assert images.column_names == ["image_id", "image", "caption", "captions", "cluster"]
    assert images[0]["captions"] == [images[0]["caption"]]
    # rows of the corpus: each image is alone in its cluster, or with its near-duplicates
    assert min(images["cluster"]) >= 0 and len(set(images["cluster"])) > 10
    assert images[0]["image"].mode == "RGB"
    preview = load_dataset(triplets.path, "preview", split="train")
    assert len(preview) == 5
    assert preview[0]["target_image"].size == (32, 32)


def test_the_splits_share_no_image_and_every_pair_is_accounted_for(triplets, annotated):
    splits = {split: load_dataset(triplets.path, split=split) for split in ("train", "validation")}
    assert not images_of(splits["train"]) & images_of(splits["validation"])
    left_out = sum(triplets.manifest.rejected.values())
    assert len(splits["train"]) + len(splits["validation"]) + left_out == annotated[0].rows
    for row in splits["train"]:
        assert row["hns"][0] == row["q_img"]
        assert row["t_img"] not in row["hns"]
        assert len(set(row["q_text"])) == len(row["q_text"]) >= 3


def test_a_triplet_is_joined_with_its_images(triplets, corpus):
    rows = load_triplets(triplets.path)
    hashes = dict(
        zip(
            *(corpus.table(["image_id", "pixels_sha256"])[c].to_pylist() for c in ("image_id", "pixels_sha256")),
            strict=True,
        )
    )
    ids, row = rows.ids(3), rows[3]
    assert pixel_sha256(row["t_img"]) == hashes[ids["t_img"]]
    assert [pixel_sha256(image) for image in row["hns"]] == [hashes[name] for name in ids["hns"]]
    assert row["q_text"] == ids["q_text"]
    assert len(rows[1:3]) == 2
    assert set(load_triplets(triplets.path, columns=["q_img", "q_text"])[0]) == {"q_img", "q_text"}


def test_a_rebuilt_folder_is_not_read_from_a_stale_cache(annotated, corpus, tmp_path):
    for share in (0.0, 0.5):
        config = BuildConfig(validation=share, min_negatives=1)
        built = build_triplets(*annotated, corpus, config=config, out=tmp_path / "t", overwrite=True)
        assert len(load_triplets(str(tmp_path / "t"))) == built.manifest.stats["triplets"]["train"]


def test_building_twice_gives_the_same_bytes(annotated, corpus, tmp_path):
    for name in ("a", "b"):
        build_triplets(*annotated, corpus, config=BuildConfig(), out=tmp_path / name)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def validation_images(queries, targets, share, seed):
    pairs = pa.table({"query_id": queries, "target_id": targets})
    return set(validation_keys(pairs, ("query_id", "target_id"), share, seed).to_pylist())


def test_the_validation_split_cuts_fewer_pairs_than_chance():
    rng = np.random.default_rng(0)
    # images in a ring, each related to its neighbors
    queries = rng.integers(0, 2000, 8000)
    targets = (queries + rng.integers(1, 6, 8000)) % 2000
    names = [f"{i:05d}" for i in range(2000)]
    inside = validation_images([names[i] for i in queries], [names[i] for i in targets], 0.1, 0)
    crossing = np.mean([(names[q] in inside) != (names[t] in inside) for q, t in zip(queries, targets, strict=True)])
    assert 0.08 <= len(inside) / 2000 <= 0.11
    assert crossing < 0.5 * 2 * 0.1 * 0.9
    assert validation_images(["a"], ["b"], 0.0, 0) == set()


def test_a_small_validation_split_holds_pairs_and_a_large_one_is_of_regions_as_before():
    # seventy images in a ring, each related to its neighbors: a region of one image would cut every pair
    names = [f"{i:02d}" for i in range(70)]
    queries, targets = [i for i in range(70) for _ in range(2)], [(i + k) % 70 for i in range(70) for k in (1, 2)]
    for seed in range(5):
        inside = validation_images([names[i] for i in queries], [names[i] for i in targets], 0.1, seed)
        kept = sum(names[q] in inside and names[t] in inside for q, t in zip(queries, targets, strict=True))
        # seven neighbors hold six pairs of distance one and five of distance two
        assert len(inside) == 7 and kept == 11


def star(folder, corpus):
    """One image related to thirty others: no two of those thirty make a pair."""
    ids = corpus.table(["image_id"])["image_id"].to_pylist()[:31]
    rows = [
        {
            "query_id": ids[0],
            "target_id": name,
            "relation": ["x"],
            "scores": [{"relation": "x", "score": 0.5}],
            "negative_ids": [other for other in ids[1:] if other != name][:5],
        }
        for name in ids[1:]
    ]
    pairs = make_artifact(folder / "pairs", "pairs", PAIRS, [rows], {"corpus": corpus.fingerprint})
    described = describe_pairs(pairs, corpus, config=DescribeConfig(engine="rule_based"), out=folder / "descriptions")
    return instruct_pairs(described, corpus, config=InstructConfig(engine="rule_based"), out=folder / "told"), pairs


def test_where_validation_would_get_no_triplet_nothing_is_left_out_for_it(corpus, tmp_path, capsys):
    told, pairs = star(tmp_path, corpus)
    config = BuildConfig(validation=0.04, min_negatives=2)
    built = build_triplets(told, pairs, corpus, config=config, out=tmp_path / "t")
    assert built.manifest.stats["triplets"] == {"train": told.rows, "validation": 0}
    assert built.manifest.rejected == {} and built.manifest.stats["negatives_of_other_split"] == 0
    said = capsys.readouterr().err
    assert said.count("no triplet lies among the 1 images that `validation` 0.04 asks for") == 1
    assert set(load_dataset(built.path)) == {"train"}


def test_what_is_missing_is_said(triplets, tmp_path):
    with pytest.raises(ArtifactError, match="holds no data set of triplets"):
        load_triplets(str(tmp_path))
    with pytest.raises(ConfigError, match="there is no column 'query' in the triplets"):
        load_triplets(triplets.path, columns=["query"])
    rows = load_triplets(triplets.path)
    with pytest.raises(ArtifactError, match="image 'gone' is missing"):
        rows.image("gone")
    with pytest.raises(ArtifactError, match="cannot open the triplets"):
        load_triplets(triplets.path, "test")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("/etc/passwd", r"cannot publish the image .* \(outside_source: /etc/passwd is not inside"),
        ("notes.png", r"is no image \(not_an_image: starts with b'my private"),
    ],
)
def test_only_images_beside_a_table_of_images_are_published(image, message, annotated, corpus, tmp_path):
    (tmp_path / "notes.png").write_text("my private notes")
    instructions, pairs = annotated
    rows = corpus.table(["image_id", "image"]).to_pylist()
    first = pairs.table(["query_id"])["query_id"][0].as_py()
    for i, row in enumerate(rows):
        (tmp_path / f"{i}.png").write_bytes(row["image"]["bytes"])
    lines = [
        {"image_id": r["image_id"], "image": image if r["image_id"] == first else f"{i}.png"}
        for i, r in enumerate(rows)
    ]
    (tmp_path / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    own_pairs = pairs.table(["query_id", "target_id", "negative_ids"])
    with pytest.raises(ArtifactError, match=message):
        build_triplets(
            instructions,
            Dataset(own_pairs),
            tmp_path / "images.jsonl",
            config=BuildConfig(min_negatives=1),
            out=tmp_path / "t",
        )
