"""The settings know the strategies and re-rankers by name only, and must know all of them."""

from megapairs_hf.evaluation.config import COMPOSED_NAMES, RERANKER_NAMES
from megapairs_hf.evaluation.methods.zero_shot import COMPOSED
from megapairs_hf.evaluation.run import RERANKERS


def test_the_names_in_the_settings_are_those_of_the_functions():
    assert COMPOSED_NAMES == tuple(COMPOSED)
    assert RERANKER_NAMES == tuple(RERANKERS)
