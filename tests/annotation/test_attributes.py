"""`edits: attributes`: instructions from metadata columns, each claim recomputed from the metadata."""

import random
import re
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from megapairs_hf import Describe, Instruct, add_columns
from megapairs_hf.annotation import DescribeConfig, InstructConfig, describe_pairs, instruct_pairs
from megapairs_hf.annotation.attribute_columns import MAX_VALUES
from megapairs_hf.annotation.rule_based.attributes import attribute_edits, in_words, labels_of, write_from_attributes
from megapairs_hf.annotation.rule_based.suggest import attribute_advice
from megapairs_hf.core.config import build_config
from megapairs_hf.core.errors import ArtifactError, ConfigError
from megapairs_hf.core.schema import IMAGE_TYPE, PAIRS
from tests.small import ROOT

from .conftest import image_row, make_artifact, make_image, pair_rows

SHARED = ROOT.parent / "shared" / "data"
VALUES = {
    "mainColor": ["Red", "Navy Blue", "Green", None],
    "season": ["Summer", "Fall", ""],
    "year": [2011, 2012],
    "articleType": ["Shirt", "Shirt", "Jeans"],
    "kids": [True, False],
}
TYPES = dict(zip(VALUES, [pa.string(), pa.string(), pa.int64(), pa.string(), pa.bool_()], strict=True))
LABELS = {"mainColor": "color", "season": "season", "year": "year", "articleType": "noun", "kids": "made for kids"}
ATTRIBUTES = {"engine": "rule_based", "edits": "attributes", "attributes": (LABELS,)}


def clothes(count=60, seed=0):
    """Rows of metadata."""
    rng = random.Random(seed)
    return [{name: rng.choice(values) for name, values in VALUES.items()} for _ in range(count)]


def corpus_of(path, metas):
    schema = pa.schema(
        {
            "image_id": pa.string(),
            "image": IMAGE_TYPE,
            "caption": pa.string(),
            "captions": pa.list_(pa.string()),
            "meta": pa.struct(list(TYPES.items())),
        }
    )
    return make_artifact(path, "corpus", schema, [[image_row(f"i{n}", "", **meta) for n, meta in enumerate(metas)]])


def words(value):
    """A value as a reader would look for it; a second writing of what the module does."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def check(text, query, target, labels):
    """The instruction names each field that differs with its new value, and no other one."""
    low = text.lower()
    differing = {
        n for n in labels if query[n] not in (None, "") and target[n] not in (None, "") and query[n] != target[n]
    }
    assert differing, text
    for name, plain in labels.items():
        label = "kind" if plain == "noun" else plain
        old, new = (re.escape(words(row[name]).lower()) for row in (query, target))
        forms = [rf"{label} {new} (?:instead of|rather than) {old}", rf"{label} {new}, not {old}"]
        forms += [rf"{label} from {old} to {new}", rf"{label} should be {new} instead of {old}"]
        forms += [rf"{label} is {new}, not {old}"]
        if label == "color":
            forms += [rf" in {new}(?: instead of {old}|, not {old})?$"]
        claims = [form for form in forms if re.search(form, low)]
        assert bool(claims) == (name in differing), (text, name)


@pytest.mark.parametrize("seed", range(20))
def test_each_claim_is_what_the_metadata_says(seed):
    rows = clothes(40, seed)
    written = 0
    for query, target in pairwise(rows):
        edits = attribute_edits(query, target, LABELS)
        for text in write_from_attributes(edits, "", count=9, seed=seed) if edits else ():
            check(text, query, target, LABELS)
            written += 1
    assert written > 100


def test_the_same_shirt_in_blue():
    edits = attribute_edits({"c": "Red"}, {"c": "Blue"}, {"c": "color"})
    texts = write_from_attributes(edits, " shirt", count=9, seed=0)
    assert {"the same shirt in blue instead of red", "the same shirt, but in blue"} <= set(texts)
    assert len(texts) == len(set(texts)) == 9


def test_labels():
    assert labels_of(("mainColor", {"n_dots": "dots"})) == {"mainColor": "main color", "n_dots": "dots"}
    assert [in_words(name) for name in ("skin_tone", "articleType", "hexcode", "URL")] == [
        "skin tone",
        "article type",
        "hexcode",
        "url",
    ]
    for written in ({"a": "b"}, ["x", {"a": "b"}], "x"):
        config = build_config(InstructConfig, {"engine": "rule_based", "edits": "attributes", "attributes": written})
        assert labels_of(config.attributes)
    for bad in ({"edits": "attributes"}, {"edits": "attributes", "engine": "rule_based"}, {"edits": "x"}):
        with pytest.raises(ConfigError, match=r"edits|attributes"):
            DescribeConfig(**bad)


def test_set_once_in_the_stage_before(tmp_path):
    metas = clothes()
    corpus = corpus_of(tmp_path / "corpus", metas)
    keys = [(f"i{n}", f"i{n + 1}") for n in range(len(metas) - 1)]
    pairs = make_artifact(tmp_path / "pairs", "pairs", PAIRS, [pair_rows(*keys)])
    described = describe_pairs(pairs, corpus, config=DescribeConfig(**ATTRIBUTES), out=tmp_path / "d")
    made = instruct_pairs(described, corpus, config=InstructConfig(engine="rule_based"), out=tmp_path / "i")
    assert made.manifest.config["edits"] == "attributes"
    by_id = {f"i{n}": meta for n, meta in enumerate(metas)}
    assert made.rows + described.manifest.rejected.get("same_attributes", 0) == len(keys)
    for row in made.table().to_pylist():
        for text in row["instructions"]:
            check(text, by_id[row["query_id"]], by_id[row["target_id"]], LABELS)
    with pytest.raises(ArtifactError, match="same_attributes"):
        same = make_artifact(tmp_path / "same", "pairs", PAIRS, [pair_rows(("i0", "i0"))])
        describe_pairs(same, corpus, config=DescribeConfig(**ATTRIBUTES), out=tmp_path / "e")


def test_columns_of_a_dataset_and_rows_in_memory():
    features = Features(
        {"image_id": Value("string"), "image": Value("binary"), "color": ClassLabel(names=["red", "blue"])}
    )
    rows = [{"image_id": f"i{n}", "image": make_image(), "color": n % 2} for n in range(4)]
    images = Dataset.from_list(rows, features=features)
    pairs = Dataset.from_dict({"query_id": ["i0", "i1", "i0"], "target_id": ["i1", "i2", "i2"]})
    settings = {"engine": "rule_based", "edits": "attributes", "attributes": ("color",)}
    described = add_columns(pairs, Describe(images, **settings))
    assert described["error"][2].startswith("same_attributes")
    texts = add_columns(described, Instruct(images, **settings))["instructions"][:2]
    assert all("blue" in text and "red" in text for text in texts[0] if "but in" not in text)
    assert len(texts[0]) == len(texts[1]) == 5
    one = Describe(**settings).one({"image": make_image(), "color": "red"}, {"image": make_image(), "color": "blue"})
    assert one["error"] == "" and "color: blue" in one["description"]


def test_it_is_suggested_where_columns_are_shared(tmp_path, capsys):
    metas = [{**meta, "articleType": f"type {n}"} for n, meta in enumerate(clothes(MAX_VALUES * 2 + 1))]
    corpus = corpus_of(tmp_path / "corpus", metas)
    advice = attribute_advice(corpus)
    assert "mainColor (3 values), season (2 values), year (2 values), kids (2 values);" in advice
    assert "--edits attributes --attributes mainColor season year kids" in advice
    assert attribute_advice(corpus_of(tmp_path / "few", clothes(10))) == ""


def of_shared(name, columns):
    """Rows of metadata of a real data set."""
    files = sorted((SHARED / name).glob("*.parquet"))
    if not files:
        pytest.skip(f"{SHARED / name} is not there")
    return [row for file in files for row in pq.read_table(file, columns=columns).to_pylist()]


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("clothing", {"label": "noun", "kids": "made for kids"}),
        ("emoji", {"style": "style", "skintone": "skin tone", "gender": "gender"}),
    ],
)
def test_real_metadata_is_told_exactly(name, labels):
    rows = of_shared(name, list(labels))
    rng = random.Random(0)
    written = 0
    for _ in range(5000):
        query, target = rng.choice(rows), rng.choice(rows)
        edits = attribute_edits(query, target, labels)
        if not edits:
            continue
        texts = write_from_attributes(edits, "", count=5, seed=written)
        assert len(set(texts)) == 5
        for text in texts:
            pair = [{k: {"True": True, "False": False}.get(v, v) for k, v in row.items()} for row in (query, target)]
            check(text, *pair, labels)
            written += 1
    assert written > 5000
