import random

from megapairs_hf.artifacts.lookup import known_ids, locate, rows_by_id, sample_rows
from megapairs_hf.artifacts.shards import split_of
from tests.small import small_corpus


def test_rows_are_found_by_id_in_the_artifacts_order(tmp_path):
    corpus = small_corpus(tmp_path / "corpus", count=70)
    table = corpus.table(["image_id", "caption"]).to_pylist()
    ids = [table[i]["image_id"] for i in (66, 3, 40)]
    assert {shard: rows.tolist() for shard, rows in locate(corpus, [*ids, "gone"]).items()} == {
        0: [3],
        1: [8],
        2: [2],
    }
    assert list(rows_by_id(corpus, [*ids, "gone"], ["image_id", "caption"])) == [table[i] for i in (3, 40, 66)]
    assert list(rows_by_id(corpus, ids, ["image_id", "caption"], [1])) == [table[40]]
    assert known_ids(corpus, [*ids, "gone"]) == set(ids)


def test_a_sample_is_that_of_the_row_numbers(tmp_path):
    corpus = small_corpus(tmp_path / "corpus", count=70)
    table = corpus.table().to_pylist()
    rows = sample_rows(corpus, 5, random.Random(7))
    assert [row for _, row in rows] == [table[i] for i in sorted(random.Random(7).sample(range(70), 5))]
    assert {file for file, _ in rows} <= {shard["file"] for shard in corpus.manifest.shards}
    assert sample_rows(corpus, 5, random.Random(7), "triplets/") == []
    assert len(sample_rows(corpus, 500, random.Random(7))) == 70


def test_the_split_of_a_file():
    assert split_of("triplets/train-00000-of-00002.parquet") == "train"
    assert split_of("validation-00001-of-00002.parquet") == "validation"
    assert split_of("triplets/README.md") is None
