"""Captions beside the triplets: read from mapped rows, and the same as dictionaries of all of them would give."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset

from megapairs_hf.artifacts.lookup import IdIndex
from megapairs_hf.core.errors import TrainingError
from megapairs_hf.core.inputs import Input
from megapairs_hf.training import TrainConfig
from megapairs_hf.training.data.batch import make_batch
from megapairs_hf.training.data.captions import CaptionPool
from megapairs_hf.training.data.dataset import Example
from tests.training.test_gradients import SETTINGS


def caption_rows(captions, seed=0):
    """Triplets of images with these captions by id, in an order of their own, and what the pool reads of them."""
    rng = np.random.default_rng(seed)
    names = [str(name) for name in rng.permutation(sorted(captions))]
    images = Dataset.from_dict(
        {"image_id": names, "caption": [captions[name] for name in names], "image": [None] * len(names)}
    )
    queries, targets = (rng.choice(names, 40).tolist() for _ in range(2))
    table = Dataset.from_dict({"q_img": queries, "t_img": targets})
    pool = SimpleNamespace(triplets=SimpleNamespace(images=images, by_id=IdIndex(images)), table=table)
    return pool, sorted({*queries, *targets})


@pytest.mark.parametrize("seed", range(4))
def test_captions_are_read_as_by_dictionaries(seed):
    """The pairs in the order of the ids, and the other images of a caption, by plain dictionaries of all of them."""
    rng = np.random.default_rng(seed)
    words = ["a red star", "a red star", "ein blauer Mond", "価格", "", None]
    captions = {f"{'éx'[i % 2]}{i}": words[rng.integers(len(words))] for i in range(60)}
    pool, names = caption_rows(captions, seed)
    config = TrainConfig(**{**SETTINGS, "batch_size": 4}, caption_share=0.25)
    read = CaptionPool(pool, config)
    pairs = [(name, captions[name]) for name in names if captions[name]]
    assert read.rows == len(pairs) > 8
    assert [Input(image=name) for name, _ in pairs] == read.inputs(range(len(pairs)))[: len(pairs)]
    assert [Input(caption) for _, caption in pairs] == read.inputs(range(len(pairs)))[len(pairs) :]
    for batch in range(6):
        indices = read.indices(batch, 4)
        expected = [
            Example(
                f"{caption[:60]} -> {name}",
                Input(caption),
                (Input(image=name),),
                (Input(caption),),
                # all images with the caption, of the batch or not
                tuple(Input(image=other) for other, same in pairs if same == caption and other != name),
            )
            for name, caption in map(pairs.__getitem__, indices)
        ]
        examples = read.examples(indices, batch)
        assert [dataclasses.replace(one, answers=()) for one in examples] == [
            dataclasses.replace(one, answers=()) for one in expected
        ]
        plans = [make_batch(0, 0, each, 0, 1, joint=False, clusters=list) for each in (examples, expected)]
        (masked, counts), (others, others_counts) = (plan.mask() for plan in plans)
        assert np.array_equal(masked, others) and counts == others_counts


def test_captions_of_no_type_and_none_at_all_are_told():
    pool, names = caption_rows(dict.fromkeys(map(str, range(30))))
    config = TrainConfig(**SETTINGS, caption_share=0.5)
    with pytest.raises(TrainingError, match=f"but 0 of the {len(names)} training images have a caption"):
        CaptionPool(pool, config)
    pool.triplets.images = pool.triplets.images.remove_columns(["caption"])
    with pytest.raises(TrainingError, match=f"but 0 of the {len(names)} training images have a caption"):
        CaptionPool(pool, config)
