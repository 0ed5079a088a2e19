"""A journal with damaged lines: each costs its own request, is never taken for a response, and no other is lost."""

import json

import pytest

from megapairs_hf.annotation.client.messages import Response
from megapairs_hf.annotation.engines.journal import Journal

KEYS = [f"{n:x}" * 64 for n in (1, 2, 3)]
RESPONSES = [Response(f"a response, {key[0]}", "stop", 10, 4, model="m") for key in KEYS]


@pytest.fixture
def file(tmp_path):
    with Journal(tmp_path / "journal") as journal:
        journal.add_all(list(zip(KEYS, RESPONSES, strict=True)))
        assert [journal.get(key) for key in KEYS] == RESPONSES
    [file] = (tmp_path / "journal").glob("*.jsonl")
    return file


def responses(folder):
    with Journal(folder) as journal:
        return [journal.get(key) for key in KEYS], journal.sums()


def test_any_flipped_bit_of_a_line_costs_that_response_alone(file):
    lines = file.read_bytes().splitlines(keepends=True)
    for position in range(len(lines[1]) - 1):
        damaged = bytearray(lines[1])
        damaged[position] ^= 1 << position % 8
        file.write_bytes(lines[0] + damaged + lines[2])
        loaded, _ = responses(file.parent)
        assert loaded == [RESPONSES[0], None, RESPONSES[2]], damaged


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"key": 3, "text": "x"}',
        b'{"key": "zz", "text": "x"}',
        b'{"key": "%s"}' % KEYS[1].encode(),
        b'{"key": "%s", "text": ["x"]}' % KEYS[1].encode(),
        b'{"key": "%s", "text": "x", "words": 3}' % KEYS[1].encode(),
        b'{"key": "%s", "text": "x", "prompt_tokens": "many"}' % KEYS[1].encode(),
        b"[" * 100_000,
        b"\xff\xfe\x00",
        b"\x00" * 200,
    ],
    ids=lambda line: repr(line[:30]),
)
def test_a_line_that_is_none_is_passed_over_and_its_request_sent_again(file, line):
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + line + b"\n" + lines[2])
    loaded, sums = responses(file.parent)
    assert loaded == [RESPONSES[0], None, RESPONSES[2]] and sums == (2, 20, 8)
    with Journal(file.parent) as journal:
        journal.add_all([(KEYS[1], RESPONSES[1])])
        assert journal.get(KEYS[1]) == RESPONSES[1]
    assert responses(file.parent)[0] == RESPONSES


def test_lines_of_earlier_versions_have_no_checksum(file):
    with file.open("w") as out:
        for key, response in zip(KEYS, RESPONSES, strict=True):
            out.write(json.dumps({"key": key, **vars(response)}) + "\n")
    assert responses(file.parent) == (RESPONSES, (3, 30, 12))
