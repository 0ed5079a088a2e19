"""`JoinTriplets` by itself, and as what the build stage applies."""

import json
import math
import pickle

import multiprocess
import pytest
from datasets import Dataset, load_dataset
from datasets.fingerprint import Hasher

from megapairs_hf.annotation import DescribeConfig, InstructConfig, describe_pairs, instruct_pairs
from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.core.columns import add_columns, drop_errors
from megapairs_hf.core.errors import ArtifactError, ConfigError
from megapairs_hf.core.schema import PAIRS, TRIPLETS
from megapairs_hf.dataset import BuildConfig, JoinTriplets, build_triplets, split_pairs
from tests.annotation.conftest import make_artifact
from tests.making import make_work


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_work(tmp_path_factory.mktemp("join") / "work")


@pytest.fixture(scope="module")
def annotated(work):
    """The pairs that got instructions, with both artifacts' columns."""
    texts = {(r["query_id"], r["target_id"]): r for r in open_artifact(work / "instructions").table().to_pylist()}
    pairs = open_artifact(work / "pairs").table().to_pylist()
    rows = [{**p, **texts[p["query_id"], p["target_id"]]} for p in pairs if (p["query_id"], p["target_id"]) in texts]
    return Dataset.from_list([{name: row[name] for name in COLUMNS} for row in rows])


KEY = ("query_id", "target_id", "instructions")
COLUMNS = ["query_id", "target_id", "relation", "scores", "negative_ids", "instructions"]


def built(work, out, **settings):
    inputs = [open_artifact(work / name) for name in ("instructions", "pairs", "corpus")]
    return build_triplets(*inputs, config=BuildConfig(validation=0, **settings), out=out)


def exact(rows):
    """Rows as text, in which NaN equals NaN."""
    return [json.dumps(row, sort_keys=True) for row in rows]


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_the_function_over_the_data_set_gives_the_stages_rows(work, annotated, tmp_path, batch_size):
    stage = load_dataset(built(work, tmp_path / "t").path, split="train")
    joined = add_columns(annotated, JoinTriplets(), batch_size=batch_size).select_columns(TRIPLETS.names)
    assert joined.features == stage.features
    assert exact(joined) == exact(stage)
    mapped = annotated.map(JoinTriplets(), batched=True, batch_size=batch_size)
    assert exact(mapped.select_columns(TRIPLETS.names)) == exact(stage)


def test_the_stage_applies_the_functions_inner_part(work, tmp_path, monkeypatch):
    join = JoinTriplets.join
    monkeypatch.setattr(JoinTriplets, "join", lambda self, row: join(self, row) | {"language": "xx"})
    made = built(work, tmp_path / "t")
    assert made.shard(0)["language"].unique().to_pylist() == ["xx"]


def test_streaming_workers_and_pickles_give_the_same_rows(annotated):
    expected = exact(add_columns(annotated, JoinTriplets()))
    assert exact(add_columns(annotated.to_iterable_dataset(), JoinTriplets(), batch_size=5)) == expected
    assert exact(add_columns(annotated, pickle.loads(pickle.dumps(JoinTriplets())))) == expected
    before = multiprocess.get_start_method()
    multiprocess.set_start_method("spawn", force=True)
    try:
        assert exact(add_columns(annotated, JoinTriplets(), num_proc=2)) == expected
    finally:
        multiprocess.set_start_method(before, force=True)


def test_a_second_map_is_a_cache_hit_and_other_settings_are_not(work, monkeypatch):
    pairs = load_dataset("parquet", data_files=str(work / "pairs" / "shard-*.parquet"), split="train")
    pairs = pairs.map(lambda row: {"instructions": ["x"]})
    first = pairs.map(JoinTriplets(), batched=True)
    with monkeypatch.context() as patch:
        patch.setattr(JoinTriplets, "join", lambda self, row: pytest.fail("computed again"))
        assert pairs.map(JoinTriplets(), batched=True)._fingerprint == first._fingerprint
    assert pairs.map(JoinTriplets(min_negatives=3), batched=True)._fingerprint != first._fingerprint
    before = Hasher.hash(JoinTriplets())
    monkeypatch.setattr(JoinTriplets, "VERSION", JoinTriplets.VERSION + 1)
    assert Hasher.hash(JoinTriplets()) != before


def test_a_row_with_an_error_is_passed_over_and_bad_rows_get_one(capsys):
    pairs = [
        {"query_id": "a", "target_id": "b", "negative_ids": ["c", "b", "c", "a"], "instructions": ["x"], "error": ""},
        {"query_id": "a", "target_id": "b", "negative_ids": ["c"], "instructions": ["x"], "error": "broken: file"},
        {"query_id": "a", "target_id": "b", "negative_ids": ["b"], "instructions": ["x"], "error": ""},
        {"query_id": "a", "target_id": "b", "negative_ids": ["c"], "instructions": [], "error": ""},
        {"query_id": "a", "target_id": "", "negative_ids": ["c"], "instructions": ["x"], "error": ""},
        {"query_id": "a", "target_id": "a", "negative_ids": ["c"], "instructions": ["x"], "error": ""},
        {"query_id": "a", "target_id": "b", "negative_ids": ["c"], "instructions": [" ", ""], "error": ""},
    ]
    joined = add_columns(Dataset.from_list(pairs), JoinTriplets())
    assert joined["error"][:] == [
        "",
        "broken: file",
        "too_few_negatives: 1, the query image counted",
        "no_instruction: the pair has none",
        "no_image_id: `query_id` or `target_id` is empty",
        "same_image: the pair's two images are one",
        "no_instruction: the pair has none",
    ]
    # neither the query image twice nor the target is a negative
    assert joined[0]["hns"] == ["a", "c"] and joined[1]["hns"] == []
    assert len(drop_errors(joined)) == 1
    assert "6 of 7 rows left out" in capsys.readouterr().err


def test_pass_rates_choose_the_instructions_and_stay_with_them():
    row = {"query_id": "a", "target_id": "b", "instructions": ["x", "y", "z"], "verified": [0.5, math.nan, 1.0]}
    function = JoinTriplets(min_pass_rate=0.75, language="de")
    joined = function.one(**row)
    assert joined["q_text"] == ["y", "z"] and joined["language"] == "de"
    assert math.isnan(joined["verified"][0]) and joined["verified"][1] == 1
    assert function.one(**row | {"verified": [0, 0, 0.5]})["error"] == "no_instruction: none passes at 0.75"
    assert function.one(**row | {"verified": [1.0]})["error"] == "other_verdicts: 1 pass rates of 3 instructions"
    assert JoinTriplets().one(**row)["q_text"] == ["x", "y", "z"]
    with pytest.raises(ConfigError, match=r"`min_pass_rate` is 0\.75, but the instructions have no verdicts"):
        function.one(query_id="a", target_id="b", instructions=["x"])


def test_settings_of_another_type_are_refused():
    with pytest.raises(ConfigError, match='`language` is 3, but must be a tag such as "en"'):
        JoinTriplets(language=3)
    with pytest.raises(ConfigError, match="`min_negatives` is 'two', but must be at least 1"):
        JoinTriplets(min_negatives="two")
    with pytest.raises(ConfigError, match=r"`min_pass_rate` is '0\.5', but must be a share from 0 to 1"):
        JoinTriplets(min_pass_rate="0.5")


def test_own_pairs_without_negatives_have_the_query_image(corpus, tmp_path, capsys):
    ids = corpus.table(["image_id"])["image_id"].to_pylist()[:3]
    row = {"relation": ["x"], "scores": [{"relation": "x", "score": 0.5}], "negative_ids": []}
    rows = [{**row, "query_id": ids[0], "target_id": name} for name in ids[1:]]
    pairs = make_artifact(tmp_path / "pairs", "pairs", PAIRS, [rows], {"corpus": corpus.fingerprint})
    described = describe_pairs(pairs, corpus, config=DescribeConfig(engine="rule_based"), out=tmp_path / "described")
    texts = instruct_pairs(described, corpus, config=InstructConfig(engine="rule_based"), out=tmp_path / "texts")
    made = build_triplets(texts, pairs, corpus, config=BuildConfig(validation=0), out=tmp_path / "t")
    assert made.shard(0)["hns"].to_pylist() == [[ids[0]]] * texts.rows
    assert "the query image is the only one of each triplet" in capsys.readouterr().err
    own = Dataset.from_list([{"query_id": "a", "target_id": "b", "instructions": "one text"}])
    joined = add_columns(own, JoinTriplets())[0]
    assert (joined["hns"], joined["q_text"], joined["relation"], joined["error"]) == (["a"], ["one text"], [], "")
    with pytest.raises(ConfigError, match="there is no column 'instructions'; columns: query_id, target_id"):
        JoinTriplets()({"query_id": ["a"], "target_id": ["b"]})


def test_rows_of_ones_own_are_built_like_artifacts_in_any_order(work, annotated, tmp_path):
    expected = load_dataset(built(work, tmp_path / "t").path, split="train")
    corpus = Dataset.from_list(open_artifact(work / "corpus").table(["image_id", "image", "caption"]).to_pylist())
    texts = annotated.select_columns(["query_id", "target_id", "instructions"]).shuffle(seed=1)
    pairs = annotated.remove_columns("instructions")
    made = build_triplets(texts, pairs, corpus, config=BuildConfig(validation=0), out=tmp_path / "own")
    assert exact(load_dataset(made.path, split="train")) == exact(expected)
    texts.to_json(tmp_path / "texts.jsonl")
    pairs.select_columns(["query_id", "target_id"]).to_csv(tmp_path / "pairs.csv", index=False)
    files = [tmp_path / "texts.jsonl", tmp_path / "pairs.csv", work / "corpus"]
    made = build_triplets(*files, config=BuildConfig(validation=0), out=tmp_path / "files")
    rows = load_dataset(made.path, split="train")
    assert rows["q_text"][:] == expected["q_text"][:] and rows["hns"][:] == [[name] for name in expected["q_img"]]
    with pytest.raises(ArtifactError, match="the instructions were made of other pairs"):
        build_triplets(texts, pairs.select([0]), corpus, config=BuildConfig(), out=tmp_path / "other")


def test_build_divides_like_split_pairs_and_takes_a_division_as_it_is(work, annotated, tmp_path):
    pairs, texts = annotated.remove_columns("instructions"), annotated.select_columns(list(KEY))
    divided = split_pairs(pairs, validation=0.4, seed=3)
    assert set(divided["split"]) == {"train", "validation"}
    rows, left = {}, {(row["query_id"], row["target_id"]) for row in divided}
    of_divided = texts.filter(lambda row: (row["query_id"], row["target_id"]) in left)
    for name, mine, table, config in (
        ("own", texts, pairs, BuildConfig(validation=0.4, seed=3, min_negatives=1)),
        ("given", of_divided, divided, BuildConfig(min_negatives=1)),
    ):
        made = build_triplets(mine, table, work / "corpus", config=config, out=tmp_path / name)
        rows[name] = {split: exact(part) for split, part in load_dataset(made.path).items()}
        assert sum(made.manifest.rejected.values()) == (len(pairs) - len(divided) if name == "own" else 0)
    assert rows["own"] == rows["given"] and set(rows["own"]) == {"train", "validation"}


def test_ids_that_are_numbers_become_text():
    pairs = Dataset.from_list(
        [{"query_id": n, "target_id": n + 1, "negative_ids": [n, n + 2], "instructions": ["x"]} for n in range(2)]
    )
    joined = add_columns(pairs, JoinTriplets())
    assert joined["error"][:] == ["", ""]
    assert joined.select_columns(["q_img", "t_img", "hns"]).to_list() == [
        {"q_img": "0", "t_img": "1", "hns": ["0", "2"]},
        {"q_img": "1", "t_img": "2", "hns": ["1", "3"]},
    ]
