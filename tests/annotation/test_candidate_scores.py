"""A score per candidate: the probability of yes, or a rating; from the server through the build into the triplets."""

import json
import math

import numpy as np
import pytest
from datasets import Dataset

from megapairs_hf.annotation import Verify, VerifyConfig
from megapairs_hf.annotation.client.logprobs import yes_probability
from megapairs_hf.annotation.client.messages import Response
from megapairs_hf.annotation.engines.journal import Journal
from megapairs_hf.annotation.stage import verify_pairs
from megapairs_hf.annotation.verify_tasks import rating_of
from megapairs_hf.core.columns import add_columns
from megapairs_hf.core.errors import ConfigError, ServerUnavailableError
from megapairs_hf.core.schema import VERIFIED
from megapairs_hf.dataset import BuildConfig, JoinTriplets, build_triplets, load_triplets
from megapairs_hf.dataset.marks import PairMark, marks_bytes

from .double import completion
from .test_stage import at, digests
from .test_verify import instructed, mined  # noqa: F401


def fit(body):
    """How well a candidate fits, from 0 to 1: red is nearest to the query's plus twenty, by decoding what was sent."""
    import base64
    import io

    from PIL import Image

    parts = [p["image_url"]["url"] for p in body["messages"][0]["content"] if p["type"] == "image_url"]
    images = [Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))) for url in parts]
    query, candidate = (image.convert("RGB").getpixel((0, 0))[0] for image in images)
    return 1 / (1 + abs(candidate - query - 20) / 20)


def listed(yes, no=None, said="Yes"):
    """The part of a completion where a server lists the probabilities of tokens."""
    tokens = [{"token": "Yes", "logprob": math.log(yes)}, {"token": " no", "logprob": math.log(no or 1 - yes)}]
    return {"content": [{"token": said, "logprob": math.log(yes), "top_logprobs": tokens}]}


def with_probabilities(body, _):
    """A server that lists the tokens of each response where it is asked to."""
    if "seed" not in body or not body.get("logprobs"):
        return None
    value = completion("Yes")
    value["choices"][0]["logprobs"] = listed(0.9 * fit(body) + 0.05)
    return "body", value


def rated(body):
    """A server without probabilities, which says yes, and rates where it is asked to."""
    words = " ".join(p.get("text", "") for p in body["messages"][0]["content"])
    return f"{1 + 4 * round(2 * fit(body)) / 2:.0f}" if "from 1" in words else "Yes."


def check(artifact, pairs, score):
    """Every row has the target and its hard negatives, each with the score of the images that were sent."""
    assert artifact.table().schema.equals(VERIFIED)
    for row, pair in zip(artifact.table().to_pylist(), pairs, strict=True):
        if not pair["negative_ids"]:
            assert row["candidate_ids"] == row["candidate_scores"] == []
            assert np.isnan(row["verified"]).all()
            continue
        assert row["candidate_ids"][0] == row["target_id"]
        assert sorted(row["candidate_ids"][1:]) == sorted(pair["negative_ids"])
        expected = [score(row["query_id"], name) for name in row["candidate_ids"]]
        np.testing.assert_allclose(row["candidate_scores"], [expected] * len(row["instructions"]), atol=0.02)
        beaten = np.mean([expected[0] > other for other in expected[1:]])
        assert row["verified"] == pytest.approx([beaten] * len(row["instructions"]))


def nearness(query, name):
    return 1 / (1 + abs(int(name[1:]) - int(query[1:]) - 1))


def test_the_score_is_the_probability_of_yes(serve, instructed, mined, corpus, tmp_path):  # noqa: F811
    server = serve(script=with_probabilities)
    config = VerifyConfig(judgment="pointwise", endpoint=at(server))
    made = verify_pairs(instructed, mined, corpus, config=config, out=tmp_path / "v")
    check(made, mined.table().to_pylist(), lambda query, name: 0.9 * nearness(query, name) + 0.05)
    # seven pairs with three instructions and four candidates, one request each
    assert len(server.bodies) == 7 * 3 * 4
    assert made.manifest.stats["verdicts"]["no verdict"] == 3
    again = verify_pairs(instructed, mined, corpus, config=config, out=tmp_path / "w")
    assert digests(made.path) == digests(again.path)


def test_where_no_token_is_listed_it_is_a_rating(serve, instructed, mined, corpus, tmp_path):  # noqa: F811
    server = serve(answer=rated)
    config = VerifyConfig(judgment="pointwise", endpoint=at(server))
    made = verify_pairs(instructed, mined, corpus, config=config, out=tmp_path / "v")
    check(made, mined.table().to_pylist(), lambda query, name: round(2 * nearness(query, name)) / 2)
    assert len(server.bodies) == 2 * 7 * 3 * 4


def test_a_server_that_refuses_to_list_tokens_is_asked_without(serve, instructed, mined, corpus, tmp_path):  # noqa: F811
    server = serve(answer=rated, script=lambda body, _: ("refuse", "no logprobs here") if "logprobs" in body else None)
    config = VerifyConfig(judgment="pointwise", endpoint=at(server, concurrency=1))
    made = verify_pairs(instructed, mined, corpus, config=config, out=tmp_path / "v")
    check(made, mined.table().to_pylist(), lambda query, name: round(2 * nearness(query, name)) / 2)
    assert sum("logprobs" in body for body in server.bodies) == 1


def test_neither_is_no_score(serve, instructed, mined, corpus, tmp_path):  # noqa: F811
    config = VerifyConfig(judgment="pointwise", endpoint=at(serve(answer=lambda _: "Hm")))
    made = verify_pairs(instructed, mined, corpus, config=config, out=tmp_path / "v")
    rows = made.table().to_pylist()[:7]
    assert all(np.isnan(row["verified"]).all() and np.isnan(row["candidate_scores"]).all() for row in rows)


def test_the_function_has_the_stages_scores(serve, instructed, mined, corpus, tmp_path):  # noqa: F811
    server = serve(script=with_probabilities)
    config = VerifyConfig(judgment="pointwise", endpoint=at(server))
    made = verify_pairs(instructed, mined, corpus, config=config, out=tmp_path / "v").table().to_pylist()
    rows = instructed.table().append_column("negative_ids", mined.table()["negative_ids"]).to_pylist()
    # the pair without hard negatives comes first, alone in its batch
    rows, made = [rows[-1], *rows[:-1]], [made[-1], *made[:-1]]
    function = Verify(corpus, config=config, journal=tmp_path / "journal")
    plain = Dataset.from_list(rows).map(function, batched=True, batch_size=1)
    for mapped in (plain, add_columns(Dataset.from_list(rows), function, batch_size=3)):
        for row, expected in zip(mapped, made, strict=True):
            assert row["candidate_ids"] == expected["candidate_ids"]
            np.testing.assert_array_equal(row["candidate_scores"], expected["candidate_scores"])
    joined = plain.map(JoinTriplets(), batched=True)
    for row in joined.select(range(1, 8)):
        assert np.shape(row["candidate_scores"]) == (len(row["q_text"]), 1 + len(row["hns"]))


def test_the_scores_reach_the_triplets(serve, instructed, mined, corpus, tmp_path):  # noqa: F811
    config = VerifyConfig(judgment="pointwise", negatives=2, endpoint=at(serve(script=with_probabilities)))
    made = verify_pairs(instructed, mined, corpus, config=config, out=tmp_path / "v")
    first = made.table().to_pylist()[0]
    mark = PairMark(first["query_id"], first["target_id"], first["instructions"][0], "edit", "make it purple")
    (tmp_path / "marks.jsonl").write_bytes(marks_bytes([mark]))
    settings = BuildConfig(validation=0, min_negatives=1, marks=str(tmp_path / "marks.jsonl"))
    build_triplets(made, mined, corpus, config=settings, out=tmp_path / "t")
    by_pair = {(row["query_id"], row["target_id"]): row for row in made.table().to_pylist()}
    triplets = load_triplets(tmp_path / "t").dataset
    for row in triplets:
        known = by_pair[row["q_img"], row["t_img"]]
        if not known["candidate_ids"]:
            assert row["candidate_scores"] == []
            continue
        for text, scores in zip(row["q_text"], row["candidate_scores"], strict=True):
            assert len(scores) == 1 + len(row["hns"]) and math.isnan(scores[1])
            names = [row["t_img"], *row["hns"]]
            if text == "make it purple":
                assert np.isnan(scores).all()
                continue
            expected = known["candidate_scores"][known["instructions"].index(text)]
            given = {n: s for n, s in zip(names, scores, strict=True) if not math.isnan(s)}
            assert given == pytest.approx(dict(zip(known["candidate_ids"], expected, strict=True)))
    assert sum(bool(row["candidate_scores"]) for row in triplets) >= 6


def test_settings_that_say_nothing_are_refused():
    with pytest.raises(ConfigError, match="left out for engine 'clip'"):
        VerifyConfig(engine="clip", model="./clip", judgment="pointwise")
    with pytest.raises(ConfigError, match="pairwise or pointwise"):
        VerifyConfig(judgment="listwise")


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [
        (listed(0.8), 0.8),
        (listed(0.6, 0.2), 0.75),
        (listed(0.6, 0.2, said="Hm"), None),
        ({"content": [{"token": "\u2581no", "logprob": math.log(0.7)}]}, 0.0),
        ({"content": [{"token": "\n", "logprob": 0.0}, {"token": "Yes.", "logprob": 0.0, "top_logprobs": None}]}, 1.0),
        ({"content": [{"token": "yes", "logprob": "much"}]}, None),
        ({"content": [{"token": "yes", "logprob": math.nan, "top_logprobs": [3, {"token": 1}, None]}]}, None),
        ({"content": [{"token": "yes", "logprob": 1e300}]}, 1.0),
        ({"content": {"token": "yes"}}, None),
        ({"content": [None, 7]}, None),
        ({}, None),
        ([], None),
        (None, None),
        ("yes", None),
    ],
)
def test_probabilities_of_whatever_a_server_sends(logprobs, expected):
    assert yes_probability(logprobs, "Yes") == (None if expected is None else pytest.approx(expected))


def spoken(*tokens):
    """Tokens of a response; beside each that says yes or no its contrary, a ninth as probable."""
    content = []
    for token in tokens:
        contrary = {"yes": "no", "no": "yes"}.get(token.strip(" .\u0120").lower())
        listed = [{"token": contrary, "logprob": math.log(0.1)}] if contrary else []
        content.append({"token": token, "logprob": math.log(0.9), "top_logprobs": listed})
    return {"content": content}


@pytest.mark.parametrize(
    ("tokens", "text", "expected"),
    [
        ((" Yes",), " Yes", 0.9),
        (("YES", "."), "YES.", 0.9),
        ((" ", "yes"), " yes", 0.9),
        (("Ġno", "."), " no.", 0.1),
        (("The", " answer", " is", " no"), "The answer is no", 0.1),
        # thoughts, which a server lists whether it tells them or not
        (("<think>", " no", " no", "</think>", "\n", "Yes"), "<think> no no</think>\nYes", 0.9),
        (("<think>", " no", " no", "</think>", "\n", "Yes"), "Yes", 0.9),
        ((" no", ",", " rather", " ...", "Yes"), "Yes", 0.9),
        (("<think>", " no", " no", " or"), "<think> no no or", None),
        ((" no", " no", " or"), "", None),
        (("<", "think", ">", " no"), "<think> no", None),
    ],
)
def test_no_word_of_the_thoughts_counts(tokens, text, expected):
    value = yes_probability(spoken(*tokens), text)
    assert value == (None if expected is None else pytest.approx(expected))


def test_probabilities_and_ratings_do_not_mix(serve, instructed, mined, corpus, tmp_path):  # noqa: F811
    """A server that lists the tokens of most responses: what has no probability has no score, and is not rated."""

    def some(body, count):
        return None if 0.3 < fit(body) < 0.36 else with_probabilities(body, count)

    server = serve(answer=rated, script=some)
    config = VerifyConfig(judgment="pointwise", endpoint=at(server))
    made = verify_pairs(instructed, mined, corpus, config=config, out=tmp_path / "v").table().to_pylist()
    assert len(server.bodies) == 7 * 3 * 4
    rows = [(row["query_id"], name, scores[i]) for row in made for scores in row["candidate_scores"]
            for i, name in enumerate(row["candidate_ids"])]  # fmt: skip
    unsaid = [nearness(query, name) == 1 / 3 for query, name, _ in rows]
    assert any(unsaid) and not all(unsaid)
    for (query, name, score), silent in zip(rows, unsaid, strict=True):
        assert math.isnan(score) if silent else score == pytest.approx(0.9 * nearness(query, name) + 0.05, abs=0.02)


@pytest.mark.parametrize("server_says", ["probabilities", "ratings"])
def test_resumed_equals_uninterrupted(serve, instructed, mined, corpus, tmp_path, server_says):  # noqa: F811
    """A server that breaks in the middle, and the same run again: the same bytes, and nothing is asked twice."""
    broken = []

    def script(body, count):
        if len(server.bodies) > 30 and not broken:
            return ("status", 401)
        return with_probabilities(body, count) if server_says == "probabilities" else None

    server = serve(answer=rated, script=script)
    config = VerifyConfig(judgment="pointwise", endpoint=at(server, concurrency=2))
    with pytest.raises(ServerUnavailableError):
        verify_pairs(instructed, mined, corpus, config=config, out=tmp_path / "v")
    before = len(server.bodies)
    broken.append("mended")
    resumed = verify_pairs(instructed, mined, corpus, config=config, out=tmp_path / "v")
    after = len(server.bodies)
    whole = verify_pairs(instructed, mined, corpus, config=config, out=tmp_path / "w")
    assert digests(resumed.path) == digests(whole.path)
    assert 25 <= len(server.bodies) - after - (after - before) <= before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", 0.5),
        ("4/5", 0.75),
        ("Rating: 1.", 0.0),
        ("**5**", 1.0),
        ("2,5", 0.375),
        ("I would say 4.5 of 5", 0.875),
        ("10", None),
        ("5.5", None),
        ("0", None),
        ("none", None),
        ("<think>maybe 2</think>4", 0.75),
        ("Rating (1-5): 4", 0.75),
        ("On a scale of 1 to 5: 4", 0.75),
        ("From 1 to 5, I say 2", 0.25),
        # cut off
        ("On a scale of 1", None),
        ("On a scale from 1 to", None),
        ("0/5", None),
        ("7/5", None),
        ("4/10", None),
        ("-3", None),
        ("\u22122", None),
        ("6", None),
        ("Four", 0.75),
        ("**Five** stars", 1.0),
        ("Rating: two.", 0.25),
        ("three out of five", 0.5),
        ("One could say that", None),
        ("This one fits", None),
        ("six", None),
        ("", None),
    ],
)
def test_ratings(text, expected):
    value = rating_of(text)
    assert math.isnan(value) if expected is None else value == expected


def test_a_journal_from_before_there_were_scores_is_read(tmp_path):
    with Journal(tmp_path) as journal:
        journal.add_all([("0" * 32, Response("Yes", yes=0.25))])
    file = next(tmp_path.glob("*.jsonl"))
    with Journal(tmp_path) as journal:
        assert journal.get("0" * 32).yes == 0.25
    # nor had its lines a checksum
    record = {name: value for name, value in json.loads(file.read_text()).items() if name not in {"yes", "crc32"}}
    file.write_text(json.dumps(record) + "\n")
    with Journal(tmp_path) as journal:
        assert journal.get("0" * 32) == Response("Yes")
