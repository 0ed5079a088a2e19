"""Look before you pay, and batch files: what is printed and written, and what comes back in another order."""

import json
import random

import pytest
from datasets import Dataset

from megapairs_hf.annotation import (
    Budget,
    CaptionConfig,
    DescribeConfig,
    InstructConfig,
    VerifyConfig,
    describe_pairs,
    instruct_pairs,
    verify_pairs,
)
from megapairs_hf.annotation.batch_files import annotate_from_file, write_requests
from megapairs_hf.annotation.preview import estimate_text, preview, preview_text
from megapairs_hf.annotation.steps import caption_step, describe_step, instruct_step, verify_step
from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.core.errors import AnnotationError, ArtifactError, ConfigError
from megapairs_hf.core.schema import PAIRS
from tests.small import megapairs

from .conftest import make_artifact, make_image
from .double import completion, describe, instruct
from .test_caption import caption
from .test_stage import RULES, at, digests, rejected
from .test_verify import nearer


def batch_service(source, target, answer, seed=0):
    """What a batch service makes of a file: a response to each request, in another order."""
    lines = []
    for line in source.read_text().splitlines():
        request = json.loads(line)
        assert (request["method"], request["url"]) == ("POST", "/v1/chat/completions")
        body = completion(answer(request["body"]))
        lines.append(
            {
                "id": "r",
                "custom_id": request["custom_id"],
                "response": {"status_code": 200, "body": body},
                "error": None,
            }
        )
    random.Random(seed).shuffle(lines)
    target.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def test_every_step_by_batch_files_equals_the_same_by_servers(serve, corpus, bare, tmp_path):
    rows = [{"query_id": f"i{n}", "target_id": f"i{n + 1}", "negative_ids": ["i11", "i9"][: n % 3]} for n in range(8)]
    mined = make_artifact(tmp_path / "p", "pairs", PAIRS, [rows[:5], rows[5:]])
    described = describe_pairs(mined, corpus, config=DescribeConfig(endpoint=at(serve())), out=tmp_path / "describe-a")
    final = instruct_pairs(
        described, corpus, config=InstructConfig(endpoint=at(serve(answer=instruct))), out=tmp_path / "instruct-a"
    )
    verify_pairs(
        final, mined, corpus, config=VerifyConfig(endpoint=at(serve(answer=nearer))), out=tmp_path / "verify-a"
    )
    steps = {
        "describe": lambda out: describe_step(mined, corpus, config=DescribeConfig(), out=out),
        "instruct": lambda out: instruct_step(described, corpus, config=InstructConfig(), out=out),
        "verify": lambda out: verify_step(final, mined, corpus, config=VerifyConfig(), out=out),
        "caption": lambda out: caption_step(bare, config=CaptionConfig(), out=out),
    }
    answers = {"describe": describe, "instruct": instruct, "verify": nearer, "caption": caption}
    for name, make in steps.items():
        step, requests, responses = make(tmp_path / f"{name}-b"), tmp_path / "out.jsonl", tmp_path / "in.jsonl"
        count = write_requests(step, requests)
        assert count == len(requests.read_text().splitlines()) > 3
        batch_service(requests, responses, answers[name])
        made = annotate_from_file(step, responses)
        if name == "caption":
            assert (made.rows, made.manifest.rejected) == (5, {"unreadable_image": 1})
        else:
            assert digests(made.path) == digests(tmp_path / f"{name}-a")


def test_missing_broken_refused_and_foreign_lines(pairs, corpus, tmp_path, capsys):
    requests, responses, rest = (tmp_path / name for name in ("out.jsonl", "in.jsonl", "rest.jsonl"))
    step = describe_step(pairs, corpus, config=DescribeConfig(), out=tmp_path / "d")
    assert write_requests(step, requests) == 11
    lines = batch_service(requests, responses, describe)
    refused = {"custom_id": lines[0]["custom_id"], "response": {"status_code": 400, "body": {"error": "too long"}}}
    expired = {"custom_id": lines[1]["custom_id"], "response": None, "error": {"code": "batch_expired"}}
    foreign = {**lines[2], "custom_id": "f" * 32}
    content = [json.dumps(line) for line in (refused, expired, foreign, *lines[4:])]
    # one is missing, one is cut off, one comes twice
    responses.write_text("\n".join([*content, json.dumps(lines[5]), json.dumps(lines[3])[:40]]))
    with pytest.raises(
        AnnotationError, match="3 of 11 pairs have no response that is any use yet; write the requests"
    ):
        annotate_from_file(step, responses)
    told = capsys.readouterr().err
    assert "8 responses taken; left out: 2 to other requests" in told
    assert "1 broken" in told and "1 failed" in told
    assert write_requests(step, rest) == 4  # the refused one too: no journal keeps a refusal
    assert not (tmp_path / "d" / "manifest.json").exists()
    more = batch_service(rest, responses, describe)
    more = [refused if line["custom_id"] == refused["custom_id"] else line for line in more]
    responses.write_text("".join(json.dumps(line) + "\n" for line in more))
    made = annotate_from_file(step, responses)
    assert made.rows == 10
    assert [reason for reason, _ in rejected(made).values()] == ["refused"]
    assert "too long" in next(iter(rejected(made).values()))[1]


def test_a_useless_response_has_a_second_request(pairs, corpus, tmp_path):
    requests, responses = tmp_path / "out.jsonl", tmp_path / "in.jsonl"
    step = describe_step(pairs, corpus, config=DescribeConfig(), out=tmp_path / "d")
    write_requests(step, requests)
    first = batch_service(requests, responses, lambda body: "" if body["seed"] % 2 else describe(body))
    useless = sum(not line["response"]["body"]["choices"][0]["message"]["content"] for line in first)
    assert 0 < useless < 11
    with pytest.raises(AnnotationError, match=f"{useless} of 11 pairs"):
        annotate_from_file(step, responses)
    assert write_requests(step, requests) == useless
    assert not {line["custom_id"] for line in first} & {json.loads(line)["custom_id"] for line in requests.open()}
    batch_service(requests, responses, describe)
    assert annotate_from_file(step, responses).rows == 11


def test_show_and_dry_run_write_nothing_but_the_journal(serve, pairs, corpus, tmp_path):
    server = serve(answer=lambda body: "A \x1b[31mred\x07 thing. " + describe(body))
    budget = Budget(price_prompt=1000.0, price_completion=2000.0)
    config = DescribeConfig(endpoint=at(server, concurrency=2), budget=budget)
    step = describe_step(pairs, corpus, config=config, out=tmp_path / "d")
    previews = preview(step, 3)
    assert len(server.bodies) == 3
    assert [path.suffix for path in (tmp_path / "d").rglob("*") if path.is_file()] == [".jsonl"]
    text = preview_text(previews)
    assert text.startswith("--- 1 of 3: i0 -> i1\nprompt:\n  This is the query image:\n  <image i0>\n")
    assert "response (stop, 11 + 7 tokens):\n  A \\x1b[31mred\\x07 thing. Both" in text
    assert "\x1b" not in text and "\x07" not in text
    told = estimate_text(step, previews)
    assert "measured on 3 pairs: 1.00 requests, 11 prompt tokens and 7 completion tokens each; 0 rejected" in told
    assert "11 pairs: 11 requests, 121 prompt tokens and 77 completion tokens" in told
    assert f"money: {(121 * 1000 + 77 * 2000) / 1e6:,.2f}" in told
    assert "with 2 in flight" in told
    # the run takes up what was asked
    assert describe_pairs(pairs, corpus, config=config, out=tmp_path / "d").rows == 11
    assert len(server.bodies) == 11
    by_rules = describe_step(pairs, corpus, config=DescribeConfig(**RULES), out=tmp_path / "r")
    assert "description: The query shows" in preview_text(preview(by_rules, 2))
    with pytest.raises(ConfigError, match="there is no response to measure"):
        estimate_text(by_rules, preview(by_rules, 2))


def test_the_commands(serve, pairs, corpus, tmp_path):
    server = serve()
    words = [
        "describe",
        "--pairs",
        pairs.path,
        "--corpus",
        corpus.path,
        "--out",
        tmp_path / "d",
        "--endpoint.urls",
        server.url,
    ]
    done = megapairs(*words, "--limit", "2", "--show", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "<image i1>" in done.stdout and "measured on 2 pairs" in done.stdout
    done = megapairs(*words, "--requests", tmp_path / "out.jsonl")
    assert done.returncode == 0 and f"9 requests written to {tmp_path}/out.jsonl" in done.stderr
    batch_service(tmp_path / "out.jsonl", tmp_path / "in.jsonl", describe)
    done = megapairs(*words, "--responses", tmp_path / "in.jsonl")
    assert done.returncode == 0, done.stderr
    assert "9 responses taken" in done.stderr and "descriptions: 11 rows" in done.stderr
    assert len(server.bodies) == 2
    for wrong, message in (
        (["--limit", "3"], "--limit N (from 1) goes with --show or --dry-run"),
        (["--show", "--requests", "x"], "exclude each other"),
        (["--requests", "x", "--engine", "rule_based"], "batch files are for `engine: openai`, not 'rule_based'"),
        (["--responses", tmp_path / "none"], "there is no file"),
    ):
        done = megapairs(*words, *wrong)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        assert message in done.stderr


def test_own_pairs_from_a_csv_a_json_lines_file_and_a_dataset(serve, pairs, corpus, tmp_path, capsys):
    own = Dataset.from_list(pairs.table(["query_id", "target_id"]).to_pylist())
    own.to_csv(tmp_path / "pairs.csv")
    own.to_json(tmp_path / "pairs.jsonl")
    config = DescribeConfig(endpoint=at(serve()))
    whole = describe_pairs(pairs, corpus, config=config, out=tmp_path / "whole").table()
    for number, source in enumerate((tmp_path / "pairs.csv", tmp_path / "pairs.jsonl", own)):
        made = describe_pairs(source, corpus, config=config, out=tmp_path / str(number))
        assert made.table().equals(whole)
    done = megapairs(
        "describe",
        "--pairs",
        tmp_path / "pairs.csv",
        "--corpus",
        corpus.path,
        "--out",
        tmp_path / "d",
        "--engine",
        "rule_based",
    )
    assert done.returncode == 0, done.stderr
    for name in ("a", "b"):
        (tmp_path / "photos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "photos" / f"{name}.png").write_bytes(make_image((ord(name), 0, 0)))
    (tmp_path / "two.csv").write_text("query_id,target_id\na.png,b.png\n")
    server = serve()
    words = ["--pairs", tmp_path / "two.csv", "--images", tmp_path / "photos", "--out", tmp_path / "p"]
    done = megapairs("describe", *words, "--endpoint.urls", server.url)
    assert done.returncode == 0, done.stderr
    assert len(server.bodies) == open_artifact(tmp_path / "p").rows == 1
    described = open_artifact(tmp_path / "d")
    final = instruct_pairs(described, corpus, config=InstructConfig(**RULES), out=tmp_path / "i")
    capsys.readouterr()
    checked = verify_pairs(
        final, own, corpus, config=VerifyConfig(endpoint=at(serve(answer=nearer))), out=tmp_path / "v"
    )
    assert checked.rows == 11
    assert (
        "nothing was verified: no pair has a hard negative (`negative_ids`) that is there" in capsys.readouterr().err
    )


def test_counts_that_are_no_numbers_stop_nothing(pairs, corpus, tmp_path):
    requests, responses = tmp_path / "out.jsonl", tmp_path / "in.jsonl"
    step = describe_step(pairs, corpus, config=DescribeConfig(), out=tmp_path / "d")
    write_requests(step, requests)
    lines = batch_service(requests, responses, describe)
    for line, count in zip(lines, ["12", 2**40, -1, None, {}, [], 1.5, 7], strict=False):
        line["response"]["body"]["usage"] = {"prompt_tokens": count, "completion_tokens": count}
        line["response"]["body"]["choices"][0]["finish_reason"] = count
    responses.write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = annotate_from_file(step, responses)
    assert made.rows == 11
    assert sorted(made.table(["prompt_tokens"])["prompt_tokens"].to_pylist())[:8] == [0] * 5 + [1, 7, 11]


def test_requests_for_which_there_is_no_space(pairs, corpus, tmp_path):
    (tmp_path / "requests.jsonl.part").symlink_to("/dev/full")
    with pytest.raises(ArtifactError, match=r"cannot write .*requests\.jsonl: the disk is full; free some space"):
        write_requests(
            describe_step(pairs, corpus, config=DescribeConfig(), out=tmp_path / "d"), tmp_path / "requests.jsonl"
        )
    assert not (tmp_path / "requests.jsonl").exists()
