"""The released checkpoints' layouts, against the formulas; and what cannot be loaded."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from megapairs_hf import load_mmret
from megapairs_hf.core.errors import ModelError
from megapairs_hf.models import save_mmret
from megapairs_hf.models.mllm import CIR_INSTRUCTION
from tests.models import tiny

EXPLODES = "raise SystemExit('the folder\\'s code was executed')\n"
LLAVA_NAMES = {
    "image_newline",
    "language_model.lm_head.weight",
    "language_model.model.embed_tokens.weight",
    "language_model.model.layers.0.self_attn.q_proj.weight",
    "language_model.model.norm.weight",
    "multi_modal_projector.linear_1.weight",
    "vision_tower.vision_model.embeddings.class_embedding",
    "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias",
    "vision_tower.vision_model.pre_layrnorm.weight",
}


def make_image(seed, size=(40, 30)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def edit(folder, **changes):
    file = Path(folder) / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture(scope="module")
def clip(models, tmp_path_factory):
    """The layout of BGE-VL-base: a CLIP whose config names the copied code, with a foreign modules.json."""
    folder = tmp_path_factory.mktemp("released") / "BGE-VL-base"
    shutil.copytree(f"{models}/clip", folder)
    edit(folder, auto_map={"AutoModel": "modeling_MMRet_CLIP.CLIPModel"}, architectures=["CLIPModel"])
    for name in ("modeling_MMRet_CLIP.py", "bge_vl_clip_transformer.py"):
        (folder / name).write_text(EXPLODES)
    module = {"idx": 0, "name": "0", "path": "", "type": "bge_vl_clip_transformer.BGEVLCLIPTransformer"}
    (folder / "modules.json").write_text(json.dumps([module]))
    weights = load_file(folder / "model.safetensors")
    # transformers 4 saved these buffers
    weights["text_model.embeddings.position_ids"] = torch.arange(24)[None]
    weights["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """The layout of BGE-VL-MLLM-S1: LLaVA-NeXT with the names of transformers 4.45 and its own code."""
    folder = tmp_path_factory.mktemp("released") / "BGE-VL-MLLM-S1"
    tiny.llava(folder)
    name = "modeling_llavanext_for_embedding"
    edit(folder, auto_map={"AutoModel": f"{name}.LLaVANextForEmbedding"}, architectures=["LLaVANextForEmbedding"])
    (folder / f"{name}.py").write_text(EXPLODES)
    # its processor says nothing of the tower
    config = folder / "processor_config.json"
    made = json.loads(config.read_text())
    for key in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"):
        made.pop(key, None)
    config.write_text(json.dumps(made))
    weights = load_file(folder / "model.safetensors")
    old = {name.replace("vision_tower.", "vision_tower.vision_model."): weight for name, weight in weights.items()}
    save_file(old, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


def test_the_released_clip_is_the_sum_normalized_after(clip):
    """The towers are transformers'; what is theirs is what comes after."""
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip, backend="pil")
    image, text = make_image(1), "a red star " * 30
    with torch.no_grad():
        tokens = processor.tokenizer(text, truncation=True, return_tensors="pt")
        words = model.text_projection(model.text_model(**tokens).pooler_output)[0]
        pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
        sight = model.visual_projection(model.vision_model(pixels).pooler_output)[0]
    expected = ((words + sight) / (words + sight).norm()).numpy()
    mine = load_mmret(clip, device="cpu")
    assert np.abs(mine.encode({"image": image, "text": text}) - expected).max() < 1e-5
    assert np.abs(mine.encode(image) - (sight / sight.norm()).numpy()).max() < 1e-5


def mistral(weights, hidden, heads=2, size=16):
    """A Mistral of one key head, by its formulas: root-mean-square norms, rotary positions, causal attention, SiLU."""

    def norm(x, name):
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weights[f"language_model.model.{name}.weight"]

    length = hidden.shape[0]
    angle = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)[None]
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)

    def turn(x):
        return x * cos + torch.cat([-x[..., size // 2 :], x[..., : size // 2]], -1) * sin

    for i in range(2):

        def linear(x, name, i=i):
            return x @ weights[f"language_model.model.layers.{i}.{name}.weight"].T

        x = norm(hidden, f"layers.{i}.input_layernorm")
        q = turn(linear(x, "self_attn.q_proj").view(length, heads, size).transpose(0, 1))
        k, v = turn(linear(x, "self_attn.k_proj")), linear(x, "self_attn.v_proj")
        scores = (q @ k.T / size**0.5).masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
        hidden = hidden + linear((scores.softmax(-1) @ v).transpose(0, 1).reshape(length, -1), "self_attn.o_proj")
        x = norm(hidden, f"layers.{i}.post_attention_layernorm")
        gated = torch.nn.functional.silu(linear(x, "mlp.gate_proj")) * linear(x, "mlp.up_proj")
        hidden = hidden + linear(gated, "mlp.down_proj")
    return norm(hidden, "norm")


def test_the_released_mllm_takes_the_last_position(llava):
    weights = load_file(Path(llava) / "model.safetensors")
    assert weights.keys() >= LLAVA_NAMES
    mine = load_mmret(llava, device="cpu")
    words = f"[INST] \n <instruct> {CIR_INSTRUCTION} <query>  make it blue \n [/INST]"
    ids = mine.tokenizer(words, return_tensors="pt")["input_ids"][0]
    last = mistral(weights, weights["language_model.model.embed_tokens.weight"][ids])[-1]
    mixed = [{"image": make_image(2), "text": "a much longer text than the other one"}, "make it blue"]
    assert np.abs(mine.encode_query(mixed)[1] - (last / last.norm()).numpy()).max() < 1e-5
    features = mine.preprocess(mixed, prompt=CIR_INSTRUCTION, task="query")
    assert features["attention_mask"][1, 0] == 0
    with torch.no_grad():
        padded = mine(features)["sentence_embedding"][1]
    assert (padded - last / last.norm()).abs().max() < 1e-5


def test_a_released_model_saves_as_ours(llava, clip, tmp_path):
    for name, folder in {"mllm": llava, "clip": clip}.items():
        model = load_mmret(folder, device="cpu")
        save_mmret(model, tmp_path / name)
        mixed = ["night", make_image(3), {"image": make_image(4), "text": "day"}]
        again = load_mmret(str(tmp_path / name), device="cpu")
        tiny.assert_same(model, again, mixed)
        assert np.abs(model.encode_query(mixed) - again.encode_query(mixed)).max() < 1e-6
        assert EXPLODES not in "".join(p.read_text() for p in (tmp_path / name).glob("*.py"))


def test_a_saved_released_model_names_no_code(llava, tmp_path):
    model = load_mmret(llava, device="cpu")
    save_mmret(model, tmp_path / "mllm")
    plain = SentenceTransformer(
        str(tmp_path / "mllm"), trust_remote_code=True, device="cpu", processor_kwargs={"backend": "pil"}
    )
    assert np.abs(plain.encode(["night"]) - model.encode(["night"])).max() < 1e-6


@pytest.fixture(params=["stock", "legacy"])
def foreign(request, models, tmp_path):
    """A CLIP as stock Sentence Transformers saves it, alone, and as it did before version 5.4."""
    folder = tmp_path / request.param
    if request.param == "stock":
        stock = SentenceTransformer(f"{models}/clip", device="cpu", processor_kwargs={"backend": "pil"})
        stock.save(str(folder), create_model_card=False)
        return folder, folder
    shutil.copytree(f"{models}/clip", folder / "0_CLIPModel")
    module = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (folder / "modules.json").write_text(json.dumps([module]))
    return folder, folder / "0_CLIPModel"


def test_a_foreign_folder_gives_what_the_backbone_gives(foreign, models, tmp_path):
    mixed = ["night", make_image(3), {"image": make_image(4), "text": "day"}]
    expected = load_mmret(f"{models}/clip", device="cpu").encode(mixed)
    model = load_mmret(str(foreign[0]), device="cpu")
    assert np.abs(model.encode(mixed) - expected).max() < 1e-6
    save_mmret(model, tmp_path / "again")
    tiny.assert_same(load_mmret(str(tmp_path / "again"), device="cpu"), model, mixed)


def test_a_foreign_folder_with_a_lost_weight_is_refused(foreign):
    weights = load_file(foreign[1] / "model.safetensors")
    weights.pop("visual_projection.weight")
    save_file(weights, foreign[1] / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 missing keys \(visual_projection\.weight\)"):
        load_mmret(str(foreign[0]), device="cpu")


def test_a_foreign_mllm_sees_images_as_they_are(llava, tmp_path):
    folder = tmp_path / "mllm"
    save_mmret(load_mmret(llava, device="cpu"), folder)
    config = json.loads((folder / "config.json").read_text())
    del config["mmret_image_side"]
    (folder / "config.json").write_text(json.dumps(config))
    plain = SentenceTransformer(str(folder), device="cpu", processor_kwargs={"backend": "pil"})
    wide = make_image(1, (200, 20))
    assert np.abs(load_mmret(str(folder), device="cpu").encode([wide]) - plain.encode([wide])).max() < 1e-6


@pytest.mark.parametrize("which", ["clip", "llava"])
def test_missing_and_unexpected_weights_are_listed(which, request, tmp_path):
    folder = tmp_path / which
    shutil.copytree(request.getfixturevalue(which), folder)
    weights = load_file(folder / "model.safetensors")
    lost = {"clip": "visual_projection.weight", "llava": "image_newline"}[which]
    weights["surplus.weight"] = weights.pop(lost)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"1 missing keys \({lost}\).*1 unexpected keys \(surplus.weight\)"):
        load_mmret(str(folder), device="cpu")


def test_weights_of_another_shape_are_refused(clip, tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(clip, folder)
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"] = weights["visual_projection.weight"][:5].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"visual_projection\.weight"):
        load_mmret(str(folder), device="cpu")


def test_a_weight_that_is_no_number_is_refused(models, tmp_path):
    save_mmret(load_mmret(f"{models}/clip", device="cpu"), tmp_path / "m")
    weights = load_file(tmp_path / "m/model.safetensors")
    weights["text_projection.weight"][3, 1] = float("nan")
    save_file(weights, tmp_path / "m/model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"not finite numbers in .*text_projection\.weight"):
        load_mmret(str(tmp_path / "m"), device="cpu")


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("config.json", {"model_type": "evil_clip", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}),
        ("config.json", {"auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}),
        ("processor_config.json", {"processor_class": "Evil", "auto_map": {"AutoProcessor": "evil.P"}}),
        ("tokenizer_config.json", {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": [None, "evil.T"]}}),
    ],
)
def test_nobody_is_asked_whether_to_run_the_folders_code(models, tmp_path, monkeypatch, file, changes):
    folder = tmp_path / "evil"
    shutil.copytree(f"{models}/clip", folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('x')\n")
    place = folder / file
    place.write_text(json.dumps({**(json.loads(place.read_text()) if place.is_file() else {}), **changes}))
    asked = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append(1) or "y")
    # a type of its own cannot be loaded without its code; an old one can
    with contextlib.suppress(ModelError):
        load_mmret(str(folder), device="cpu")
    assert not asked
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_is_no_model(tmp_path):
    (tmp_path / "notes.txt").write_text("no model")
    for path, sentence in (
        (tmp_path, "cannot load"),
        (tmp_path / "absent/there", "there is no folder .*absent/there"),
    ):
        with pytest.raises(ModelError, match=sentence):
            load_mmret(str(path), device="cpu")


@pytest.mark.parametrize("kept", [0, 0.5])
def test_weights_that_end_early(models, tmp_path, kept):
    save_mmret(load_mmret(f"{models}/clip", device="cpu"), tmp_path / "m")
    file = tmp_path / "m/model.safetensors"
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(ModelError, match="cannot load the model"):
        load_mmret(tmp_path / "m", device="cpu")


@pytest.mark.parametrize("written", [{"a": 1}, [], [{"idx": 0}], ["Transformer"], None])
def test_a_list_of_modules_that_is_none(models, tmp_path, written):
    save_mmret(load_mmret(f"{models}/clip", device="cpu"), tmp_path / "m")
    (tmp_path / "m/modules.json").write_text(json.dumps(written))
    with pytest.raises(ModelError, match="is no list of modules with a `type` each"):
        load_mmret(tmp_path / "m", device="cpu")


def test_pickled_weights_are_refused_by_name(models, tmp_path):
    shutil.copytree(f"{models}/clip", tmp_path / "m")
    (tmp_path / "m/model.safetensors").rename(tmp_path / "m/pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin alone, a pickle"):
        load_mmret(tmp_path / "m", device="cpu")


def test_another_kind_of_model_is_named(models):
    with pytest.raises(ModelError, match="is a dinov2 model, but score fusion takes clip, siglip, two_towers"):
        load_mmret(f"{models}/dino", device="cpu")
