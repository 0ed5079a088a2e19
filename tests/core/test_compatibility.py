"""Packages that break each other are named before a model is loaded."""

import json
import os

import pytest

from megapairs_hf.core import compatibility
from megapairs_hf.core.compatibility import Pair, broken, check_adapter_of, require_adapters
from megapairs_hf.core.errors import ModelError
from tests.fresh import python
from tests.small import ROOT, make_small_models, small_corpus

SENTENCE = (
    "transformers 5.24.0 does not work with peft 0.21.2 (adapters need peft >= 0.22); pip install 'transformers<5.24'"
)
# the library itself is the installed one; it is its number that counts, and that nothing is loaded
LOADED = """
import safetensors
def refuse(*_, **__): raise SystemExit("weights were loaded")
safetensors.safe_open = refuse
import safetensors.torch
safetensors.torch.load_file = refuse
"""


def stub(folder, name, version):
    """A package of nothing but a name and a version."""
    (folder / f"{name}-{version}.dist-info").mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(text, encoding="utf-8")


@pytest.fixture
def pair(tmp_path):
    """Variables of the environment under which the incompatible pair is installed."""
    folder = tmp_path / "stubs"
    stub(folder, "transformers", "5.24.0")
    stub(folder, "peft", "0.21.2")
    (folder / "peft").mkdir()
    # a class for every name that the libraries import of it
    code = 'def __getattr__(name):\n    if name[0] == "_": raise AttributeError(name)\n    return type(name, (), {})\n'
    (folder / "peft" / "__init__.py").write_text(code, encoding="utf-8")
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return make_small_models(folder / "encoders", small_corpus(folder / "corpus", 6))


@pytest.fixture
def adapter(models, tmp_path):
    """An adapter folder that names its backbone."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": f"{models}/clip"}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def versions_of(monkeypatch, **installed):
    monkeypatch.setattr(compatibility, "installed_version", installed.get)


@pytest.mark.parametrize(
    ("transformers", "peft", "works"),
    [
        ("5.24.0", "0.21.2", False),
        ("5.24.0.dev0", "0.21.2", True),
        ("5.24.1rc1", "0.21.2", False),
        ("6.0", "0.17", False),
        ("5.100.0", "0.21.2", False),
        ("5.23.9", "0.21.2", True),
        ("5.9.0", "0.21.2", True),
        ("5.24.0", "0.22.0", True),
        ("5.24.0", "0.22.0.dev0", True),
        ("5.24.0", None, True),
        (None, "0.21.2", True),
    ],
)
def test_versions_are_compared_as_numbers(transformers, peft, works, monkeypatch):
    versions_of(monkeypatch, transformers=transformers, peft=peft)
    sentence = broken("adapters")
    assert (sentence is None) == works
    if sentence:
        assert sentence.startswith(f"transformers {transformers} does not work with peft {peft} (adapters need ")


def test_the_sentence_and_the_next_pair(monkeypatch):
    versions_of(monkeypatch, transformers="5.24.0", peft="0.21.2", other="2", numpy="3.1")
    with pytest.raises(ModelError) as caught:
        require_adapters("LoRA")
    assert str(caught.value) == SENTENCE
    more = Pair("arrays", ("other", ">=2"), ("numpy", ">=3"), "numpy < 3", "numpy<3")
    monkeypatch.setattr(compatibility, "BROKEN", (*compatibility.BROKEN, more))
    assert broken("arrays") == "other 2 does not work with numpy 3.1 (arrays need numpy < 3); pip install 'numpy<3'"


def test_the_packages_of_this_environment_work_together():
    require_adapters("LoRA")


def test_only_adapters_are_refused(models, adapter, monkeypatch):
    versions_of(monkeypatch, transformers="5.24.0", peft="0.21.2")
    check_adapter_of(f"{models}/clip")
    with pytest.raises(ModelError, match="does not work with peft"):
        check_adapter_of(str(adapter))
    versions_of(monkeypatch, transformers="5.23.0", peft="0.21.2")
    monkeypatch.setattr(
        "transformers.utils.peft_utils.find_adapter_config_file", lambda *_, **__: pytest.fail("looked up for nothing")
    )
    check_adapter_of(str(adapter))


IMPORTS = """
from megapairs_hf.annotation.config import Local
from megapairs_hf.annotation.engines.transformers_engine import LocalModel
from megapairs_hf.models.loading import load_model
from megapairs_hf.embedding.config import EncoderConfig, ModelSettings
from megapairs_hf.embedding.encoders import load_encoder
from megapairs_hf.models import load_mmret
from megapairs_hf.training import TrainConfig
from megapairs_hf.training.stage import started_model
"""


def test_the_pair_is_named_before_weights_are_loaded(pair, models, adapter):
    """Wherever an adapter would be put on a model, or a folder of one is named."""
    folder = repr(str(adapter))
    loads = [
        f"started_model(TrainConfig(model={models + '/clip'!r}, lora_rank=4), '.')",
        f"load_mmret({folder})",
        f"load_model({folder}, 'sentence-transformers', None, None)",
        f"load_encoder(ModelSettings(EncoderConfig('a', 'x', 'image')), {folder}, 'cpu')",
        f"LocalModel('x', Local(adapter={folder}), vision=True)",
        f"LocalModel({folder}, Local(), vision=False)",
    ]
    tried = [f"try: {load}\nexcept Exception as error: print(type(error).__name__, error)\n" for load in loads]
    done = python(pair, LOADED + IMPORTS + "".join(tried))
    assert done.stdout.splitlines() == [f"ModelError {SENTENCE}"] * len(loads), done.stderr


def test_the_command_says_it_too(pair, models, tmp_path):
    """No model is made, not even the base one."""
    call = ["train", "--work", str(tmp_path), "--model", f"{models}/clip", "--lora_rank", "4"]
    call += ["--triplets", str(tmp_path / "triplets")]
    (tmp_path / "triplets").mkdir()
    script = f"""
import megapairs_hf.cli.stage as stage
from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.manifest import Manifest
manifest = Manifest(kind="triplets", config={{}}, config_hash="", inputs={{}}, version="", shards=[], rows=0)
stage.open_input = lambda *_: Artifact("x", manifest)
sys.exit(main({call!r}))
"""
    done = python(pair, LOADED + script)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == f"megapairs: {SENTENCE}"
    assert not list(tmp_path.rglob("*.safetensors"))
