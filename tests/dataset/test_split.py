from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset

from megapairs_hf.annotation import DescribeConfig, InstructConfig, describe_pairs, instruct_pairs
from megapairs_hf.artifacts.shards import part_shards
from megapairs_hf.corpus import CorpusConfig, make_corpus
from megapairs_hf.dataset import BuildConfig, build_triplets, layout
from megapairs_hf.dataset.layout import cut
from megapairs_hf.embedding import EmbedConfig, embed_corpus
from megapairs_hf.mining import MineConfig, mine_pairs
from tests.small import SIMILARITY


@pytest.fixture(scope="module")
def built(tmp_path_factory, models):
    """Sixty noisy images of 60 kB, twelve of them there twice but for one pixel."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("twice")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(60):
        noise = rng.integers(0, 256, (140, 140, 3), np.uint8)
        noise[:70] = rng.integers(0, 256, 3)
        Image.fromarray(noise).save(folder / "images" / f"{i:03d}.png")
        if i % 5 == 0:
            noise[-1, -1] ^= 1
            Image.fromarray(noise).save(folder / "images" / f"{i:03d}-again.png")
    corpus = make_corpus(
        CorpusConfig(source="image_folder", path=str(folder / "images"), caption_template="image {stem} here"),
        out=folder / "corpus",
    )
    embeddings = embed_corpus(
        corpus, config=EmbedConfig(encoders=SIMILARITY[:2], batch_size=16), out=folder / "embeddings", work=models
    )
    mining = MineConfig(neighbors=30, similarity_range=(0.05, 0.999), range_kind="quantile", near_duplicate=0.9995)
    pairs = mine_pairs(embeddings, corpus, config=mining, out=folder / "pairs")
    described = describe_pairs(pairs, corpus, config=DescribeConfig(engine="rule_based"), out=folder / "descriptions")
    told = instruct_pairs(described, corpus, config=InstructConfig(engine="rule_based"), out=folder / "instructions")
    config = BuildConfig(validation=0.3, min_negatives=1, preview=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "MAX_SHARD_BYTES", 1_000_000)
        return build_triplets(told, pairs, corpus, config=config, out=folder / "triplets"), pairs


def test_no_two_of_a_cluster_are_in_different_splits(built):
    triplets, pairs = built
    assert pairs.manifest.stats["near_duplicates"]["clusters"] == 12
    splits = []
    for split in ("train", "validation"):
        rows = load_dataset(triplets.path, split=split)
        assert len(rows) > 0
        splits.append({n[:3] for row in rows for n in (row["q_img"], row["t_img"], *row["hns"])})
    # an image and its near-duplicate have the same three digits
    assert not splits[0] & splits[1]


def test_no_shard_of_images_is_larger_than_asked_for(built):
    triplets, _ = built
    shards = part_shards(triplets, "images")
    assert len(shards) > 1
    for i, _ in shards:
        held = sum(len(row["image"]["bytes"]) for row in triplets.shard(i, ["image"]).to_pylist())
        assert held <= 1_000_000


def test_the_data_set_streams_and_its_preview_holds_images(built):
    triplets, _ = built
    stream = load_dataset(triplets.path, streaming=True)
    row = next(iter(stream["train"]))
    assert row["hns"][0] == row["q_img"]
    assert next(iter(stream["validation"]))["q_text"]
    images = load_dataset(triplets.path, "images", split="train", streaming=True)
    assert next(iter(images))["image"].size == (140, 140)
    shown = next(iter(load_dataset(triplets.path, "preview", split="train", streaming=True)))
    assert shown["negative_image"].size == (140, 140)


def test_parts_are_cut_by_weight():
    assert cut([3, 3, 3, 9, 1], 6) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5)]
    assert cut([0] * 5, 6) == [slice(0, 5)]
    assert cut([], 6) == []


def test_images_are_in_the_order_of_the_corpus_and_those_by_reference_are_cut_by_their_files(tmp_path, built):
    triplets, pairs = built
    from megapairs_hf.artifacts.artifact import open_artifact
    from megapairs_hf.dataset.published_images import PublishedImages

    folder = Path(pairs.path).parent
    embedded = open_artifact(folder / "corpus")
    ids = embedded.table(["image_id"])["image_id"].to_pylist()
    published = [
        name for i, _ in part_shards(triplets, "images") for name in triplets.shard(i)["image_id"].to_pylist()
    ]
    assert published == [name for name in ids if name in set(published)]
    corpus = make_corpus(
        CorpusConfig(
            source="image_folder",
            path=str(folder / "images"),
            caption_template="image {stem} here",
            images="by_reference",
        ),
        out=tmp_path / "corpus",
    )
    images = PublishedImages(corpus, set(ids[::2]))
    rows = [row for part in images.parts() for row in images.table(part).to_pylist()]
    assert [row["image_id"] for row in rows] == ids[::2]
    assert rows[0]["image"]["bytes"] == embedded.table(["image"])["image"][0].as_py()["bytes"]
