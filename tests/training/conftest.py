from pathlib import Path
from typing import Any

import pytest

from megapairs_hf.annotation import DescribeConfig, InstructConfig, describe_pairs, instruct_pairs
from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.dataset import BuildConfig, build_triplets, load_triplets
from megapairs_hf.models import load_mmret
from tests.small import small_pairs


@pytest.fixture(scope="package")
def triplets(corpus: Artifact, models: str, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Some 350 triplets of 96 synthetic scenes, and a validation split."""
    folder = tmp_path_factory.mktemp("train")
    pairs = small_pairs(corpus, models, folder)
    described = describe_pairs(pairs, corpus, config=DescribeConfig(engine="rule_based"), out=folder / "descriptions")
    told = instruct_pairs(described, corpus, config=InstructConfig(engine="rule_based"), out=folder / "instructions")
    return build_triplets(told, pairs, corpus, config=BuildConfig(validation=0.2), out=folder / "triplets")


@pytest.fixture
def rows(triplets: Artifact) -> Any:
    """The triplets with their images."""
    return load_triplets(triplets.path)


@pytest.fixture
def model(models: str) -> Any:
    """A tiny CLIP as an MMRet, with random weights that are the same each time."""
    return load_mmret(str(Path(models) / "clip"), device="cpu")
