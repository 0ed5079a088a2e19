"""A message never advises what has been done already."""

import math
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch

from megapairs_hf.annotation.response_watch import FIRST, ResponseWatch, advice
from megapairs_hf.core.errors import CorpusError, TrainingError, UselessResponsesError
from megapairs_hf.corpus import CorpusConfig, make_corpus
from megapairs_hf.dataset.config import BuildConfig
from megapairs_hf.dataset.stage import _more_triplets
from megapairs_hf.hub.config import PushConfig
from megapairs_hf.hub.errors import explained_hub
from megapairs_hf.mining import MineConfig, hard_negatives, mine
from megapairs_hf.mining.config import NegativesConfig
from megapairs_hf.mining.knn import plan
from megapairs_hf.mining.negatives import _more_candidates
from megapairs_hf.training.task import StepOutput
from megapairs_hf.training.task_trainer import not_finite
from tests.making import draw


def rows(*embeddings):
    """A data set with the column `clip`."""
    columns = {"image_id": [str(i) for i in range(len(embeddings))], "clip": [list(map(float, e)) for e in embeddings]}
    features = {"image_id": datasets.Value("string"), "clip": datasets.List(datasets.Value("float32"), length=2)}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What was mined before is not looked up."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


CIRCLE = [(np.cos(angle), np.sin(angle)) for angle in np.linspace(0, 3, 12)]


@pytest.mark.parametrize("kind", ["absolute", "quantile"])
def test_one_image_has_no_pairs_whatever_the_range(kind):
    with pytest.raises(Exception, match="add images") as error:
        mine(rows((1, 0)), relations=["clip"], range_kind=kind, similarity_range=(0.1, 0.9))
    assert "range" not in str(error.value)
    # nor when the empty result is looked up
    with pytest.raises(Exception, match=r"add images$"):
        mine(rows((1, 0)), relations=["clip"], range_kind=kind, similarity_range=(0.1, 0.9))


@pytest.mark.parametrize(
    ("settings", "present", "absent"),
    [
        ({"range_kind": "absolute"}, ["another `similarity_range`", "range_kind: quantile"], ["neighbors`"]),
        ({"range_kind": "absolute", "neighbors": 4}, ["range_kind: quantile", "more `neighbors`"], []),
        (
            {"relations": [{"name": "clip", "range_kind": "absolute", "similarity_range": [-0.999, -0.998]}]},
            ["[-0.999, -0.998]"],
            ["[-0.99, -0.98]"],
        ),
    ],
)
def test_mining_advises_what_is_not_set(settings, present, absent):
    settings = {"relations": ["clip"], "similarity_range": [-0.99, -0.98], "neighbors": 40, **settings}
    with pytest.raises(Exception, match="no pair lies in the similarity range") as error:
        mine(rows(*CIRCLE), **settings)
    for part in present:
        assert part in str(error.value)
    for part in absent:
        assert part not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "images", "sentence"),
    [
        ({"num_negatives": 2}, 1000, "; raise `range_max`, or raise `near_duplicate`"),
        ({"num_negatives": 2, "near_duplicate": None}, 1000, "; raise `range_max`"),
        ({"num_negatives": 2, "near_duplicate": None}, 15, "; there are no more images, so add some"),
        ({"near_duplicate": None, "relative_margin": 0.1, "range_max": 40}, 30, "; lower `relative_margin`"),
        (
            {"near_duplicate": None, "max_score": 0.5, "min_score": 0.4},
            30,
            "; raise `max_score`, or lower `min_score`",
        ),
    ],
)
def test_hard_negatives_advise_what_is_set(settings, images, sentence):
    assert _more_candidates(NegativesConfig(**settings), images) == sentence


def test_hard_negatives_say_so(capsys):
    hard_negatives(rows(*CIRCLE[:3]), column="clip", queries=rows(*CIRCLE[:1]), positives=["1"], near_duplicate=None)
    assert "there are no more images, so add some" in capsys.readouterr().err


def test_one_thread_is_not_made_fewer(monkeypatch):
    monkeypatch.setattr(plan, "LEAST_BYTES", 10**15)
    for threads, fewer in ((1, False), (2, True)):
        with pytest.raises(Exception, match="memory_gb must be more than") as error:
            plan.make_plan(MineConfig(threads=threads), 100, 8, same=True, integers=False)
        assert ("lower `threads`" in str(error.value)) is fewer


@pytest.mark.parametrize(("precision", "advised"), [("no", False), ("bf16", True), ("fp16", True)])
def test_full_precision_is_advised_to_who_has_another(tmp_path, precision, advised):
    output = StepOutput(torch.tensor(math.nan), ["a"], {})
    config = SimpleNamespace(mixed_precision=precision)
    error = not_finite("loss", math.nan, 3, output, config, tmp_path)
    assert isinstance(error, TrainingError) and "lower `lr`" in str(error)
    assert ("mixed_precision: no" in str(error)) is advised


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"response_format": "numbered", "min_instructions": 3}, "set `response_format` to `json`, or name another"),
        ({"response_format": "json", "min_instructions": 3}, "lower `min_instructions`, or name another `model`"),
        ({"response_format": "json", "min_instructions": 1}, "name another `model`"),
    ],
)
def test_json_is_not_advised_to_who_has_it(settings, sentence):
    assert advice("too_few_instructions", settings).startswith(sentence)
    watch = ResponseWatch("instructions", settings)
    with pytest.raises(UselessResponsesError) as error:
        for _ in range(FIRST):
            watch.add("none", "too_few_instructions")
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ["min_negatives"]),
        ({"min_negatives": 1, "validation": 0.0}, []),
        ({"min_negatives": 1, "validation": 0.1, "min_pass_rate": 0.5}, ["min_pass_rate", "validation"]),
        ({"min_negatives": 1, "validation": 0.0, "exclude": "ids.txt"}, ["exclude"]),
    ],
)
def test_building_advises_what_can_be_lowered(settings, names):
    sentence = _more_triplets(BuildConfig(**settings))
    assert all(f"`{name}`" in sentence for name in names)
    least = {"min_negatives", "min_pass_rate", "validation", "exclude"} - set(names)
    assert settings == {} or not any(f"`{name}`" in sentence for name in least)


@pytest.mark.parametrize(
    ("settings", "present", "absent"),
    [
        ({}, "name their column with --caption_column", "names is empty"),
        (
            {"caption_column": "title"},
            "column 'title' that --caption_column names is empty",
            "with --caption_column",
        ),
        ({"caption_template": "{title}"}, "--caption_template names fields that are empty", "or make them with"),
    ],
)
def test_a_corpus_without_captions_advises_what_is_not_named(tmp_path, settings, present, absent):
    images = [{"bytes": None, "path": str(tmp_path / f"{i}.png")} for i in range(2)]
    for image, color in zip(images, ("teal", "crimson"), strict=True):
        draw(color, "circle", "white").save(image["path"])
        image["bytes"] = open(image["path"], "rb").read()  # noqa: PTH123
    features = datasets.Features({name: datasets.Value("string") for name in ("caption", "title")})
    features["image"] = datasets.Image()
    made = datasets.Dataset.from_dict({"caption": ["", ""], "title": ["", ""], "image": images}, features=features)
    made.to_parquet(str(tmp_path / "rows.parquet"))
    config = CorpusConfig("parquet", path=str(tmp_path / "rows.parquet"), captions="required", **settings)
    with pytest.raises(CorpusError) as error:
        make_corpus(config, out=tmp_path / "corpus")
    assert present in str(error.value) and absent not in str(error.value)


@pytest.mark.parametrize("create_pr", [False, True])
def test_a_pull_request_is_not_advised_to_who_opens_one(create_pr):
    import httpx
    from huggingface_hub.errors import HfHubHTTPError

    response = httpx.Response(403, request=httpx.Request("POST", "https://hub"))
    with pytest.raises(Exception, match="token with write access") as error:
        with explained_hub(PushConfig("org/a", create_pr=create_pr)):
            raise HfHubHTTPError("no", response=response)
    assert ("--create-pr" in str(error.value)) is not create_pr
