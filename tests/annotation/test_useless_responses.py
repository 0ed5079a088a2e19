"""A model that writes nothing of use stops the run, through the stage and through `datasets.map`."""

import pytest
from datasets import Dataset

from megapairs_hf.annotation import (
    CaptionConfig,
    Describe,
    DescribeConfig,
    InstructConfig,
    caption_images,
    describe_pairs,
    instruct_pairs,
)
from megapairs_hf.annotation.engines.journal import Journal
from megapairs_hf.annotation.shard_io import journal_folder
from megapairs_hf.core.errors import ArtifactError, UselessResponsesError
from megapairs_hf.core.schema import PAIRS

from .conftest import CORPUS, image_row, make_artifact, make_image, pair_rows
from .test_stage import at

USELESS = {
    "refusal": ("I'm sorry, but I can't assist with that request.", "the model refuses"),
    "no_image_seen": ("I don't see any images attached to your message.", "sees no images"),
    "empty_message": ("It looks like your message is empty.", "chat template"),
    "only_thoughts": ("<think>The first image shows", "max_new_tokens"),
    "empty_reply": ("", "stop words"),
}


@pytest.fixture
def many(tmp_path):
    """A corpus of sixteen images, and 240 pairs of them in two shards."""
    rows = [image_row(f"i{n}", f"circle {n}", make_image((n * 15, 0, 0), (8, 8))) for n in range(16)]
    corpus = make_artifact(tmp_path / "corpus", "corpus", CORPUS, [rows])
    keys = [(f"i{a}", f"i{b}") for a in range(16) for b in range(16) if a != b]
    return make_artifact(tmp_path / "pairs", "pairs", PAIRS, [pair_rows(*keys[:90]), pair_rows(*keys[90:])]), corpus


def responses_kept(out):
    with Journal(journal_folder(out)) as journal:
        return len(journal)


@pytest.mark.parametrize("reason", USELESS)
def test_a_run_stops_and_says_what_it_saw(serve, many, tmp_path, reason):
    text, remedy = USELESS[reason]
    server = serve(answer=lambda body: text)
    with pytest.raises(
        UselessResponsesError, match=rf"51 of the first 51 responses are no descr.*51 {reason}.*{remedy}"
    ):
        describe_pairs(*many, config=DescribeConfig(endpoint=at(server)), out=tmp_path / "d")
    # two requests a pair, and what was in flight
    assert 102 <= responses_kept(tmp_path / "d") < 240


def test_a_resumed_run_is_watched_anew_and_an_interrupted_one_loses_nothing(serve, many, tmp_path):
    server = serve(answer=lambda body: USELESS["refusal"][0])
    config = DescribeConfig(endpoint=at(server))
    for _ in range(2):
        with pytest.raises(UselessResponsesError):
            describe_pairs(*many, config=config, out=tmp_path / "d")
    # but what was in flight
    assert sum(count - 1 for count in server.answered.values()) <= 2 * 4
    assert responses_kept(tmp_path / "d") > 204


def test_instructions_that_are_only_thoughts_say_so(serve, many, tmp_path):
    pairs, corpus = many
    described = describe_pairs(pairs, corpus, config=DescribeConfig(engine="rule_based"), out=tmp_path / "d")
    server = serve(answer=lambda body: "<think>I should write")
    with pytest.raises(UselessResponsesError, match=r"no instructions .*only_thoughts.*switch thinking off"):
        instruct_pairs(described, corpus, config=InstructConfig(endpoint=at(server)), out=tmp_path / "i")


@pytest.mark.parametrize(("count", "warns"), [(12, True), (3, False)])
def test_a_short_run_says_what_to_do_in_its_error(serve, many, tmp_path, capsys, count, warns):
    corpus = many[1]
    pairs = make_artifact(tmp_path / "few", "pairs", PAIRS, [pair_rows(*[("i0", f"i{n + 1}") for n in range(count)])])
    server = serve(answer=lambda body: "<think>The first image shows")
    with pytest.raises(ArtifactError, match=r"only_thoughts.*raise `max_new_tokens` or switch thinking off"):
        describe_pairs(pairs, corpus, config=DescribeConfig(endpoint=at(server)), out=tmp_path / "d")
    assert (f"{count} of the first {count} responses are no descriptions" in capsys.readouterr().err) is warns


def test_map_stops_too(serve, many, tmp_path):
    pairs, corpus = many
    rows = Dataset.from_list(pairs.table(["query_id", "target_id"]).to_pylist())
    server = serve(answer=lambda body: USELESS["refusal"][0])
    function = Describe(corpus, urls=[server.url], concurrency=4, backoff_s=0.01, journal=tmp_path / "j")
    with pytest.raises(UselessResponsesError, match=r"the model refuses"):
        rows.map(function, batched=True, batch_size=20)
    # the watch lives from batch to batch
    assert 102 <= sum(server.answered.values()) < 200


def test_captions_are_watched(serve, tmp_path):
    rows = [image_row(f"i{n}", "", make_image((n, 0, 0), (8, 8))) for n in range(120)]
    corpus = make_artifact(tmp_path / "corpus", "corpus", CORPUS, [rows])
    server = serve(answer=lambda body: USELESS["no_image_seen"][0])
    with pytest.raises(UselessResponsesError, match=r"no captions .*no_image_seen"):
        caption_images(corpus, config=CaptionConfig(endpoint=at(server)), out=tmp_path / "c")


def test_the_row_names_the_model_that_answered(serve, pairs, corpus, tmp_path):
    server = serve(models=["the-only-one"])
    config = DescribeConfig(model="another", endpoint=at(server))
    descriptions = describe_pairs(pairs, corpus, config=config, out=tmp_path / "d")
    assert set(descriptions.table()["model"].to_pylist()) == {"the-only-one"}
