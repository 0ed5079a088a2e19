"""Bodies of chat completions of any types: a text is a response, everything else a fault, and nothing a traceback."""

import json
import math

import pytest

from megapairs_hf.annotation.client.completion import FaultError, find_words, parse_body, read_completion, shorten
from megapairs_hf.annotation.client.messages import Response

from .double import completion

TEXT = "Both images show a dog. The second is red."
ODD = [None, True, 0, -1, 1.5, math.nan, math.inf, "", "text", [], [None], {}, {"a": 1}, [[[]]]]


@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        [{"type": "text", "text": TEXT}],
        [{"type": "output_text", "text": TEXT, "annotations": []}],
        [{"type": "text", "text": {"value": TEXT}}],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": TEXT}],
        [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": TEXT}],
        [{"type": "reasoning", "summary": []}, {"type": "text", "text": TEXT}],
        [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": TEXT}],
        [{"type": "text", "text": TEXT[:10]}, {"type": "text", "text": TEXT[10:]}],
        [{"type": "text", "text": TEXT[:24]}, None, {"type": "text", "text": TEXT[24:]}],
        [TEXT],
        {"type": "text", "text": TEXT},
        {"text": TEXT},
        [{"type": "image_url", "image_url": {"url": "data:"}}, {"type": "text", "text": TEXT}],
    ],
    ids=lambda content: json.dumps(content)[:50],
)
def test_content_of_any_form(content):
    assert read_completion(completion(content)) == Response(TEXT, "stop", 11, 7)


def test_parts_that_are_paragraphs_get_a_line_each():
    parts = [{"type": "text", "text": text} for text in ("1. make it red", "2. no hat", "3. on a ta", "ble.")]
    assert read_completion(completion(parts)).text == "1. make it red\n2. no hat\n3. on a table."


@pytest.mark.parametrize(
    "content",
    [{"instructions": ["a café", "b"]}, [{"instruction": "a café"}], [1, 2], {"type": "color", "text2": "b"}],
)
def test_content_that_a_proxy_parsed_is_json_again(content):
    assert json.loads(read_completion(completion(content)).text) == content


@pytest.mark.parametrize(
    "message",
    [
        {"reasoning_content": "hm, 1. wrong"},
        {"reasoning": "hm, 1. wrong"},
        {"reasoning": {"text": ["hm"]}},
        {"thinking": [{"type": "text"}]},
        {"content": "", "reasoning_content": "hm"},
        {"content": " \n", "reasoning": "hm"},
        {"content": [{"type": "thinking", "thinking": "hm"}]},
    ],
    ids=str,
)
def test_thoughts_alone_are_an_opened_thought(message):
    response = read_completion({"choices": [{"message": {"content": None, **message}, "finish_reason": "length"}]})
    assert response.text.startswith("<think>")
    assert not response.refused


def test_thoughts_beside_a_response_are_left_out():
    assert read_completion(completion(TEXT, reasoning_content="1. wrong")).text == TEXT


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ({"type": "length"}, "length"),
        ("eos_token", "eos_token"),
        (None, ""),
        (1, "1"),
        (1.5, "1.5"),
        (True, "True"),
        ([], "list"),
        ({}, ""),
        ("x" * 1000, "x" * 300),
        ("\ud83d", "?"),
    ],
    ids=str,
)
def test_finish_reason_of_any_type(value, expected):
    assert read_completion(completion(TEXT, value)).finish_reason == expected


@pytest.mark.parametrize("reason", ["content_filter", "SAFETY", "RECITATION", "prohibited_content"])
@pytest.mark.parametrize("content", [None, "", "The first image shows"])
def test_what_a_filter_withheld_is_rejected_and_its_tokens_counted(reason, content):
    response = read_completion(completion(content, reason))
    assert response.refused == "content_filter"
    assert (response.prompt_tokens, response.completion_tokens) == (11, 7)


def test_a_refusal_in_its_own_field():
    response = read_completion(completion(None, refusal="I can't help with that."))
    assert (response.refused, response.text) == ("refusal", "I can't help with that.")
    assert read_completion(completion(TEXT, refusal=None)).refused == ""


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (None, (None, None)),
        ("10", (None, None)),
        ('{"prompt_tokens": 7, "completion_tokens": "8"}', (7, 8)),
        ("{'prompt_tokens': 7}", (None, None)),
        ("[" * 100_000, (None, None)),
        ({"prompt_tokens": None, "input_tokens": 3, "completion_tokens": math.nan, "output_tokens": 4}, (3, 4)),
        ([], (None, None)),
        (5, (None, None)),
        ({"prompt_tokens": "10", "completion_tokens": "20"}, (10, 20)),
        ({"prompt_tokens": 10.0, "completion_tokens": 20.75}, (10, 20)),
        ({"input_tokens": 10, "output_tokens": 20}, (10, 20)),
        ({"prompt_tokens": -1, "completion_tokens": -1}, (None, None)),
        ({"prompt_tokens": math.nan, "completion_tokens": math.inf}, (None, None)),
        ({"prompt_tokens": True, "completion_tokens": None}, (None, None)),
        ({"prompt_tokens": 10**400, "completion_tokens": 2**31}, (None, None)),
        ({"prompt_tokens": "many", "completion_tokens": {"a": 1}}, (None, None)),
        ({"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": "x"}}, (10, None)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_usage_of_any_type(usage, counts):
    response = read_completion(completion(TEXT, usage=usage))
    assert (response.text, response.prompt_tokens, response.completion_tokens) == (TEXT, *counts)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"error": {"message": "Provider returned error", "code": 429}}, "Provider returned error"),
        ({"error": "The model is overloaded"}, "The model is overloaded"),
        ({"object": "error", "message": "The model is overloaded", "code": 40303}, "The model is overloaded"),
        ({"detail": [{"loc": ["body"], "msg": "field required"}]}, "field required"),
        ({"errors": [{"message": "no GPU"}]}, "no GPU"),
        ({"choices": [], "error": {"type": "overloaded_error"}}, "overloaded_error"),
        (
            {"choices": [{"error": {"code": 502, "message": "disconnected"}, "message": {"content": ""}}]},
            "disconnected",
        ),
        ({"choices": [{"finish_reason": "error", "message": {"content": "no 'pixel_values'"}}]}, "no 'pixel_values'"),
        ({"choices": [{"finish_reason": "abort", "message": {"content": TEXT}}]}, "failed"),
        ({"error": {"message": "\x1b[31mred\nand\x07 more" + "x" * 5000}}, "red and? more"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_failure_in_a_good_status_is_a_fault_with_the_servers_words(value, words):
    with pytest.raises(FaultError) as error:
        read_completion(value)
    assert words in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


def test_too_many_requests_in_a_good_status_is_an_overload():
    with pytest.raises(FaultError) as error:
        read_completion({"error": {"message": "slow down", "code": 429}})
    assert error.value.overload


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize(
    "place",
    "body choices choice message content finish_reason usage tokens error reasoning_content".split(),
)
def test_anything_anywhere_is_a_response_or_a_fault(odd, place):
    value = completion(TEXT)
    choice = value["choices"][0]
    if place == "body":
        value = odd
    elif place in ("choices", "usage", "error"):
        value[place] = odd
    elif place == "choice":
        value["choices"][0] = odd
    elif place == "tokens":
        value["usage"]["prompt_tokens"] = odd
    elif place in ("message", "finish_reason"):
        choice[place] = odd
    else:
        choice["message"][place] = odd
    try:
        response = read_completion(value)
    except FaultError as error:
        assert str(error)
        assert place in ("body", "choices", "choice", "message", "content")
    else:
        json.dumps(vars(response), allow_nan=False)
        # an object without a content is a message, and an empty one
        assert place not in ("choices", "choice") and (place != "message" or isinstance(odd, dict))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"\xff\xfe",
        b"<html>a proxy's page</html>",
        b'{"choices": [',
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b"[" * 200_000 + b"]" * 200_000,
        b"data: {}\n\n",
        b'"text"',
        b"9" * 5000,
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_no_completion_is_a_fault(body):
    with pytest.raises(FaultError):
        read_completion(parse_body(body))


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b"\n\n   \n", b"\x00"])
@pytest.mark.parametrize("after", [b"", b"\n", b"\x00\x00", b" garbage", b"{}", b"\n\ndata: [DONE]"])
def test_what_stands_around_the_body_is_ignored(before, after):
    assert read_completion(parse_body(before + json.dumps(completion(TEXT)).encode() + after)).text == TEXT


def test_half_a_surrogate_pair_is_written_as_a_question_mark():
    body = json.dumps(completion("A dog \ud83d here.")).encode()
    assert read_completion(parse_body(body)).text == "A dog ? here."


def test_words():
    assert find_words({"error": {"error": {"error": {"error": {"error": "deep"}}}}}) == ""
    assert find_words([[], {"message": ""}, "x"]) == "x"
    assert shorten("a\n\tb \x9b c") == "a b ? c"


def test_a_text_longer_than_any_response_is_a_fault():
    assert len(read_completion(completion("x" * 500_000)).text) == 500_000
    for content in ("x" * 500_001, [{"type": "text", "text": "x" * 300_000}] * 2):
        with pytest.raises(FaultError, match="longer than 500,000 characters"):
            read_completion(completion(content))
