import pytest

from tests.fuzz import PARTS


@pytest.mark.long
@pytest.mark.parametrize("part", PARTS)
def test_mutated_inputs_are_used_or_rejected(part):
    # `python -m tests.fuzz` makes a longer run
    results = PARTS[part](500, 0)
    assert sum(results.values()) == 500
