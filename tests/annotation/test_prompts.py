import json
import re

import pytest

from megapairs_hf.annotation.filters import filter_instructions, normalize
from megapairs_hf.annotation.prompts.few_shot import load_examples, sample_examples, sample_word_num
from megapairs_hf.annotation.prompts.parsing import parse_describe, parse_instruct
from megapairs_hf.annotation.prompts.templates import (
    describe_prompt,
    format_describe,
    format_instruct,
    format_response,
    instruct_prompt,
)
from megapairs_hf.core.errors import ConfigError, ResponseParseError

EXAMPLES = load_examples(None, 5)


def test_the_few_shot_examples_are_valid_and_distinct():
    assert [d.id for d in EXAMPLES] == list(range(1, 51))
    assert len({normalize(d.description) for d in EXAMPLES}) == 50
    every = [normalize(text) for d in EXAMPLES for text in d.instructions]
    assert len(set(every)) == len(every) >= 150
    for d in EXAMPLES:
        assert len(d.instructions) >= 3
        assert filter_instructions(d.instructions, min_words=2, max_words=60) == (list(d.instructions), {})
        assert 25 <= len(d.description.split()) <= 100


@pytest.mark.parametrize("response_format", ["list", "json"])
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda d: str(d.id))
def test_a_reply_is_read_as_it_was_written(example, response_format):
    said = format_response(example.instructions, response_format)
    assert parse_instruct(said) == list(example.instructions)


@pytest.mark.parametrize(
    "said",
    [
        "Sure! Here you go:\n\n1) make it red\n2. no hat [plain]\n - on a table\n",
        '```json\n["make it red", "no hat [plain]", "on a table"]\n```',
        'Here: {"search": ["make it red", "no hat [plain]", "on a table"], "n": 3} Done.',
        "<think>1. wrong</think>\n(1) make it red\n(2) no hat [plain]\n(3) on a table",
        "hmm, 1. wrong\n</think>\n1. make it red\n2. no hat [plain]\n3. on a table",
        "**1.** make it red\n**2.** no hat [plain]\n**3.** on a table",
        "1. make it\n   red\n2. no hat [plain]\n3. on a table\n\nI hope this helps.",
        "1. make it red 2. no hat [plain] 3. on a table",
        "Here are the instructions:\nmake it red\nno hat [plain]\non a table",
        "Instruction 1: make it red\nInstruction 2: no hat [plain]\nInstruction 3: on a table",
        "- **Instruction 1:** make it red\n- 2. no hat [plain]\n- on a table",
        "a. make it red\nb. no hat [plain]\nc) on a table",
        "① make it red\n② no hat [plain]\n③ on a table",
        '{"1": "make it red", "2": "no hat [plain]", "3": "on a table"}',
        '{"instructions": [{"text": "make it red"}, {"text": "no hat [plain]"}, "on a table"]}',
    ],
)
def test_replies_in_the_wild(said):
    assert parse_instruct(said) == ["make it red", "no hat [plain]", "on a table"]


def test_numbers_inside_instructions_stay():
    said = "1. 1960s car\n2. 1.5 times as large\n3. 2 dogs, not 1."
    assert parse_instruct(said) == ["1960s car", "1.5 times as large", "2 dogs, not 1."]


def test_a_thought_that_was_cut_off_is_no_reply():
    with pytest.raises(ResponseParseError, match="only_thoughts"):
        parse_instruct("<think>1. maybe red\n2. maybe blue", "length")
    with pytest.raises(ResponseParseError, match="only_thoughts"):
        parse_describe("<think>Both are red. The sec", "length")


def test_what_was_cut_off_is_left_out():
    assert parse_instruct("1. make it red\n2. on a ta", "length") == ["make it red"]
    assert parse_instruct('{"instructions": ["make it red", "say \\"hi\\"", "on a ta', "length") == [
        "make it red",
        'say "hi"',
    ]
    assert parse_describe("Both are red. The second is bi", "length") == "Both are red."
    with pytest.raises(ResponseParseError, match="cut_off"):
        parse_describe("Both are", "length")


@pytest.mark.parametrize(
    ("said", "reason"), [("", "empty_reply"), ("<think>x</think>", "only_thoughts"), ("no", "no_list")]
)
def test_useless_replies(said, reason):
    with pytest.raises(ResponseParseError) as error:
        parse_instruct(said)
    assert error.value.reason == reason


def test_describe_puts_the_images_where_the_prompt_says():
    parts = format_describe(describe_prompt(), "data:q", "data:t", 77)[0]["content"]
    kinds = [part.get("image_url", {}).get("url") or part["text"] for part in parts]
    assert kinds[1] == "data:q"
    assert kinds[3] == "data:t"
    assert "query image" in kinds[0]
    assert "target image" in kinds[2]
    assert "77 words" in kinds[4]
    assert "caption" not in " ".join(kinds).lower()


def test_a_prompt_file_may_name_the_captions(tmp_path):
    file = tmp_path / "p.jinja"
    file.write_text("{{ query_caption }}{{ query_image }}{{ target_image }}")
    prompt = describe_prompt(str(file))
    assert prompt.needs_captions and not describe_prompt().needs_captions
    parts = format_describe(prompt, "data:q", "data:t", 77, ("a {{ x }} dog", "b"))[0]["content"]
    assert parts[0] == {"type": "text", "text": "a {{ x }} dog"}


def test_instruct_shows_the_demonstrations_in_order():
    drawn = sample_examples(EXAMPLES, 5, seed=3)
    text = format_instruct(instruct_prompt(), "They differ.", drawn, count=5, response_format="json")[0]["content"]
    assert re.findall(r"^Description: (.*)$", text, re.M) == [*(d.description for d in drawn), "They differ."]
    assert text.endswith("Description: They differ.\nInstructions:")
    assert '{"instructions": [' in text
    assert "Write 5 different" in text
    assert "between 2 and 60 words" in text
    assert "caption" not in text.lower()


def test_draws_cover_the_range_and_repeat():
    drawn = [sample_word_num((60, 100), seed) for seed in range(2000)]
    assert set(drawn) == set(range(60, 101))
    ids = {d.id for seed in range(200) for d in sample_examples(EXAMPLES, 5, seed)}
    assert ids == set(range(1, 51))
    assert sample_examples(EXAMPLES, 5, 9) == sample_examples(EXAMPLES, 5, 9)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{{ query_image }}{{ target_image }}{{ WORDNUM }}", "unknown slot 'WORDNUM'"),
        ("{{ query_image }}", "lacks the slot 'target_image'"),
        ("{{ query_image ", "not valid jinja"),
    ],
)
def test_bad_prompt_files(tmp_path, text, sentence):
    file = tmp_path / "p.jinja"
    file.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        describe_prompt(str(file))


def test_bad_few_shot_files(tmp_path):
    file = tmp_path / "pool.json"
    few = [{"id": i, "description": "d", "instructions": ["a b"]} for i in range(4)]
    letters = [{"id": 1, "description": "d", "instructions": "a b"}]
    for value, sentence in (
        (letters, "no list of instructions"),
        (few, "holds 4"),
        ([few[0], few[0]], "id twice"),
        ({"a": 1}, "must be a JSON list"),
    ):
        file.write_text(json.dumps(value))
        with pytest.raises(ConfigError, match=sentence):
            load_examples(str(file), 5)
    with pytest.raises(ConfigError, match="cannot read"):
        load_examples(str(tmp_path / "none.json"), 5)
