import os

# threads that wait by spinning keep the other processes of a test waiting (before torch is imported, here and in them)
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# before any library is imported: no test reaches for the Hub, and libraries keep quiet
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest

from megapairs_hf.artifacts.artifact import Artifact
from tests.small import make_small_models, small_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """96 synthetic scenes of 32 pixels in three shards."""
    return small_corpus(tmp_path_factory.mktemp("corpus") / "corpus")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, corpus: Artifact) -> str:
    """A folder with a tiny CLIP, a tiny DINOv2 and a word model, all with random weights."""
    return make_small_models(tmp_path_factory.mktemp("models"), corpus)
