"""Ten lines of YAML that stand for ten billion values: refused at once wherever a stranger's YAML is read."""

import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megapairs_hf.artifacts.as_dataset import check_card
from megapairs_hf.artifacts.sources import as_artifact
from megapairs_hf.cli import main
from megapairs_hf.core.config import parse_value, read_yaml
from megapairs_hf.core.errors import MegaPairsError
from megapairs_hf.corpus import CorpusConfig, make_corpus
from megapairs_hf.dataset.load import load_triplets
from megapairs_hf.hub.config import PushConfig
from megapairs_hf.hub.push_results import _card
from megapairs_hf.training.config import SourceConfig
from megapairs_hf.training.data.mmeb import source_fingerprint
from tests.small import ROOT

LINES = [
    f"a0: &a0 [{', '.join('x' * 10)}]",
    *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)),
]
BOMB = "\n".join(LINES)
CARD = f"---\n{BOMB}\nconfigs:\n- config_name: triplets\n  data_files: *a9\n---\n# A data set\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "README.md").write_text(CARD)
    pq.write_table(pa.table({"q_img": ["a"]}), tmp_path / "data" / "train.parquet")
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "README.md").write_text(CARD)
    (tmp_path / "bomb.yaml").write_text(BOMB)
    return tmp_path


def by_push(folder):
    api = types.SimpleNamespace(hf_hub_download=lambda *_, **__: str(folder / "data" / "README.md"))
    _card(api, PushConfig("me/model", license="mit"), [], [])


READERS = {
    "settings": lambda folder: read_yaml(folder / "bomb.yaml"),
    "flag": lambda _: parse_value("{a: &a [" + "x, " * 1000 + "], b: [" + "*a, " * 1000 + "]}"),
    "card of a model": by_push,
    "triplets": lambda folder: load_triplets(folder / "data"),
    "pairs": lambda folder: as_artifact(folder / "data", "pairs"),
    "images": lambda folder: as_artifact(folder / "data", "corpus"),
    "source of training": lambda folder: source_fingerprint(SourceConfig(path=str(folder / "card")), folder),
    "corpus": lambda folder: make_corpus(CorpusConfig("dataset", path=str(folder / "data")), out=folder / "corpus"),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_bomb_is_one_sentence(folder, reader):
    with pytest.raises(MegaPairsError, match="more than 100,000 values"):
        READERS[reader](folder)


def test_nothing_else_in_the_package_reads_yaml():
    for path in sorted((ROOT / "megapairs_hf").rglob("*.py")):
        text = path.read_text()
        assert path.name == "yaml_values.py" or not ("yaml.load(" in text or "yaml.safe_load(" in text), path


def test_the_command_refuses_a_recipe_that_is_one(folder, capsys):
    assert main(["mine", "--config", str(folder / "bomb.yaml")]) == 1
    assert "more than 100,000 values" in capsys.readouterr().err


def test_metadata_of_a_good_card_are_no_bomb(folder):
    (folder / "data" / "README.md").write_text("---\r\nlicense: mit\r\ndate: 2024-01-01\r\n---\r\n# A\r\n*b\r\n")
    check_card(str(folder / "data"))
