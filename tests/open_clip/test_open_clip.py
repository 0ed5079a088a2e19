import numpy as np
import pytest
import torch
from safetensors.torch import save_model

from megapairs_hf.core.errors import ModelError
from megapairs_hf.embedding import EmbedConfig, EncoderConfig, embed_corpus
from megapairs_hf.embedding.config import ModelSettings
from megapairs_hf.embedding.encoders import load_encoders
from megapairs_hf.embedding.shared_towers import drop_unused_towers
from tests.small import small_corpus

pytestmark = pytest.mark.open_clip


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("few") / "corpus", count=6)


@pytest.fixture(scope="module", params=["EVA02-B-16", "ViT-B-32"])
def architecture(request, tmp_path_factory):
    """An architecture from its configuration with random weights, which lie in a file."""
    import open_clip

    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms(request.param)
    file = tmp_path_factory.mktemp("weights") / f"{request.param}.safetensors"
    save_model(model, str(file))
    return request.param, str(file), model.eval(), transform


def embedded(corpus, architecture, out, kind, **settings):
    name, file, _, _ = architecture
    model = EncoderConfig("open", name, kind, "open_clip", file)
    config = EmbedConfig(encoders=(model,), batch_size=4, **{"dtype": "float32", **settings})
    made = embed_corpus(corpus, config=config, out=out, work=out)
    return made["open"].arrays()


def unit(features):
    return torch.nn.functional.normalize(features.float(), dim=1).numpy()


def test_images_are_those_of_open_clip(few, architecture, tmp_path):
    _, _, model, transform = architecture
    pixels = torch.stack([transform(row["image"]) for row in few_rows(few)])
    with torch.inference_mode():
        expected = unit(model.encode_image(pixels))
    found = embedded(few, architecture, tmp_path / "out", "image", draft=False)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 2e-3
    assert np.allclose(np.linalg.norm(found.astype(np.float32), axis=1), 1, atol=2e-3)


def test_captions_are_those_of_open_clip(few, architecture, tmp_path):
    import open_clip

    name, _, model, _ = architecture
    tokens = open_clip.get_tokenizer(name)([row["caption"] for row in few_rows(few)])
    with torch.inference_mode():
        expected = unit(model.encode_text(tokens))
    assert np.abs(embedded(few, architecture, tmp_path / "out", "caption") - expected).max() < 2e-3


def test_bfloat16_points_the_same_way(few, architecture, tmp_path):
    full = embedded(few, architecture, tmp_path / "full", "image").astype(np.float32)
    half = embedded(few, architecture, tmp_path / "half", "image", dtype="bfloat16").astype(np.float32)
    assert (full * half).sum(1).min() > 0.99


def test_two_towers_are_loaded_once_and_one_alone_is_all_that_stays(architecture):
    name, file, _, _ = architecture
    image, caption = (EncoderConfig(kind, name, kind, "open_clip", file) for kind in ("image", "caption"))

    def loaded(*configs):
        settings = [ModelSettings(config, batch_size=2) for config in configs]
        encoders = list(load_encoders(settings, [name] * len(configs), "cpu", {}))
        drop_unused_towers(zip(configs, encoders, strict=True))
        return encoders

    both = loaded(image, caption)
    assert both[0].model is both[1].model
    (images,), (captions,) = loaded(image), loaded(caption)
    sizes = [sum(each.numel() for each in one.model.parameters()) for one in (both[0], images, captions)]
    # but for the temperature and what is no module
    assert max(sizes[1:]) < sizes[0] <= sum(sizes[1:]) + 1000
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(images.encode_images(pixels), both[0].encode_images(pixels))
        assert torch.equal(captions.encode_captions(["a", "b"]), both[1].encode_captions(["a", "b"]))


def test_an_architecture_that_does_not_exist_is_refused(few, tmp_path):
    model = EncoderConfig("open", "ViT-B-33", "image", "open_clip", "random")
    with pytest.raises(ModelError, match="ViT-B-33"):
        embed_corpus(few, config=EmbedConfig(encoders=(model,)), out=tmp_path, work=tmp_path)


def few_rows(corpus):
    import io

    from PIL import Image

    for row in corpus.table(["image", "caption"]).to_pylist():
        yield {"image": Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB"), "caption": row["caption"]}
