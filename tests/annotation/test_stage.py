import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from megapairs_hf.annotation import Budget, DescribeConfig, Endpoint, InstructConfig, describe_pairs, instruct_pairs
from megapairs_hf.annotation.config import RULE_BASED
from megapairs_hf.annotation.engines.journal import Journal
from megapairs_hf.annotation.shard_io import journal_folder
from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.core.errors import (
    ArtifactError,
    ConfigError,
    SchemaMismatchError,
    ServerUnavailableError,
    StaleArtifactError,
)
from megapairs_hf.core.schema import DESCRIPTIONS, INSTRUCTIONS, PAIRS

from .conftest import CORPUS, image_row, make_artifact, make_image, pair_rows
from .double import describe, instruct

RULES = {"engine": "rule_based"}
# longer than any machine takes: only the tests of these limits set them lower
NEVER_S = 600.0


def at(server, **settings):
    return Endpoint(
        **{"urls": (server.url,), "backoff_s": 0.01, "concurrency": 4, "timeout_s": NEVER_S, "restart_s": NEVER_S}
        | settings
    )


def digests(path):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(Path(path).iterdir())}


def rejected(artifact):
    return {
        r["key"]: (r["reason"], r["detail"])
        for r in pq.read_table(Path(artifact.path) / "rejected.parquet").to_pylist()
    }


def test_both_steps_by_a_server(serve, pairs, corpus, tmp_path):
    server = serve(answer=describe)
    made = describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(server)), out=tmp_path / "d")
    rows = made.table().to_pylist()
    assert made.table().schema.equals(DESCRIPTIONS)
    assert [(r["query_id"], r["target_id"]) for r in rows] == [(f"i{n}", f"i{n + 1}") for n in range(11)]
    assert [shard["rows"] for shard in made.manifest.shards] == [7, 4]
    for n, row in enumerate(rows):
        # the double read the colors from the JPEG files that reached it
        sent, seen = [n * 20, n * 20 + 20], row["description"].split("64x32 ")[1:]
        assert all(abs(int(text[1:].split(",")[0]) - red) <= 3 for text, red in zip(seen, sent, strict=True))
        assert 60 <= row["word_num"] <= 100
        assert row["model"] == "OpenGVLab/InternVL2-26B"
        assert (row["finish_reason"], row["prompt_tokens"], row["completion_tokens"]) == ("stop", 11, 7)
    assert any(f"about {rows[3]['word_num']} words" in json.dumps(body) for body in server.bodies)
    assert len({body["seed"] for body in server.bodies}) == 11

    second = serve(answer=instruct)
    prices = Budget(price_prompt=1000, price_completion=2000)
    final = instruct_pairs(made, corpus, config=InstructConfig(endpoint=at(second), budget=prices), out=tmp_path / "i")
    rows = final.table().to_pylist()
    assert final.table().schema.equals(INSTRUCTIONS)
    assert all(len(r["instructions"]) == 3 and len(set(r["demonstration_ids"])) == 5 for r in rows)
    assert len({tuple(r["demonstration_ids"]) for r in rows}) > 5
    assert final.manifest.stats["instructions"] == {"kept": 33, "rejected": {"too_short": 11}}
    assert final.manifest.stats["answers"] == 11
    assert final.manifest.stats["tokens"] == {"prompt": 121, "completion": 77}
    assert final.manifest.stats["spend"] == pytest.approx((121 * 1000 + 77 * 2000) / 1e6)
    assert "spend" not in made.manifest.stats
    assert final.manifest.inputs["descriptions"] == made.fingerprint
    prompt = second.bodies[0]["messages"][0]["content"]
    assert any(r["description"] in prompt for r in made.table().to_pylist())
    written = "".join(p.read_text("latin1") for p in tmp_path.rglob("*") if p.is_file())
    assert "127.0.0.1" not in written


def test_faults_and_the_order_of_replies_leave_no_trace(serve, pairs, corpus, tmp_path):
    good, bad = serve(), serve(script=lambda body, n: [("status", 500), ("empty",), None][(body["seed"] + n) % 3])
    plain = describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(good, concurrency=1)), out=tmp_path / "a")
    chaos = describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(bad, concurrency=8)), out=tmp_path / "b")
    assert digests(plain.path) == digests(chaos.path)
    assert len(bad.bodies) > len(good.bodies)


def test_a_finished_artifact_asks_nothing_and_does_not_mind_where_the_server_is(serve, pairs, corpus, tmp_path):
    server = serve()
    describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(server)), out=tmp_path / "d")
    elsewhere = Endpoint(urls=("http://127.0.0.1:9/v1",), concurrency=2)
    describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=elsewhere), out=tmp_path / "d")
    assert len(server.bodies) == 11
    with pytest.raises(StaleArtifactError, match="seed"):
        describe_pairs(pairs, corpus, config=DescribeConfig(seed=1, endpoint=elsewhere), out=tmp_path / "d")
    prompt = tmp_path / "p.jinja"
    prompt.write_text("{{ query_image }} and {{ target_image }}")
    config = DescribeConfig(prompt=str(prompt), endpoint=at(server))
    describe_pairs(pairs, corpus, config=config, out=tmp_path / "e")
    prompt.write_text("{{ query_image }} or {{ target_image }}")
    with pytest.raises(StaleArtifactError, match="prompt"):
        describe_pairs(pairs, corpus, config=config, out=tmp_path / "e")


CHILD = """
    import sys
    from megapairs_hf.annotation import *
    from megapairs_hf.artifacts.artifact import open_artifact
    corpus, pairs, out, url = sys.argv[1:]
    endpoint = Endpoint(urls=(url,), concurrency=2, timeout_s=600.0)
    config = DescribeConfig(endpoint=endpoint)
    describe_pairs(open_artifact(pairs), open_artifact(corpus), config=config, out=out)
"""


def kept(out):
    """Responses that are in the journal of an unfinished artifact."""
    return len(Journal(journal_folder(out)))


def test_killed_and_continued(serve, pairs, corpus, tmp_path):
    faultless = serve()
    first = describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(faultless)), out=tmp_path / "a")
    enough, guard, let_through = 0, threading.Lock(), set()

    def script(body, _):
        with guard:
            if len(let_through) >= enough:
                return ("hang",)
            let_through.add(body["seed"])
            return None

    server = serve(script=script)
    command = [sys.executable, "-c", textwrap.dedent(CHILD), corpus.path, pairs.path, str(tmp_path / "b"), server.url]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for enough in (3, 8):
        child = subprocess.Popen(command, env=environment)
        # all that the server lets through are kept, and it answers nothing more
        while kept(tmp_path / "b") < enough:
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert not (tmp_path / "b" / "manifest.json").exists()
    enough = 100
    subprocess.run(command, env=environment, check=True)
    assert digests(tmp_path / "b") == digests(first.path)
    assert len(server.answered) == 11
    assert set(server.answered.values()) == {1}
    assert sum(server.asked.values()) <= 11 + 2 * 2  # two at most were without an answer at each kill
    assert not list((tmp_path / "b").glob(".*"))


def test_a_dead_server_stops_the_run_and_the_answers_are_kept(serve, pairs, corpus, tmp_path):
    server = serve(script=lambda *_: ("status", 503) if len(server.answered) >= 5 else None)
    out = tmp_path / "d"
    with pytest.raises(ServerUnavailableError, match="responses so far are kept"):
        dead = at(server, max_retries=1, concurrency=1, restart_s=0.5)
        describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=dead), out=out)
    server.script = None
    assert describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(server)), out=out).rows == 11
    assert set(server.answered.values()) == {1}


def test_nothing_is_dropped_in_silence(serve, tmp_path):
    rows = [
        image_row("a", "x"),
        image_row("b", "y", b"no image"),
        image_row("c", "z", make_image((9, 9, 9), (300, 2000))),
    ]
    corpus = make_artifact(tmp_path / "corpus", "corpus", CORPUS, [rows])
    keys = [("a", "b"), ("a", "gone"), ("a", "c"), ("c", "a"), ("c", "c")]
    pairs = make_artifact(tmp_path / "pairs", "pairs", PAIRS, [pair_rows(*keys)])

    def script(body, _):
        sizes = describe(body)
        if "115x768" in sizes and sizes.index("115x768") < sizes.index("64x32") if "64x32" in sizes else False:
            return ("reply", "", "stop")
        return ("reply", "Cut off before the first sto", "length") if "64x32" not in sizes else None

    made = describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(serve(script=script))), out=tmp_path / "d")
    assert made.rows == 1
    assert "115x768" in made.table()["description"][0].as_py()
    told = rejected(made)
    assert {key: reason for key, (reason, _) in told.items()} == {
        "a -> b": "unreadable_image",
        "a -> gone": "missing_image",
        "c -> a": "empty_reply",
        "c -> c": "cut_off",
    }
    assert made.manifest.rejected == {"cut_off": 1, "empty_reply": 1, "missing_image": 1, "unreadable_image": 1}


def test_one_more_try_and_then_left_out_with_the_raw_reply(serve, pairs, corpus, tmp_path):
    made = describe_pairs(pairs, corpus, config=DescribeConfig(**RULES), out=tmp_path / "d")
    tried = {}

    def answer(body):
        text = body["messages"][0]["content"].rsplit("Description:", 1)[1]
        tried.setdefault(text, []).append(body["seed"])
        if "of 2 red" in text:
            return "I would rather not."
        if "of 5 red circles. The target" in text and len(tried[text]) == 1:
            return "1. like image 2\n2. like the description\n3. one thing\n4. one thing\n5. two things"
        return instruct(body)

    final = instruct_pairs(made, corpus, config=InstructConfig(endpoint=at(serve(answer=answer))), out=tmp_path / "i")
    assert rejected(final) == {"i0 -> i1": ("too_few_instructions", "I would rather not.")}
    assert final.rows == 10
    assert final.manifest.stats["instructions"]["rejected"] == {
        "duplicate": 1,
        "mentions_description": 1,
        "mentions_images": 1,
        "too_short": 10,
    }
    twice = [seeds for seeds in tried.values() if len(seeds) == 2]
    assert len(twice) == 2
    assert all(first != second for first, second in twice)


def test_json_is_requested_with_a_schema_and_a_prompt_may_name_the_captions(serve, pairs, corpus, tmp_path):
    made = describe_pairs(pairs, corpus, config=DescribeConfig(**RULES), out=tmp_path / "d")
    server = serve(answer=lambda body: json.dumps({"instructions": [f"make it {n} {body['seed']}" for n in range(3)]}))
    prompt = tmp_path / "p.jinja"
    prompt.write_text("From {{ query_caption }} to {{ target_caption }}: {{ description }}")
    config = InstructConfig(response_format="json", prompt=str(prompt), endpoint=at(server))
    assert instruct_pairs(made, corpus, config=config, out=tmp_path / "i").rows == 11
    assert "instructions" in json.dumps(server.bodies[0]["response_format"])
    assert server.bodies[0]["messages"][0]["content"].startswith("From a photo of ")


def test_both_steps_by_rules(corpus, tmp_path):
    keys = [("i1", "i2"), ("i3", "i3"), ("i4", "gone")]
    pairs = make_artifact(tmp_path / "pairs", "pairs", PAIRS, [pair_rows(*keys), []])
    described = describe_pairs(pairs, corpus, config=DescribeConfig(**RULES), out=tmp_path / "d")
    assert {k: r for k, (r, _) in rejected(described).items()} == {
        "i3 -> i3": "same_caption",
        "i4 -> gone": "missing_image",
    }
    made = [
        instruct_pairs(described, corpus, config=InstructConfig(**RULES), out=tmp_path / name) for name in ("x", "y")
    ]
    assert digests(made[0].path) == digests(made[1].path)
    (row,) = made[0].table().to_pylist()
    assert row["model"] == RULE_BASED
    assert len(row["instructions"]) == 5
    assert all("4" in text for text in row["instructions"])
    assert [shard["rows"] for shard in made[0].manifest.shards] == [1, 0]
    assert open_artifact(tmp_path / "x", "instructions").table().schema.equals(INSTRUCTIONS)


def test_attributes_of_the_corpus(corpus, pairs, tmp_path):
    config = InstructConfig(**RULES, attributes=("count", "color"))
    described = describe_pairs(pairs, corpus, config=DescribeConfig(**RULES), out=tmp_path / "d")
    made = instruct_pairs(described, corpus, config=config, out=tmp_path / "i")
    assert all(
        "count" in text and "color" not in text for row in made.table()["instructions"].to_pylist() for text in row
    )
    with pytest.raises(ConfigError, match=r"'hue', which is neither .* known: color, count, tags"):
        instruct_pairs(described, corpus, config=dataclasses.replace(config, attributes=("hue",)), out=tmp_path / "j")


def test_wrong_inputs_and_settings(corpus, pairs, tmp_path):
    with pytest.raises(SchemaMismatchError, match="descriptions is needed"):
        instruct_pairs(pairs, corpus, config=InstructConfig(), out=tmp_path / "i")
    for bad in ({"engine": "magic"}, {"word_num": (9, 5)}, {"attributes": ("x",)}, {"top_p": 0.0}, {"model": " "}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            DescribeConfig(**bad)
    for bad in ({"num_instructions": 2}, {"min_words": 0}, {"response_format": "xml"}, {"num_few_shot": -1}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            InstructConfig(**bad)


def test_works_inside_a_running_loop(serve, pairs, corpus, tmp_path):
    import asyncio

    async def notebook():
        return describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(serve())), out=tmp_path / "d")

    assert asyncio.run(notebook()).rows == 11


def test_the_report_shows_pairs_with_their_reasons(serve, pairs, corpus, tmp_path):
    from megapairs_hf.report.config import ReportConfig
    from megapairs_hf.report.inspect import inspect_artifact
    from megapairs_hf.report.page import write_report

    config = DescribeConfig(endpoint=at(serve()))
    made = describe_pairs(pairs, corpus, config=config, out=tmp_path / "descriptions")
    refuses = made.table().to_pylist()[0]["description"]

    def answer(body):
        return "I will <b>not</b>." if refuses in json.dumps(body) else instruct(body)

    final = instruct_pairs(
        made, corpus, config=InstructConfig(endpoint=at(serve(answer=answer))), out=tmp_path / "instructions"
    )
    assert final.manifest.rejected == {"too_few_instructions": 1}
    page = write_report(tmp_path, tmp_path / "r.html", config=ReportConfig(annotated=20)).read_text()
    section = page[page.index("Descriptions and instructions") : page.index("What was made")]
    assert section.count("data:image/webp") == 22
    assert "left out: too_few_instructions" in section
    assert "I will &lt;b&gt;not&lt;/b&gt;." in section
    assert all(row["description"] in section for row in made.table().to_pylist())
    assert "distinct_2" in page
    told = inspect_artifact(tmp_path / "instructions")
    assert "share_in_several_pairs" in told
    assert "too_few_instructions" in told


def test_replies_of_no_use_are_no_success_and_are_asked_again(serve, pairs, corpus, tmp_path):
    silent = serve(answer=lambda _: "")
    for _ in range(2):
        with pytest.raises(ArtifactError, match=r"none of the 11 pairs got descriptions .*11 empty_reply"):
            describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(silent)), out=tmp_path / "d")
    better = serve(answer=describe)
    made = describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(better)), out=tmp_path / "d")
    assert made.rows == 11


def test_a_server_that_was_never_reached_blocks_no_other_settings_and_loses_nothing(pairs, corpus, tmp_path):
    nobody = Endpoint(urls=("http://127.0.0.1:9/v1",), connect_timeout_s=1.0)
    with pytest.raises(ServerUnavailableError, match="nothing answers"):
        describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=nobody), out=tmp_path / "d")
    made = describe_pairs(pairs, corpus, config=DescribeConfig(engine="rule_based"), out=tmp_path / "d")
    before = digests(tmp_path / "d")
    with pytest.raises(ServerUnavailableError, match="nothing answers"):
        describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=nobody), out=tmp_path / "d", overwrite=True)
    assert digests(tmp_path / "d") == before
    assert open_artifact(tmp_path / "d").fingerprint == made.fingerprint
