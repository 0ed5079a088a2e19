from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets
from datasets.fingerprint import Hasher

from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.schema import PAIRS
from megapairs_hf.dataset.split import Splits, _AddSplits, has_clusters, split_pairs


def ring(count=400, clusters=None):
    """Pairs of images in a ring, each related to the next three; negatives are the four after them."""
    clusters = list(range(count)) if clusters is None else clusters
    rows = []
    for query in range(count):
        for step in (1, 2, 3):
            target, negatives = (query + step) % count, [(query + step + n) % count for n in (3, 4, 5, 6)]
            rows.append(
                {
                    "query_id": f"i{query}",
                    "target_id": f"i{target}",
                    "query_row": query,
                    "target_row": target,
                    "relation": ["a"],
                    "scores": [{"relation": "a", "score": 0.9}],
                    "negative_ids": [f"i{n}" for n in negatives],
                    "negative_rows": negatives,
                    "query_cluster": clusters[query],
                    "target_cluster": clusters[target],
                    "negative_clusters": [clusters[n] for n in negatives],
                }
            )
    return Dataset(pa.Table.from_pylist(rows, schema=PAIRS))


def named(rows, columns=("query_id", "target_id", "negative_ids")):
    query, target, negatives = columns
    return {name for row in rows for name in (row[query], row[target], *row[negatives])}


def of_split(pairs, split):
    return [row for row in pairs if row["split"] == split]


def test_train_and_validation_share_no_image(capsys):
    pairs = ring()
    divided = split_pairs(pairs, validation=0.2, seed=1)
    assert divided.column_names == [*pairs.column_names, "split"]
    train, validation = of_split(divided, "train"), of_split(divided, "validation")
    assert len(train) + len(validation) == len(divided) < len(pairs)
    assert not named(train) & named(validation)
    assert len({row["query_id"] for row in validation} | {row["target_id"] for row in validation}) > 60
    # in their order, and what is left out is exactly what crosses or loses its hard negatives
    inside = {f"i{n}" for n in split_keys(pairs, 0.2, 1)}
    keys = [(row["query_id"], row["target_id"]) for row in pairs]
    left = [(row["query_id"], row["target_id"]) for row in divided]
    assert left == [key for key in keys if key in set(left)]
    crossing = {(q, t) for q, t in keys if (q in inside) != (t in inside)}
    assert crossing <= set(keys) - set(left)
    assert f"left out: {len(crossing):,} whose images are in both splits" in capsys.readouterr().err
    for row in divided:
        assert [f"i{n}" for n in row["negative_rows"]] == row["negative_ids"]
        assert row["negative_clusters"] == row["negative_rows"]
    # a training pair loses no hard negative of its own split
    before = {(row["query_id"], row["target_id"]): row["negative_ids"] for row in pairs}
    validation_rows = set(split_keys(pairs, 0.2, 1))
    for row in train:
        kept = [n for n in before[row["query_id"], row["target_id"]] if int(n[1:]) not in validation_rows]
        assert row["negative_ids"] == kept


def split_keys(pairs, share, seed):
    return Splits.grow(pairs.with_format("arrow")[:], share, seed).validation.to_pylist()


def test_near_duplicates_are_in_one_split():
    # every image and the one opposite in the ring are one cluster
    clusters = [n % 200 for n in range(400)]
    columns = ("query_cluster", "target_cluster", "negative_clusters")
    divided = split_pairs(ring(clusters=clusters), validation=0.2)
    train, validation = of_split(divided, "train"), of_split(divided, "validation")
    assert validation and not named(train, columns) & named(validation, columns)
    # by id alone the two would be divided
    plain = split_pairs(ring(clusters=clusters).remove_columns(list(columns)), validation=0.2)
    ids = [{int(name[1:]) % 200 for name in named(of_split(plain, split))} for split in ("train", "validation")]
    assert ids[0] & ids[1]


@pytest.mark.parametrize("change", ["null", "minus one", "no list"])
def test_clusters_that_are_not_known_are_not_taken_for_one(change):
    table = ring(60).with_format("arrow")[:]
    rows = table.to_pylist()
    for row in rows:
        row.update(
            {
                "null": {"query_cluster": None},
                "minus one": {"query_cluster": -1, "target_cluster": -1, "negative_clusters": []},
                "no list": {"negative_clusters": []},
            }[change]
        )
    unknown = pa.Table.from_pylist(rows, schema=PAIRS)
    assert has_clusters(table) and not has_clusters(unknown)
    divided = split_pairs(Dataset(unknown), validation=0.2)
    assert not named(of_split(divided, "train")) & named(of_split(divided, "validation"))


def test_own_pairs_with_ids_alone_in_any_order():
    own = Dataset.from_dict({name: ring()[name] for name in ("query_id", "target_id")})
    divided = split_pairs(own, validation=0.1, seed=3)
    shuffled = split_pairs(own.shuffle(seed=5), validation=0.1, seed=3)
    assert set(divided.column_names) == {"query_id", "target_id", "split"}
    rows = lambda pairs: {(row["query_id"], row["target_id"]): row["split"] for row in pairs}  # noqa: E731
    assert rows(divided) == rows(shuffled)
    assert rows(divided) != rows(split_pairs(own, validation=0.1, seed=4))


def test_lists_of_fixed_length_become_shorter():
    features = Features(
        {"query_id": Value("string"), "target_id": Value("string"), "negative_ids": List(Value("string"), length=4)}
    )
    pairs = Dataset.from_dict({name: ring()[name] for name in features}, features=features)
    divided = split_pairs(pairs, validation=0.3)
    assert {len(row["negative_ids"]) for row in divided} > {4}


def test_a_row_with_an_error_keeps_its_row_and_decides_nothing():
    pairs = ring(120)
    errors = ["blank: nothing there" if n % 7 == 0 else "" for n in range(len(pairs))]
    bad = pairs.add_column("error", errors)
    good = pairs.select([n for n, error in enumerate(errors) if not error])
    divided = split_pairs(bad, validation=0.2)
    assert [row["query_id"] for row in divided if row["error"]] == [
        row["query_id"] for row, error in zip(pairs, errors, strict=True) if error
    ]
    assert {row["split"] for row in divided if row["error"]} == {""}
    assert all(len(row["negative_ids"]) == 4 for row in divided if row["error"])
    alone = split_pairs(good, validation=0.2)
    assert [{**row, "error": ""} for row in alone] == [row for row in divided if not row["error"]]


def test_the_second_call_is_a_cache_hit_and_another_seed_is_not(tmp_path):
    ring().save_to_disk(tmp_path / "pairs")
    pairs = Dataset.load_from_disk(tmp_path / "pairs")
    first, again, other = (split_pairs(pairs, 0.1, seed) for seed in (0, 0, 1))
    assert first._fingerprint == again._fingerprint != other._fingerprint
    assert first.cache_files == again.cache_files != other.cache_files


def test_a_data_set_of_several_parts_and_indices():
    pairs = ring()
    parts = concatenate_datasets([pairs.select(range(500, 1200)), pairs.select(range(500))])
    back = parts.select([*range(700, 1200), *range(700)])
    assert list(split_pairs(back, 0.1)) == list(split_pairs(pairs, 0.1))


def test_where_validation_would_hold_no_pair_all_are_for_training(capsys):
    rows = {"query_id": ["hub"] * 30, "target_id": [f"t{n}" for n in range(30)]}
    divided = split_pairs(Dataset.from_dict(rows), validation=0.04)
    assert set(divided["split"]) == {"train"} and len(divided) == 30
    assert "lies among the 1 images that `validation` 0.04 asks for" in capsys.readouterr().err
    assert set(split_pairs(Dataset.from_dict(rows), validation=0.0)["split"]) == {"train"}


def far_negatives(count=400):
    """A ring whose hard negatives lie on the other side, so that a small split has hardly any."""
    rows = ring(count).remove_columns(["negative_rows", "query_cluster", "target_cluster", "negative_clusters"])
    far = [[f"i{(n // 3 + count // 2) % count}"] if n % 5 else [] for n in range(len(rows))]
    return rows.remove_columns("negative_ids").add_column("negative_ids", far)


def test_pairs_that_lose_all_hard_negatives_are_left_out_and_counted(capsys):
    pairs = far_negatives()
    divided = split_pairs(pairs, validation=0.2, seed=1)
    left = {(row["query_id"], row["target_id"]): row for row in divided}
    before = {(row["query_id"], row["target_id"]): row["negative_ids"] for row in pairs}
    # who had none before stays
    assert all(bool(row["negative_ids"]) == bool(before[key]) for key, row in left.items())
    inside = set(Splits.grow(pairs.with_format("arrow")[:], 0.2, 1).validation.to_pylist())
    lost = {
        k
        for k, n in before.items()
        if len({i in inside for i in k}) == 1 and n and (n[0] in inside) != (k[0] in inside)
    }
    crossing = {key for key in before if len({name in inside for name in key}) == 2}
    assert lost and set(before) - set(left) == lost | crossing
    told = capsys.readouterr().err
    assert f"left out: {len(crossing):,} whose images are in both splits" in told
    assert f", {len(lost):,} whose hard negatives are all in the other split" in told


def test_a_validation_split_that_keeps_no_hard_negative_is_none(capsys):
    pairs = far_negatives().filter(lambda row: row["negative_ids"])
    divided = split_pairs(pairs, validation=0.03)
    assert set(divided["split"]) == {"train"} and len(divided) == len(pairs)
    told = capsys.readouterr().err
    assert "no pair with its hard negatives lies among the 12 images" in told and "make `validation` larger" in told


@pytest.mark.parametrize("kind", ["numpy", "arrow", "pandas"])
def test_a_format_decides_nothing(kind):
    assert split_pairs(ring(40).with_format(kind), 0.2).to_list() == split_pairs(ring(40), 0.2).to_list()


def test_what_cannot_be_divided_says_why():
    with pytest.raises(ConfigError, match="pairs need the column 'query_id'; columns: q_img, t_img"):
        split_pairs(Dataset.from_dict({"q_img": ["a"], "t_img": ["b"]}))
    with pytest.raises(ConfigError, match="split_pairs looks at all rows, so it cannot take a stream"):
        split_pairs(ring(10).to_iterable_dataset())
    with pytest.raises(ConfigError, match="split_pairs takes one split of a data set; take one of 'train'"):
        split_pairs(DatasetDict({"train": ring(10)}))
    with pytest.raises(ConfigError, match=r"`validation` is 1\.0, but must be a number, at least 0 and below 1"):
        split_pairs(ring(10), validation=1.0)
    with pytest.raises(ConfigError, match=r"`validation` is '0\.1', but must be a number"):
        split_pairs(ring(10), validation="0.1")
    with pytest.raises(ConfigError, match=r"`validation` 0\.97 leaves no pair for training"):
        split_pairs(ring(20), validation=0.97)


def test_a_large_graph_is_divided_in_seconds():
    rng = np.random.default_rng(0)
    queries = rng.integers(0, 200_000, 600_000)
    targets = (queries + rng.integers(1, 50, 600_000)) % 200_000
    table = pa.table({"query_id": queries.astype(str), "target_id": targets.astype(str)})
    splits = Splits.grow(table, 0.05, 0)
    assert len(splits.validation) == round(0.05 * len(np.union1d(queries, targets)))
    names, counts = np.unique(splits.of_pairs(table), return_counts=True)
    assert names.tolist() == ["", "train", "validation"] and counts[2] > 10_000


def test_another_version_of_the_division_is_another_fingerprint():
    first = _AddSplits(Splits.grow(ring(40).with_format("arrow")[:], 0.2, 0))
    assert Hasher.hash(first) == Hasher.hash(replace(first))
    assert Hasher.hash(first) != Hasher.hash(replace(first, version=first.version + 1))
