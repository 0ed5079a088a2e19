import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from megapairs_hf.core.errors import ModelError
from megapairs_hf.embedding import EmbedConfig, EncoderConfig, embed_corpus
from megapairs_hf.embedding.embed import EmbedImages, EmbedTexts
from tests.small import small_corpus

pytestmark = pytest.mark.open_clip


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("few") / "corpus", count=6)


@pytest.fixture(scope="module", params=["resnet18", "vit_tiny_patch16_224"])
def architecture(request, tmp_path_factory):
    """A convolutional network and a transformer of timm with random weights, which lie in a file."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(request.param, num_classes=0).eval()
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(model.state_dict(), str(file))
    return request.param, str(file), model


def test_images_are_those_of_timm(few, architecture, tmp_path):
    import timm

    from megapairs_hf.images.decode import to_rgb

    name, file, model = architecture
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    images = [to_rgb(row["image"]["bytes"]) for row in few.table(["image"]).to_pylist()]
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(model(torch.stack([transform(image) for image in images])), dim=1)
    config = EmbedConfig(
        (EncoderConfig("v", name, "image", "timm", file),), batch_size=4, draft=False, dtype="float32"
    )
    made = embed_corpus(few, config=config, out=tmp_path / "out")["v"].arrays()
    assert np.abs(made - expected.numpy()).max() < 2e-3
    function = EmbedImages(name, "v", library="timm", pretrained=file, batch_size=4)
    assert np.abs(function({"image": images})["v"] - expected.numpy()).max() < 2e-3


def test_weights_that_cannot_be_used_say_why(architecture, tmp_path):
    name, file, _ = architecture

    def tried(pretrained, model=name):
        return EmbedImages(model, library="timm", pretrained=pretrained).features

    weights = load_file(file)
    lost = [name for name in weights if name.endswith(".weight")][:3]
    left = {name: weight for name, weight in weights.items() if name not in lost}
    save_file(left, str(tmp_path / "left.safetensors"))
    with pytest.raises(ModelError, match=r"do not fit its configuration: 3 missing keys"):
        tried(str(tmp_path / "left.safetensors"))
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="is a pickle, which can run code and is not read"):
        tried(str(tmp_path / "weights.pth"))
    with pytest.raises(ModelError, match="cannot load the encoder embedding"):
        tried(file, "no_such_architecture")
    with pytest.raises(ModelError, match="embeds images alone"):
        EmbedTexts(name, library="timm", pretrained=file).one(caption="a")
