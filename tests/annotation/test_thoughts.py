"""Thoughts and special tokens of every family, around and inside of a description and of a list."""

import pytest

from megapairs_hf.annotation.prompts.parsing import parse_describe, parse_instruct
from megapairs_hf.annotation.prompts.special_tokens import without_special_tokens
from megapairs_hf.annotation.prompts.thoughts import only_thoughts, without_thinking
from megapairs_hf.core.errors import ResponseParseError

DESCRIPTION = "Both images show a plain wall. The second one is lighter."
LIST = "1. make it red\n2. no hat [plain]\n3. on a table"
ITEMS = ["make it red", "no hat [plain]", "on a table"]
THOUGHT = "The first is dark. 1. wrong item one\n2. wrong item two\n3. wrong item three"
MARKS = [
    ("<think>", "</think>"),
    ("<THINK>", "</THINK>"),
    ("<think>\n", "\n</think>\n\n"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<analysis>", "</analysis>"),
    ("<reflection>", "</reflection>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("<inner_monologue>", "</inner_monologue>"),
    ("[THINK]", "[/THINK]"),
    ("[think]", "[/think]"),
    ("[REASONING]", "[/REASONING]"),
    ("◁think▷", "◁/think▷"),
    ("◁thinking▷", "◁/thinking▷"),
    ("【思考】", "【/思考】"),
    ("<|think|>", "<|/think|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<｜begin▁of▁thinking｜>", "<｜end▁of▁thinking｜>"),
    ("<|channel>thought\n", "<channel|>"),
    ("<unused94>thought\n", "<unused95>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel|>commentary to=functions.x<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<plan>", "</plan>"),
    ("[PONDER]", "[/PONDER]"),
    ("<|musing|>", "<|/musing|>"),
]
ONLY_BY_PAIR = {"【思考】", "<plan>", "<|musing|>"}
READ = [(parse_describe, DESCRIPTION, DESCRIPTION), (parse_instruct, LIST, ITEMS)]


@pytest.mark.parametrize(("parse", "text", "expected"), READ, ids=["describe", "instruct"])
class TestThoughts:
    @pytest.mark.parametrize(("opening", "closing"), MARKS, ids=lambda mark: repr(mark[:14]))
    def test_before_the_response(self, opening, closing, parse, text, expected):
        assert parse(f"{opening}{THOUGHT}{closing}{text}") == expected
        assert parse(f"\n {opening}{THOUGHT}{closing}\n\n{text}\n") == expected
        assert parse(f"{opening}{closing}{text}") == expected

    @pytest.mark.parametrize(
        ("opening", "closing"), [m for m in MARKS if m[0] not in ONLY_BY_PAIR], ids=lambda mark: repr(mark[:14])
    )
    def test_only_closed_as_the_template_opened_it(self, opening, closing, parse, text, expected):
        assert parse(f"{THOUGHT}{closing}{text}") == expected

    @pytest.mark.parametrize(
        ("opening", "closing"), [m for m in MARKS if m[0] not in ONLY_BY_PAIR], ids=lambda mark: repr(mark[:14])
    )
    def test_only_opened_as_the_length_limit_cut_it_off(self, opening, closing, parse, text, expected):
        with pytest.raises(ResponseParseError) as error:
            parse(f"{opening}{THOUGHT}", "length")
        assert error.value.reason == "only_thoughts"

    def test_twice_nested_and_after_the_response(self, parse, text, expected):
        assert parse(f"<think>{THOUGHT}</think><think>again</think>{text}") == expected
        assert parse(f"<think>a<think>b</think>{THOUGHT}</think>{text}") == expected
        assert parse(f"{text}<think>was that right? {THOUGHT}</think>") == expected
        assert (
            parse(f"{text}\n<think>was that right? {THOUGHT}", "length" if parse is parse_describe else "") == expected
        )

    @pytest.mark.parametrize(
        "form",
        [
            "<think>{thought}</think><answer>{text}</answer>",
            "<think>{thought}<answer>{text}</answer>",
            "{thought}</think>\n<answer>\n{text}\n</answer>\nDone.",
            "<answer>{text}</answer>",
            "<answer>{text}",
            "<SUMMARY>{thought}</SUMMARY><REASONING>{thought}</REASONING><CONCLUSION>{text}</CONCLUSION>",
            "<|begin_of_thought|>{thought}<|end_of_thought|><|begin_of_solution|>{text}<|end_of_solution|>",
            "<|START_THINKING|>{thought}<|END_THINKING|><|START_RESPONSE|>{text}<|END_RESPONSE|>",
            "<think>{thought}</think><|begin_of_box|>{text}<|end_of_box|>",
            "{thought}[BEGIN FINAL RESPONSE]{text}[END FINAL RESPONSE]",
            "<think>{thought}</think><response>{text}</response>",
            "analysisWe need to compare. {thought}assistantfinal{text}",
        ],
    )
    def test_the_response_has_marks_of_its_own(self, form, parse, text, expected):
        assert parse(form.format(thought=THOUGHT, text=text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "no hat [plain]",
        "a man [thinking] on a bench",
        "a poster that reads [THINK] in red",
        "a < b and c > d",
        "a heart <3 on a shirt",
        "the thinking man, in bronze",
        "an answer written on a board",
        "[1] make it red",
        "analysis of a soil sample",
    ],
)
def test_words_of_the_response_are_no_marks(text):
    assert without_thinking(text) == text
    assert without_special_tokens(text) == text


def test_what_is_only_thoughts():
    assert only_thoughts("<think>hm")
    assert only_thoughts("analysisWe need to compare both images")
    assert not only_thoughts("")
    assert not only_thoughts("<think>hm</think>Both.")


TOKENS = """<|im_end|> <|endoftext|> <|eot_id|> <|end|> <|return|> <|end_of_text|> <|eom_id|> </s> <eos> <end_of_turn>
<｜end▁of▁sentence｜> <|EOT|> <|END_OF_TURN_TOKEN|> <|endofturn|> <end_of_utterance> [EOS] <|end_of_sentence|>
<|eos|> <turn|>""".split()
EDGES = """<s> <bos> <|begin_of_text|> <pad> <unk> <|assistant|> <|im_start|>assistant <start_of_turn>model
<|start_header_id|>assistant<|end_header_id|> [/INST] <｜Assistant｜> <|start|>assistant [gMASK]<sop> <|startoftext|>
<|vision_start|><|vision_end|> <image> <0x0A> <extra_id_0> Assistant: ASSISTANT:""".split()


@pytest.mark.parametrize(("parse", "text", "expected"), READ, ids=["describe", "instruct"])
class TestSpecialTokens:
    @pytest.mark.parametrize("token", TOKENS)
    def test_the_end_of_a_turn(self, token, parse, text, expected):
        assert parse(f"{text}{token}") == expected
        assert parse(f"{text}\n{token}{token}\n") == expected
        assert parse(f"{token}{text}{token}") == expected
        assert parse(f"{text}{token}\n<|im_start|>user\nAnd now?<|im_end|>\n1. wrong item") == expected

    @pytest.mark.parametrize("token", EDGES)
    def test_the_beginning_of_one(self, token, parse, text, expected):
        assert parse(f"{token}{text}") == expected
        assert parse(f"{token}\n{text}") == expected

    @pytest.mark.parametrize("token", ["<|placeholder1|>", "<pad>", "<unk>", "<｜fim▁hole｜>", "[PAD]", "<|x|>"])
    def test_inside(self, token, parse, text, expected):
        assert parse(text.replace("\n", f"{token}\n").replace(". The", f".{token} The")) == expected

    def test_another_turn_that_the_model_made_up_is_left_out(self, parse, text, expected):
        for turn in (
            "<|user|>",
            "<start_of_turn>user",
            "[INST]",
            "<|im_start|>user",
            "<|start_header_id|>user<|end_header_id|>",
        ):
            assert parse(f"{text}\n{turn} Now the next. 4. wrong item") == expected

    def test_control_characters_go(self, parse, text, expected):
        assert parse(f"\ufeff\x00{text}\x00\x07\u200b") == expected


def test_a_response_of_nothing_but_tokens_is_empty():
    for text in ("</s>", "<|im_end|><|im_end|>", "<s></s>", "<pad>" * 1000, "<|channel|>final<|message|><|return|>"):
        with pytest.raises(ResponseParseError, match="empty_reply"):
            parse_describe(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<p>Both images show a <b>dog</b>.</p><script>alert(1)</script>", "Both images show a dog."),
        ("Both show a <ref>dog</ref><box>[[1, 2, 3, 4]]</box> on grass.", "Both show a dog on grass."),
        ('{"description": "Both images show a dog. It is red."}', "Both images show a dog. It is red."),
        ('```json\n{"description": "Both images show a dog."}\n```', "Both images show a dog."),
        ("```\nBoth images show a dog.\n```", "Both images show a dog."),
        ('"Both images show a \\"Caf\\u00e9\\".\\nIt is red."', 'Both images show a "Café". It is red.'),
        ("Both show a caf\\u00e9 and a \\ud83d\\ude00 face.", "Both show a café and a 😀 face."),
        ("Both show a &quot;caf&eacute;&quot; &amp; a bar.", 'Both show a "café" & a bar.'),
        ("Here is a description of both images:\n\nBoth show a dog.", "Both show a dog."),
        ("Sure! Here's the comparison:\nBoth show a dog.", "Both show a dog."),
        ("**Description:** Both show a dog.", "Both show a dog."),
        ("The sky: blue in the first, gray in the second.", "The sky: blue in the first, gray in the second."),
    ],
)
def test_other_clothes_of_a_description(text, expected):
    assert parse_describe(text) == expected
