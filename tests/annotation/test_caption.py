"""Captions: by map and by the stage, and in the place of a corpus's own in what follows."""

import datasets
import pytest
from datasets import Dataset, Image

from megapairs_hf.annotation import (
    Caption,
    CaptionConfig,
    DescribeConfig,
    InstructConfig,
    caption_images,
    describe_pairs,
)
from megapairs_hf.annotation.stage import instruct_pairs
from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.artifacts.captioned import with_captions
from megapairs_hf.artifacts.sources import as_artifact
from megapairs_hf.core.columns import add_columns
from megapairs_hf.core.errors import ArtifactError, ConfigError
from megapairs_hf.core.schema import CAPTIONS_TABLE
from tests.small import megapairs

from .conftest import make_image
from .double import describe
from .test_functions import QUICK
from .test_stage import RULES, at, rejected


def caption(body):
    """Names the color of the image that arrived."""
    return "Caption: **A flat image of color " + describe(body).split("64x32 ")[1].split(";")[0] + "**"


def test_the_stage_and_map_caption_alike(serve, bare, tmp_path):
    server = serve(answer=caption)
    made = caption_images(bare, config=CaptionConfig(endpoint=at(server)), out=tmp_path / "c")
    assert made.table().schema.remove_metadata().equals(CAPTIONS_TABLE)
    assert made.table()["image_id"].to_pylist() == ["i0", "i1", "i2", "i3", "i5"]
    assert made.table()["caption"].to_pylist()[1].startswith("A flat image of color (40, ")
    assert list(rejected(made)) == ["i4"]
    assert made.manifest.stats["answers"] == 5
    # two files of one image are one request
    assert len(server.bodies) == 4
    assert {body["max_tokens"] for body in server.bodies} == {120}
    ds = Dataset.from_list(bare.table().to_pylist()).cast_column("image", Image())
    function = Caption(urls=[server.url], journal=tmp_path / "j", **QUICK)
    for batch_size in (1, 4, 100):
        added = add_columns(ds, function, batch_size=batch_size)
        good = [row for row in added.select_columns(CAPTIONS_TABLE.names).to_list() if row["caption"]]
        assert good == made.table().to_pylist()
        assert [bool(error) for error in added["error"]] == [False] * 4 + [True, False]
        assert added["error"][4].startswith("unreadable_image: ")
    assert len(server.bodies) == 8
    nameless = ds.remove_columns(["image_id"]).map(function, batched=True)
    assert nameless["caption"][:] == added["caption"][:]
    assert function.one(make_image((40, 0, 0)))["caption"] == added["caption"][1]
    assert len(server.bodies) == 8


def test_captions_take_the_place_of_the_corpus_own(serve, bare, pairs, tmp_path):
    captions = caption_images(bare, config=CaptionConfig(endpoint=at(serve(answer=caption))), out=tmp_path / "c")
    corpus = with_captions(bare, captions)
    texts = dict(zip(captions.table()["image_id"].to_pylist(), captions.table()["caption"].to_pylist(), strict=True))
    assert corpus.fingerprint != bare.fingerprint
    for table in (corpus.table(["caption", "captions"]), corpus.table()):
        assert table["caption"].to_pylist() == [texts.get(f"i{n}", "") for n in range(6)]
        assert table["captions"].to_pylist() == [[texts[f"i{n}"]] if f"i{n}" in texts else [] for n in range(6)]
    rows = corpus.dataset()
    assert rows["caption"][:] == corpus.table(["caption"])["caption"].to_pylist()
    assert rows[1]["image"]["bytes"] == make_image((40, 0, 0))
    batches = [batch for i in (0, 1) for batch in corpus.iter_batches(i, ["caption", "image_id"], 3)]
    assert [name for batch in batches for name in batch["image_id"].to_pylist()] == [f"i{n}" for n in range(6)]
    # own captions, in files that know no shards of the corpus
    rows = [{"image_id": name, "caption": text} for name, text in reversed(texts.items())]
    own = as_artifact(Dataset.from_list(rows), "captions")
    assert with_captions(bare, own).table(["caption"]).equals(corpus.table(["caption"]))
    config = DescribeConfig(**RULES)
    described = describe_pairs(pairs, corpus, config=config, out=tmp_path / "d")
    first = described.table()["description"].to_pylist()[0]
    assert first.startswith("The query shows a flat image of color (0, 0, 0)")
    rows = [{"query_id": f"i{n}", "target_id": f"i{n + 1}"} for n in range(4)]
    with pytest.raises(ArtifactError, match="the corpus has none; make some with `megapairs caption`"):
        describe_pairs(Dataset.from_list(rows), bare, config=config, out=tmp_path / "e")
    assert instruct_pairs(described, corpus, config=InstructConfig(**RULES), out=tmp_path / "i").rows == 3


def test_the_command_and_what_follows_it(serve, bare, pairs, tmp_path):
    server = serve(answer=caption)
    words = ["--work", tmp_path, "--corpus", bare.path]
    done = megapairs("caption", *words, "--endpoint.urls", server.url, "--endpoint.concurrency", "2")
    assert done.returncode == 0, done.stderr
    assert "captions: 5 rows; left out: 1 unreadable_image" in done.stderr
    done = megapairs("describe", *words, "--engine", "rule_based")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}/captions takes the place of the corpus's captions" in done.stderr
    assert open_artifact(tmp_path / "descriptions").rows == 3
    assert len(datasets.load_dataset(str(tmp_path / "captions"), split="train")) == 5


def test_settings(bare):
    for bad in ({"engine": "rule_based"}, {"max_words": 0}, {"max_image_side": 3}, {"temperature": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            CaptionConfig(**bad)


def test_equal_images_are_asked_about_once_however_far_apart(serve):
    server = serve(answer=caption)
    same = Dataset.from_dict({"image": [make_image()] * 9})
    made = same.map(Caption(urls=[server.url], **{**QUICK, "concurrency": 1}), batched=True)
    assert len(set(made["caption"])) == 1
    assert len(server.bodies) == 1
