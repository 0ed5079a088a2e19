"""A row with an error through every row function: it is passed over, keeps its error, and disturbs no type."""

import datasets
import pytest
from datasets import Dataset

from megapairs_hf.annotation import Caption, Describe, Instruct, Verify
from megapairs_hf.core.columns import add_columns, drop_errors
from megapairs_hf.corpus.check import CheckImages
from megapairs_hf.dataset.join import JoinTriplets
from megapairs_hf.embedding.embed import EmbedImages, EmbedTexts
from tests.annotation.conftest import make_image
from tests.annotation.double import ChatDouble, describe, instruct
from tests.annotation.test_verify import nearer

BAD = "broken: an earlier function said so"
FUNCTIONS = {
    "CheckImages": lambda **_: CheckImages(image_column="image"),
    "Caption": lambda url, **_: Caption(urls=[url], concurrency=1),
    "EmbedImages": lambda models, **_: EmbedImages(f"{models}/clip", batch_size=2, device="cpu"),
    "EmbedTexts": lambda models, **_: EmbedTexts(f"{models}/clip", batch_size=2, device="cpu"),
    "Describe": lambda url, images, **_: Describe(images, urls=[url], concurrency=1),
    "Describe by rules": lambda images, **_: Describe(images, engine="rule_based"),
    "Instruct": lambda url, **_: Instruct(urls=[url], concurrency=1),
    "Instruct by rules": lambda images, **_: Instruct(images, engine="rule_based"),
    "Verify": lambda url, images, **_: Verify(images, urls=[url], concurrency=1),
    "JoinTriplets": lambda **_: JoinTriplets(),
}
ANSWERS = {"Instruct": instruct, "Verify": nearer}
ASKED = {"Caption": 2, "Describe": 2, "Instruct": 2, "Verify": 2}


def make_rows():
    """Five rows; the first three have an error, so that whole batches have nothing to say of their types."""
    errors = [BAD, BAD, BAD, "", ""]
    return Dataset.from_list(
        [
            {
                "image_id": f"i{n}",
                "image": {"bytes": make_image((n * 40, 0, 0)), "path": None},
                "caption": f"a photo of {n + 2} red circles",
                "query_id": f"i{n}",
                "target_id": f"i{(n + 1) % 5}",
                "description": f"Both show circles. The target image has {n + 3} of them.",
                "instructions": ["add one more circle"],
                "negative_ids": [f"i{(n + 2) % 5}"],
                "error": error,
            }
            for n, error in enumerate(errors)
        ]
    )


@pytest.fixture
def server(request):
    double = ChatDouble(answer=ANSWERS.get(request.node.callspec.params["name"], describe))
    yield double
    double.close()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_row_with_an_error_is_passed_over(name, server, models, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    rows = make_rows()
    function = FUNCTIONS[name](url=server.url, models=models, images=rows.remove_columns(["error"]))
    compute, seen = type(function).compute, []

    def watched(self, chosen, rank):
        seen.extend(chosen.values("image_id"))
        return compute(self, chosen, rank)

    monkeypatch.setattr(type(function), "compute", watched)
    made = add_columns(rows, function, batch_size=2)
    assert seen == ["i3", "i4"]
    assert len(server.bodies) == ASKED.get(name, 0)
    assert made["error"][:] == [BAD, BAD, BAD, "", ""]
    assert {column: made.features[column] for column in function.features} == function.features
    assert all(value is not None for column in function.features for value in made[column])
    assert add_columns(rows.select(range(3)), function)["error"][:] == [BAD] * 3
    assert len(seen) == 2
    kept = drop_errors(made)
    assert kept.to_list() == made.select([3, 4]).to_list()
