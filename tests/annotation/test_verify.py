import dataclasses
import json
import shutil

import numpy as np
import pytest
from datasets import Dataset

from megapairs_hf.annotation import (
    DescribeConfig,
    InstructConfig,
    Verify,
    VerifyConfig,
    describe_pairs,
    instruct_pairs,
)
from megapairs_hf.annotation.stage import verify_pairs
from megapairs_hf.annotation.tasks import share
from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.core.columns import add_columns
from megapairs_hf.core.errors import ArtifactError, ConfigError, ModelError, StaleArtifactError
from megapairs_hf.core.schema import PAIRS, VERIFIED
from megapairs_hf.dataset import BuildConfig, build_triplets
from tests.small import make_small_models, megapairs, small_corpus

from .conftest import make_artifact, pair_rows
from .test_stage import RULES, at, digests


@pytest.fixture
def mined(corpus, tmp_path):
    """Eight pairs in two shards; the last has no hard negative."""
    rows = pair_rows(*((f"i{n}", f"i{n + 1}") for n in range(8)))
    for n, row in enumerate(rows[:7]):
        row["negative_ids"] = [f"i{(n + 3 + k) % 12}" for k in range(3)]
    return make_artifact(tmp_path / "mined", "pairs", PAIRS, [rows[:5], rows[5:]], {"corpus": corpus.fingerprint})


@pytest.fixture
def instructed(mined, corpus, tmp_path):
    described = describe_pairs(mined, corpus, config=DescribeConfig(**RULES), out=tmp_path / "d")
    return instruct_pairs(described, corpus, config=InstructConfig(**RULES, num_instructions=3), out=tmp_path / "i")


def reds(body):
    """The first and the last number of red of the candidates, by decoding what was sent."""
    import base64
    import io

    from PIL import Image

    parts = [p["image_url"]["url"] for p in body["messages"][0]["content"] if p["type"] == "image_url"]
    images = [Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))) for url in parts]
    assert len(images) == 3
    return [image.convert("RGB").getpixel((0, 0))[0] for image in images]


def nearer(body):
    """An honest judge: the candidate whose red is nearest to the query's plus twenty."""
    query, one, two = reds(body)
    return "Yes." if abs(one - query - 20) < abs(two - query - 20) else "No."


def test_an_honest_judge_finds_all_and_a_yes_sayer_about_half(serve, instructed, mined, corpus, tmp_path):
    honest = verify_pairs(
        instructed, mined, corpus, config=VerifyConfig(endpoint=at(serve(answer=nearer))), out=tmp_path / "v"
    )
    assert honest.table().schema.equals(VERIFIED)
    rows = honest.table().to_pylist()
    assert [row["instructions"] for row in rows] == [row["instructions"] for row in instructed.table().to_pylist()]
    assert all(fit == 1 for row in rows[:7] for fit in row["verified"])
    assert np.isnan(rows[7]["verified"]).all()
    assert honest.manifest.stats["verdicts"] == {
        "beats all hard negatives": 21,
        "beats fewer": 0,
        "beats half of them or more": 0,
        "no verdict": 3,
    }
    lazy_server = serve(answer=lambda _: "Yes")
    lazy = verify_pairs(instructed, mined, corpus, config=VerifyConfig(endpoint=at(lazy_server)), out=tmp_path / "w")
    fits = [fit for row in lazy.table().to_pylist()[:7] for fit in row["verified"]]
    assert len(lazy_server.bodies) == 7 * 3 * 3
    assert 0.25 < sum(fits) / len(fits) < 0.75


def test_no_answer_is_no_verdict(serve, instructed, mined, corpus, tmp_path):
    made = verify_pairs(
        instructed, mined, corpus, config=VerifyConfig(endpoint=at(serve(answer=lambda _: "Hm"))), out=tmp_path / "v"
    )
    assert all(np.isnan(fit) for row in made.table().to_pylist() for fit in row["verified"])
    assert share([True, None, False, False]) == pytest.approx(1 / 3)


def test_a_missing_hard_negative_costs_no_pair(serve, corpus, tmp_path):
    rows = pair_rows(*((f"i{n}", f"i{n + 1}") for n in range(5)))
    for row in rows:
        row["negative_ids"] = ["i9", "gone"]
    pairs = make_artifact(tmp_path / "p", "pairs", PAIRS, [rows])
    described = describe_pairs(pairs, corpus, config=DescribeConfig(**RULES), out=tmp_path / "d")
    made = instruct_pairs(described, corpus, config=InstructConfig(**RULES), out=tmp_path / "i")
    server = serve(answer=nearer)
    held = verify_pairs(made, pairs, corpus, config=VerifyConfig(endpoint=at(server)), out=tmp_path / "v")
    assert (held.rows, held.manifest.rejected) == (5, {})
    assert len(server.bodies) == sum(len(row["instructions"]) for row in made.table().to_pylist())


@pytest.mark.parametrize("engine", ["openai", "clip"])
def test_instructions_of_other_pairs_are_refused(serve, instructed, corpus, tmp_path, engine):
    others = pair_rows(*((f"i{n}", f"i{n + 2}") for n in range(8)))
    pairs = make_artifact(tmp_path / "other", "pairs", PAIRS, [others[:5], others[5:]])
    with pytest.raises(ArtifactError, match="name the `pairs` that the instructions were made of"):
        verify_pairs(
            instructed,
            pairs,
            corpus,
            config=VerifyConfig(engine=engine, model="some", endpoint=at(serve())),
            out=tmp_path / "v",
        )


def test_the_build_applies_the_threshold(serve, instructed, mined, corpus, tmp_path):
    def judge(body):
        said = json.dumps(body)
        return (
            nearer(body) if "add" not in said and "show" not in said else {"Yes.": "No.", "No.": "Yes."}[nearer(body)]
        )

    config = VerifyConfig(negatives=2, endpoint=at(serve(answer=judge)))
    made = verify_pairs(instructed, mined, corpus, config=config, out=tmp_path / "v")
    fitting = {
        (row["query_id"], row["target_id"]): [
            text for text, fit in zip(row["instructions"], row["verified"], strict=True) if not fit < 0.5
        ]
        for row in made.table().to_pylist()
    }
    settings = BuildConfig(validation=0, min_negatives=1, min_pass_rate=0.5)
    built = build_triplets(made, mined, corpus, config=settings, out=tmp_path / "t")
    triplets = [row for i, s in enumerate(built.manifest.shards) if s["file"].startswith("triplets/")
                for row in built.shard(i).to_pylist()]  # fmt: skip
    assert {(row["q_img"], row["t_img"]): row["q_text"] for row in triplets} == {k: v for k, v in fitting.items() if v}
    assert built.manifest.rejected.get("no_instruction", 0) == sum(not v for v in fitting.values())
    with pytest.raises(ConfigError, match="run `megapairs verify`"):
        build_triplets(instructed, mined, corpus, config=settings, out=tmp_path / "u")
    everything = dataclasses.replace(settings, min_pass_rate=0.0)
    assert build_triplets(made, mined, corpus, config=everything, out=tmp_path / "x").manifest.rejected == {}


def test_clip_scores_equal_a_second_computation(instructed, mined, corpus, tmp_path, monkeypatch):
    import torch
    from PIL import Image
    from transformers import AutoModel, AutoProcessor

    place = f"{make_small_models(tmp_path / 'models', small_corpus(tmp_path / 'scenes'))}/clip"
    # as good as the images themselves
    monkeypatch.setattr("megapairs_hf.annotation.corpus_reader.JPEG_QUALITY", 100)
    config = VerifyConfig(engine="clip", model=place)
    made = verify_pairs(instructed, mined, corpus, config=config, out=tmp_path / "v")
    again = verify_pairs(instructed, mined, corpus, config=config, out=tmp_path / "w")
    assert digests(made.path) == digests(again.path)
    rows = instructed.table().append_column("negative_ids", mined.table()["negative_ids"]).to_pylist()
    mapped = add_columns(Dataset.from_list(rows), Verify(corpus, engine="clip", model=place), batch_size=5)
    for rates, expected in zip(mapped["verified"], made.table()["verified"].to_pylist(), strict=True):
        np.testing.assert_array_equal(rates, expected)
    model, processor = AutoModel.from_pretrained(place).eval(), AutoProcessor.from_pretrained(place)

    def make_image(name):
        image = Image.new("RGB", (64, 32), (int(name[1:]) * 20, 0, 0))
        return torch.nn.functional.normalize(
            model.get_image_features(**processor(images=image, return_tensors="pt")).pooler_output, dim=-1
        )[0]

    row, pair = made.table().to_pylist()[0], mined.table().to_pylist()[0]
    with torch.inference_mode():
        for text, fit in zip(row["instructions"], row["verified"], strict=True):
            tokens = processor(text=[text], padding=True, truncation=True, return_tensors="pt")
            asked = (
                make_image(row["query_id"])
                + torch.nn.functional.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)[0]
            )
            # cosines, so that a margin on scores means the same for every query
            asked = torch.nn.functional.normalize(asked, dim=-1)
            target = asked @ make_image(row["target_id"])
            scores = [float(asked @ make_image(name)) for name in row["candidate_ids"]]
            assert row["candidate_scores"][row["instructions"].index(text)] == pytest.approx(scores, abs=1e-3)
            beaten = [bool(target > asked @ make_image(name)) for name in pair["negative_ids"]]
            assert fit == pytest.approx(sum(beaten) / 3)


@pytest.fixture
def work(instructed, mined, corpus, tmp_path):
    """A work folder with a small CLIP under encoders/."""
    make_small_models(tmp_path / "encoders", small_corpus(tmp_path / "scenes"))
    for name, artifact in (("instructions", instructed), ("pairs", mined)):
        shutil.copytree(artifact.path, tmp_path / name)
    return tmp_path


def test_the_clip_of_the_work_folder_is_named_by_its_place_in_it(work):
    """`corpus` is made in the folder by its fixture already."""
    done = megapairs("verify", "--work", work, "--engine", "clip", "--model", "./encoders/clip")
    assert done.returncode == 0, done.stderr
    made = open_artifact(work / "verified")
    assert made.manifest.config["model"] == "./encoders/clip"
    assert all(0 <= fit <= 1 for row in made.table().to_pylist()[:7] for fit in row["verified"])
    config = VerifyConfig(engine="clip", model="./encoders/clip")
    parts = [open_artifact(work / name) for name in ("instructions", "pairs", "corpus")]
    absent = dataclasses.replace(config, model="./encoders/other")
    with pytest.raises(ModelError, match=r"there is no folder .*encoders/other to take the model from"):
        verify_pairs(*parts, config=absent, out=work / "w", work=work)
    with pytest.raises(ModelError, match=r"\./encoders/clip is in memory://far, which is elsewhere; copy the model"):
        verify_pairs(*parts, config=config, out=work / "w", work="memory://far")
    (work / "encoders" / "clip" / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(StaleArtifactError, match=r"inputs\.model"):
        verify_pairs(*parts, config=config, out=work / "verified", work=work)


def test_a_clip_engine_without_its_model_is_refused_before_anything_is_read(tmp_path):
    done = megapairs("verify", "--work", tmp_path, "--engine", "clip")
    assert done.returncode == 1 and done.stderr.strip().count("\n") == 0
    assert "must be a CLIP-like model for engine 'clip', such as ./encoders/clip" in done.stderr


def test_other_pairs_and_bad_settings(instructed, corpus, tmp_path):
    other = make_artifact(tmp_path / "other", "pairs", PAIRS, [pair_rows(("i0", "i1"))])
    with pytest.raises(ArtifactError, match="made of other pairs"):
        verify_pairs(instructed, other, corpus, config=VerifyConfig(), out=tmp_path / "v")
    for bad in ({"engine": "rule_based"}, {"negatives": 0}, {"max_image_side": 1}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            VerifyConfig(**bad)
