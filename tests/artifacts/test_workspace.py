import pytest

from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.manifest import Manifest
from megapairs_hf.artifacts.workspace import source_name
from megapairs_hf.core.config import config_dict
from megapairs_hf.corpus import CorpusConfig


@pytest.mark.parametrize(
    ("source", "path", "name"),
    [
        ("scenes", None, "synthetic scenes"),
        ("dataset", "organization/photos", "organization/photos"),
        ("dataset", "/home/me/photos", "photos"),
        ("image_folder", "data/photos/", "photos"),
        ("image_folder", "C:\\data\\photos", "photos"),
        ("parquet", "photos", "photos"),
    ],
)
def test_a_corpus_is_named_after_its_path_without_a_folder_of_this_machine(source, path, name):
    config = config_dict(CorpusConfig(source, path))
    assert source_name(Artifact("corpus", Manifest("corpus", config, "", {}, "1", [], 0))) == name
