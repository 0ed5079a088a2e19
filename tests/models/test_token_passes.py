"""`encode` of a language model: passes within their tokens, whatever `batch_size` says, and the same embeddings."""

import numpy as np
import pytest
from PIL import Image

from megapairs_hf import load_mmret
from megapairs_hf.models.token_passes import MAX_TOKENS_PER_PASS
from tests.models import tiny, tiny_mllm

FAMILIES = ("llava", "qwen2", "qwen3")
QUERY = "find it: "


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: tiny_mllm.FAMILIES[name](tmp_path_factory.mktemp(name) / "backbone") for name in FAMILIES}


def make_image(seed, size):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8))


def mixed():
    """Texts short and long, images of several sizes, and both."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["a", "red", "star", "moon"], n)) for n in (1, 30, 2, 17, 1, 9)]
    images = [make_image(i, size) for i, size in enumerate([(40, 30), (64, 64), (30, 40), (40, 30)])]
    both = [{"image": image, "text": text} for image, text in zip(images, texts, strict=False)]
    values = [*texts, *images, *both]
    return [values[i] for i in rng.permutation(len(values))]


def passes_of(model, call):
    """Rows, and tokens with padding, of each forward pass."""
    seen = []
    hook = model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0]["input_ids"].shape)))
    try:
        return call(), seen
    finally:
        hook.remove()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompt", [{}, {"prompt": QUERY}, {"prompt_name": "query"}])
@pytest.mark.parametrize("share", [0.0, 1.0, 2.5, 100.0])
def test_no_pass_has_more_tokens_and_the_embeddings_are_the_same(folders, family, prompt, share):
    model = load_mmret(folders[family], device="cpu")
    values = mixed()
    singly, alone = passes_of(model, lambda: np.stack([model.encode(value, **prompt) for value in values]))
    longest = max(rows * tokens for rows, tokens in alone)
    model.max_tokens_per_pass = max(1, int(share * longest))
    embeddings, passes = passes_of(model, lambda: model.encode(values, batch_size=8, **prompt))
    np.testing.assert_allclose(embeddings, singly, atol=2e-6)
    assert all(rows == 1 or rows * tokens <= model.max_tokens_per_pass for rows, tokens in passes)
    assert all(rows <= 8 for rows, _ in passes)
    assert sum(rows for rows, _ in passes) == len(values)
    if share == 0:
        assert len(passes) == len(values)
    if share == 100:
        # one pass each of texts, images and both
        assert len(passes) == 3


def test_only_language_models_have_the_limit(folders, tmp_path):
    assert load_mmret(folders["llava"], device="cpu").max_tokens_per_pass == MAX_TOKENS_PER_PASS
    model = load_mmret(tiny.siglip(tmp_path / "siglip"), device="cpu")
    assert model.max_tokens_per_pass is None
    assert model.encode(["a", "b"]).shape[0] == 2
