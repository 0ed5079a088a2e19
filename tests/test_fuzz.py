import pytest

from tests.fuzz import PARTS

# a corpus is made of each mutation of a table, which takes longer
COUNTS = {
    "images": 500,
    "settings": 500,
    "tables": 150,
    "annotations": 60,
    "submissions": 60,
    "checkpoints": 200,
}


@pytest.mark.long
@pytest.mark.parametrize("part", PARTS)
def test_mutated_inputs_are_used_or_rejected(part):
    # `python -m tests.fuzz` makes a longer run
    results = PARTS[part](COUNTS[part], 0)
    # annotations are those of five benchmarks
    assert sum(results.values()) == COUNTS[part] * (5 if part == "annotations" else 1)
