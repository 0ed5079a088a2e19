"""Row functions by themselves: what `map` does with them, erroneous rows, pickles, fingerprints."""

import pickle

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, IterableDataset, List, Value
from datasets.fingerprint import Hasher

from megapairs_hf.core.columns import add_columns, drop_errors
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.row_function import RowFunction, format_error


class Lengths(RowFunction):
    """The length of a text, as a number and as a vector; an empty text is an error."""

    def __init__(self, dimension=2):
        self.dimension = dimension
        self._calls = 0

    def reset(self):
        self._calls = 0

    @property
    def features(self):
        return Features(
            {
                "length": Value("int32"),
                "vector": List(Value("float16"), length=self.dimension),
                "words": List(Value("string")),
                "error": Value("string"),
            }
        )

    def compute(self, rows, rank):
        self._calls += 1
        texts = rows.values("text")
        return {
            "length": np.array([len(text) for text in texts], np.int32),
            "vector": np.array([[len(text)] * self.dimension for text in texts], np.float16),
            "words": [text.split() for text in texts],
            "error": ["" if text else format_error("empty", "no text") for text in texts],
        }


TEXTS = ["a cat", "", "two dogs run", "bird"]
LENGTHS = [5, 0, 12, 4]


@pytest.fixture
def data():
    return Dataset.from_dict({"text": TEXTS, "kept": [b"1", b"2", b"3", b"4"]})


def test_what_is_no_row_function_or_no_single_split_is_one_sentence(data):
    with pytest.raises(ConfigError, match=r"such as CheckImages\(\); write Lengths\(…\); for others there is `map`"):
        add_columns(data, Lengths)
    with pytest.raises(ConfigError, match="takes a row function"):
        add_columns(data, "photos")
    with pytest.raises(ConfigError, match="Lengths: `one` needs a row; name its columns"):
        Lengths().one()
    with pytest.raises(ConfigError, match=r"several splits; take one of them \(train\)"):
        add_columns(DatasetDict({"train": data}), Lengths())


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_the_same_rows_by_add_columns_by_map_and_by_streaming(data, batch_size):
    added = add_columns(data, Lengths(), batch_size=batch_size)
    assert added["length"][:] == LENGTHS
    assert added["error"][:] == ["", "empty: no text", "", ""]
    assert added["kept"][:] == data["kept"][:]
    assert added.features["vector"] == List(Value("float16"), length=2)
    mapped = data.map(Lengths(), batched=True, batch_size=batch_size)
    assert mapped.to_dict() == added.select_columns(mapped.column_names).to_dict()
    streamed = list(add_columns(data.to_iterable_dataset(), Lengths(), batch_size=batch_size))
    assert [row["length"] for row in streamed] == LENGTHS
    assert [row["error"] for row in streamed] == added["error"][:]


def test_a_row_with_an_error_is_passed_over_and_keeps_it(data):
    bad = data.add_column("error", ["", "", "broken: file", "other"])
    added = add_columns(bad, Lengths())
    assert added["length"][:] == [5, 0, 0, 0]
    assert added["error"][:] == ["", "empty: no text", "broken: file", "other"]
    assert added["words"][:] == [["a", "cat"], [], [], []]
    assert added["vector"][2] == [0, 0]
    every = add_columns(data.remove_columns(["kept"]).add_column("error", ["x"] * 4), Lengths())
    assert every["error"][:] == ["x"] * 4
    assert every["vector"][:] == [[0, 0]] * 4


def test_errors_are_dropped_and_counted(data, capsys):
    kept = drop_errors(add_columns(data.add_column("error", ["", "", "broken: a", "broken: b"]), Lengths()))
    assert kept["text"][:] == ["a cat"]
    assert "3 of 4 rows left out: 2 broken, 1 empty" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no column 'error'"):
        drop_errors(data)
    streamed = drop_errors(add_columns(data.to_iterable_dataset(), Lengths()))
    assert isinstance(streamed, IterableDataset)
    assert [row["text"] for row in streamed] == [text for text in TEXTS if text]


def test_a_plain_map_has_the_right_types_whatever_its_first_batch_holds(data):
    bad = data.add_column("error", ["bad: x", "bad: x", "", ""])
    mapped = bad.map(Lengths(), batched=True, batch_size=1)
    assert mapped["words"][:] == [[], [], ["two", "dogs", "run"], ["bird"]]
    assert mapped["length"][:] == [0, 0, 12, 4]
    added = add_columns(bad, Lengths())
    assert {name: mapped.features[name] for name in ("length", "words", "error")} == {
        name: added.features[name] for name in ("length", "words", "error")
    }
    streamed = list(add_columns(bad.to_iterable_dataset(), Lengths(), batch_size=1))
    assert [row["words"] for row in streamed] == mapped["words"][:]


def test_rank_comes_also_without_indices(data):
    class Ranks(Lengths):
        def compute(self, rows, rank):
            self.seen = rank
            return super().compute(rows, rank)

    function = Ranks()
    function({"text": ["a"]}, 1)
    assert function.seen == 1
    function({"text": ["a"]}, [0], 2)
    assert function.seen == 2


def test_the_fingerprint_is_that_of_the_settings_and_the_version(monkeypatch):
    function = Lengths()
    before = Hasher.hash(function)
    function({"text": ["a"]})
    assert Hasher.hash(function) == before == Hasher.hash(Lengths())
    assert Hasher.hash(Lengths(3)) != before
    monkeypatch.setattr(Lengths, "VERSION", 2)
    assert Hasher.hash(Lengths()) != before


def test_a_pickle_holds_the_settings_alone():
    function = Lengths(3)
    function({"text": ["a"]})
    copy = pickle.loads(pickle.dumps(function))
    assert vars(copy) == {"dimension": 3, "_calls": 0}
    assert copy({"text": ["ab"]})["length"].tolist() == [2]


def test_one_row_and_a_missing_column():
    assert Lengths().one(text="ab")["length"] == 2
    with pytest.raises(ConfigError, match="there is no column 'text'; columns: caption"):
        Lengths()({"caption": ["a"]})


def test_a_map_without_batches_is_refused(data):
    for dataset in (data, data.to_iterable_dataset()):
        with pytest.raises(ConfigError, match="Lengths takes batches; give `map` the argument batched=True"):
            list(dataset.map(Lengths()))


def test_numpy_batches_as_ray_gives_them():
    added = Lengths()({"text": np.array(TEXTS, object), "error": np.array(["", "", "", "bad"], object)})
    assert list(added["length"]) == [5, 0, 12, 0]
    assert added["error"] == ["", "empty: no text", "", "bad"]


def test_no_rows_get_the_columns_too(data):
    empty = add_columns(data.select([]), Lengths())
    assert empty.num_rows == 0
    assert empty.features == Features(
        {"kept": data.features["kept"], "text": data.features["text"], **Lengths().features}
    )
    assert drop_errors(empty).column_names == empty.column_names


def test_a_format_is_kept_and_does_not_reach_the_function(data):
    rows = data.add_column("n", [1, 2, 3, 4])
    for kind in ("numpy", "torch", "arrow", "pandas"):
        added = add_columns(rows.with_format(kind), Lengths())
        assert added.format["type"] == kind
        assert added.with_format(None).to_list() == add_columns(rows, Lengths()).to_list()


def test_several_splits_are_refused(data):
    splits = DatasetDict({"train": data, "test": data})
    for call in (lambda: add_columns(splits, Lengths()), lambda: drop_errors(splits)):
        with pytest.raises(ConfigError, match=r"several splits; take one of them \(train, test\)"):
            call()
