"""Votes of the page become triplets: what `eval` measures and `train` learns is what was voted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from megapairs_hf.artifacts.workspace import read_results
from megapairs_hf.cli import main
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.dataset import load_triplets
from megapairs_hf.evaluation.config import EvalConfig
from megapairs_hf.evaluation.entry import ModelSource, evaluate
from megapairs_hf.search import SearchIndex
from megapairs_hf.search.config import SearchConfig, VotesConfig
from megapairs_hf.search.page.conversation import QueryStep
from megapairs_hf.search.page.votes import Votes
from megapairs_hf.search.vote_triplets import read_votes, triplets_of_votes
from tests.search.stand_in import ColorModel, color_folder

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def index(tmp_path: Path) -> SearchIndex:
    return SearchIndex.build(ColorModel(), color_folder(tmp_path / "photos"), tmp_path / "idx")


def voted(index: SearchIndex, query: QueryStep, **votes: int) -> None:
    """Vote as the page does; names are colors with a number."""
    for name, vote in votes.items():
        color, _, number = name.partition("_")
        Votes(index.folder / "votes.jsonl").add(index, query, index.rows.row_of(f"{color}/{number}.png"), vote, None)


def step(index: SearchIndex, name: str, text: str) -> QueryStep:
    return QueryStep(text, row=index.rows.row_of(name), label=name)


def cast(index: SearchIndex, tmp_path: Path) -> None:
    """Two queries that make triplets, one of a visitor's image, and three that make none."""
    voted(index, step(index, "red/00.png", "in blue"), blue_00=1, blue_01=1, green_00=-1, white_00=1)
    voted(index, step(index, "red/00.png", "in blue"), white_00=-1)
    own = tmp_path / "own.png"
    Image.new("RGB", (30, 20), (200, 200, 20)).save(own)
    voted(index, QueryStep("in green", file=str(own), label="own.png"), green_01=1, yellow_00=-1)
    voted(index, QueryStep("white"), white_00=1)
    voted(index, step(index, "red/00.png", ""), red_01=1)
    voted(index, step(index, "red/00.png", "in black"), white_01=-1)


@pytest.mark.parametrize("previews", [0, 16])
def test_votes_are_the_triplets_of_their_data_set(tmp_path: Path, previews: int) -> None:
    config = SearchConfig(preview_side=previews)
    index = SearchIndex.build(ColorModel(), color_folder(tmp_path / "photos"), tmp_path / "idx", config=config)
    cast(index, tmp_path)
    artifact = triplets_of_votes(index, tmp_path / "votes")
    triplets = load_triplets(artifact.path, check=True)
    rows = [{name: row[name] for name in ("q_img", "q_text", "t_img", "hns")} for row in triplets.dataset]
    wrong = ["green/00.png", "white/00.png"]
    assert rows[:2] == [
        {"q_img": "red/00.png", "q_text": ["in blue"], "t_img": name, "hns": ["red/00.png", *wrong]}
        for name in ("blue/00.png", "blue/01.png")
    ]
    visitor = rows[2]["q_img"]
    assert rows[2] == {
        "q_img": visitor,
        "q_text": ["in green"],
        "t_img": "green/01.png",
        "hns": [visitor, "yellow/00.png"],
    }
    assert triplets.image(visitor).getpixel((3, 3)) == (200, 200, 20)
    assert sorted(triplets.images["image_id"]) == sorted([visitor, *index.generation.rows["image_id"].to_pylist()])
    assert artifact.manifest.rejected == {"no_query_image": 1, "no_instruction": 1, "no_positive": 1}
    assert triplets_of_votes(index, tmp_path / "votes").fingerprint == artifact.fingerprint
    few = triplets_of_votes(index, tmp_path / "few", config=VotesConfig(gallery="voted", language="en"))
    assert sorted(load_triplets(few.path).images["image_id"]) == sorted({*triplets.image_ids()})
    assert set(load_triplets(few.path).dataset["language"]) == {"en"}


def test_eval_measures_by_votes(index: SearchIndex, tmp_path: Path) -> None:
    cast(index, tmp_path)
    artifact = triplets_of_votes(index, tmp_path / "votes")
    model = ColorModel()
    source = ModelSource(lambda: model, "colors", "1")
    config = EvalConfig(strategies=("fused",), top=10)
    evaluate({"colors": source}, artifact, out=tmp_path / "results", config=config)
    records = {(r["split"], r["metric"]): r for r in read_results(tmp_path / "results")}
    # a second implementation: rank all images of the index but the query's own, by cosine
    stored = {n: index.rows.embeddings([i])[0] for i, n in enumerate(index.generation.rows["image_id"].to_pylist())}
    triplets = load_triplets(artifact.path)
    queries: dict[tuple[str, str], dict[str, Any]] = {}
    for row in triplets.dataset:
        one = queries.setdefault((row["q_img"], row["q_text"][0]), {"right": set(), "wrong": set(row["hns"][1:])})
        one["right"].add(row["t_img"])
    ranks, judged = [], []
    for (name, text), one in queries.items():
        vector = model.encode([{"image": triplets.image(name), "text": text}])[0]
        order = sorted((n for n in stored if n != name), key=lambda n: -float(stored[n] @ vector))
        ranks.append(1 + min(order.index(n) for n in one["right"]))
        among = [n for n in order if n in one["right"] | one["wrong"]]
        judged.append(among[0] in one["right"])
    assert records["triplets", "recall@1"]["value"] == pytest.approx(np.mean(np.array(ranks) <= 1))
    assert records["triplets", "recall@5"]["value"] == pytest.approx(np.mean(np.array(ranks) <= 5))
    assert records["triplets", "recall@5"]["gallery"] == len(index)
    assert records["hard negatives", "recall@1"]["value"] == pytest.approx(np.mean(judged))
    assert records["hard negatives", "recall@1"]["queries"] == 2


def test_the_commands_lead_from_votes_to_a_trained_model(
    models: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = color_folder(tmp_path / "photos")
    clip, idx = f"{models}/clip", tmp_path / "idx"
    assert main(["search", "index", clip, str(photos), "--out", str(idx)]) == 0
    index = SearchIndex.open(idx)
    for color in ("blue", "green", "white"):
        votes = {f"{color}_00": 1, f"{color}_01": 1, "black_00": -1}
        voted(index, step(index, "red/00.png", f"in {color}"), **votes)
    assert main(["search", "votes", str(idx), "--out", str(tmp_path / "votes"), "--language", "en"]) == 0
    assert main(["eval", clip, str(tmp_path / "votes"), "--out", str(tmp_path / "results")]) == 0
    shown = capsys.readouterr().out
    assert "votes" in shown
    assert {r["benchmark"] for r in read_results(tmp_path / "results")} == {"votes"}
    small = ["--steps", "2", "--batch-size", "2", "--warmup-steps", "0", "--negatives", "1", "--dtype", "float32"]
    words = ["train", "--triplets", str(tmp_path / "votes"), "--out", str(tmp_path / "model"), "--model", clip]
    assert main([*words, *small]) == 0, capsys.readouterr().err
    assert main(["eval", str(tmp_path / "model"), str(tmp_path / "votes"), "--out", str(tmp_path / "after")]) == 0


def test_a_benchmark_of_the_field_still_needs_its_data(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", f"{models}/clip", "circo", "--out", "results"]) == 1
    assert "circo needs --data DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "3",
        json.dumps({"image_id": "a", "vote": 0}),
        json.dumps({"image_id": "a", "vote": True}),
        json.dumps({"image_id": "", "vote": 1}),
        json.dumps({"image_id": 7, "vote": 1}),
        json.dumps({"image_id": "a", "vote": 1, "query_file": "../../secret.png"}),
        json.dumps({"image_id": "a", "vote": 1, "query_file": "/etc/passwd"}),
    ],
)
def test_a_line_that_is_no_vote_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "votes.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(ArtifactError, match=r"does not exist; vote on results of `megapairs search serve`, or"):
        read_votes(tmp_path / "absent.jsonl")
    with pytest.raises(ArtifactError, match=r"votes\.jsonl line 2 is no vote"):
        read_votes(tmp_path / "votes.jsonl")


def test_votes_that_make_nothing_are_one_sentence(index: SearchIndex, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        triplets_of_votes(index, tmp_path / "votes")
    voted(index, QueryStep("white"), white_00=1)
    with pytest.raises(ArtifactError, match=r"no vote .* makes a triplet .no_query_image"):
        triplets_of_votes(index, tmp_path / "votes")


def test_an_image_that_is_gone_since_is_left_out_and_said(index: SearchIndex, tmp_path: Path) -> None:
    voted(index, step(index, "red/00.png", "in blue"), blue_00=1, blue_01=1)
    (tmp_path / "photos" / "blue" / "01.png").unlink()
    updated = SearchIndex.open(index.folder, model=ColorModel())
    updated.update()
    artifact = triplets_of_votes(updated, tmp_path / "votes")
    assert artifact.manifest.rejected == {"not_in_index": 1}
    assert load_triplets(artifact.path).dataset["t_img"] == ["blue/00.png"]
