import pytest

from megapairs_hf.annotation.prompts.parsing import parse_describe, parse_instruct
from megapairs_hf.core.errors import ResponseRejectedError
from tests.fuzz_replies import run


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(3))
def test_mutated_bodies_cost_no_more_than_their_own_response(seed):
    counts = run(150, seed)
    assert counts["none", "good"] == counts["ignored", "good"] == 30


PIECES = [
    "<think>",
    "</think>",
    "[THINK]",
    "<a>x</a>",
    "<|im_end|>",
    "1. a\n",
    "- ",
    "| a |\n",
    "{",
    "['a',",
    '{"a":{"b":[',
    '\\"',
]
PIECES += [
    "\\ud83d",
    "&amp;",
    "I cannot ",
    "no images ",
    "我无法",
    "**",
    "①",
    "1、",
    "assistantfinal",
    "<|channel|>analysis",
    "\n",
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("before", ["", '["', "1. a\n"])
def test_no_text_takes_long(before, piece):
    text = before + piece * (100_000 // len(piece))
    for parse in (parse_describe, parse_instruct):
        try:
            parse(text)
        except ResponseRejectedError:
            pass
