"""How an evaluated model is loaded: number format, attention, tokens per pass, what is recorded, and the memory."""

import gc
import json
import weakref

import pytest
import torch
import transformers as t
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megapairs_hf import evaluate, load_mmret
from megapairs_hf.cli import main
from megapairs_hf.core.config import build_config
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.evaluation.benchmarks.mmeb_means import mean_records
from megapairs_hf.evaluation.config import EvalConfig, benchmark_config
from megapairs_hf.evaluation.entry import ModelSource
from megapairs_hf.evaluation.model_facts import model_facts
from megapairs_hf.models.loading import in_half, load_model
from megapairs_hf.models.token_passes import MAX_TOKENS_PER_PASS
from tests.evaluation.benchmarks import make_cirr, make_mmeb
from tests.models import tiny


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return tiny.llava(tmp_path_factory.mktemp("llava") / "backbone")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return tiny.siglip(tmp_path_factory.mktemp("siglip") / "backbone")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_cirr(folder / "cirr")
    make_mmeb(folder / "mmeb", ("VOC2007",))
    return str(folder)


def options_of(folder):
    return [json.loads(line)["options"] for line in (folder / "results.jsonl").read_text().splitlines()]


FLAGS = [
    (["--dtype", "bfloat16"], {"dtype": "bfloat16", "attn_implementation": "sdpa", "max_tokens_per_pass": 16384}),
    (
        ["--dtype", "float16", "--attn-implementation", "eager", "--max-tokens-per-pass", "900"],
        {"dtype": "float16", "attn_implementation": "eager", "max_tokens_per_pass": 900},
    ),
    ([], {"dtype": "float32", "attn_implementation": "sdpa", "max_tokens_per_pass": 16384}),
]


@pytest.mark.parametrize(("flags", "expected"), FLAGS)
def test_a_language_model_is_measured_as_the_flags_say_and_the_records_tell(
    llava, data, tmp_path, monkeypatch, flags, expected
):
    seen = []
    loaded = load_model

    def load(*arguments, **settings):
        model = loaded(*arguments, **settings)
        model.register_forward_pre_hook(
            lambda module, inputs: seen.append(
                (next(module.parameters()).dtype, module[0].model.config._attn_implementation, inputs[0]["input_ids"])
            )
        )
        return model

    monkeypatch.setattr("megapairs_hf.models.loading.load_model", load)
    words = ["eval", llava, "cirr", "--data", data, "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main([*words, *flags]) == 0
    # the model itself, and not what is said of it
    assert {str(dtype) for dtype, *_ in seen} == {f"torch.{expected['dtype']}"}
    assert {attention for _, attention, _ in seen} == {expected["attn_implementation"]}
    limit = expected["max_tokens_per_pass"]
    assert all(ids.shape[0] == 1 or ids.numel() <= limit for *_, ids in seen)
    assert all(options.items() >= expected.items() for options in options_of(tmp_path / "out"))


def test_a_run_with_another_number_format_is_another_run(siglip, data, tmp_path, capsys):
    words = ["eval", siglip, "cirr", "--data", data, "--device", "cpu", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert options_of(tmp_path / "out")[0]["dtype"] == "float32"
    assert "max_tokens_per_pass" not in options_of(tmp_path / "out")[0]
    assert main([*words, "--dtype", "bfloat16"]) == 1
    assert "dtype" in capsys.readouterr().err
    assert main([*words[:-1], str(tmp_path / "n"), "--max-tokens-per-pass", "9"]) == 1
    assert "no multimodal language model" in capsys.readouterr().err


def test_the_means_of_mmeb_say_it_too(siglip, data, tmp_path, capsys):
    words = ["eval", siglip, "mmeb", "--set", "parts=[VOC2007]", "--data", data, "--device", "cpu"]
    assert main([*words, "--dtype", "bfloat16", "--out", str(tmp_path / "out")]) == 0
    assert options_of(tmp_path / "out")[0]["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("family", "expected"), [("siglip", None), ("llava", "frame of a query, its own instruction")]
)
def test_records_say_how_a_language_model_framed_mmeb_s_queries(family, expected, request, data, tmp_path):
    words = ["mmeb", "--set", "parts=[VOC2007]", "--data", data, "--device", "cpu", "--out", str(tmp_path)]
    assert main(["eval", request.getfixturevalue(family), *words]) == 0
    assert {options.get("query_prompt") for options in options_of(tmp_path)} == {expected}
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    before = [{**one, "options": {**one["options"], "query_prompt": None}} for one in records]
    means = [len(mean_records(some)) for some in (records, [*records, *before])]
    assert means[1] == means[0] * (1 if expected is None else 2), "old and new numbers enter no mean together"


def test_kept_embeddings_of_two_number_formats_stay_apart(siglip, data, tmp_path):
    for dtype in ("float32", "bfloat16"):
        source = ModelSource(lambda dtype=dtype: load_model(siglip, "mmret", None, "cpu", dtype=dtype), "weights")
        config = benchmark_config(dtype=dtype)
        cache = str(tmp_path / "cache")
        evaluate({"m": source}, "cirr", data=data, out=tmp_path / dtype, config=config, cache=cache)
    assert sum(path.is_dir() for path in (tmp_path / "cache").iterdir()) == 2


@pytest.mark.parametrize(
    "changes", [{"dtype": "bfloat16"}, {"attn_implementation": "eager"}, {"max_tokens_per_pass": 5}]
)
def test_settings_that_a_loaded_model_does_not_have_are_refused(siglip, data, tmp_path, changes):
    model = load_mmret(siglip, device="cpu")
    [name] = changes
    with pytest.raises(ConfigError, match=f"`{name}` is .*the model was loaded with"):
        evaluate(model, "cirr", data=data, out=tmp_path / "out", config=benchmark_config(**changes))
    same = benchmark_config(dtype="float32", attn_implementation="sdpa")
    evaluate(model, "cirr", data=data, out=tmp_path / "same", config=same)


@pytest.mark.parametrize("changes", [{"dtype": "int8"}, {"attn_implementation": "fast"}, {"max_tokens_per_pass": 0}])
def test_values_out_of_range_are_refused(changes):
    [name] = changes
    with pytest.raises(ConfigError, match=name):
        build_config(EvalConfig, changes)


def test_auto_is_bfloat16_for_a_language_model_on_cuda_alone(llava, siglip):
    for folder, device, dtype in (
        (llava, "cuda:1", torch.bfloat16),
        (llava, "cpu", torch.float32),
        (llava, "mps", torch.float32),
        (siglip, "cuda:0", torch.float32),
    ):
        model = in_half(load_mmret(folder, device="cpu"), device)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert model_facts(model)["dtype"] == str(dtype).removeprefix("torch.")
        # positions are computed from these
        rotary = [buffer.dtype for name, buffer in model.named_buffers() if "inv_freq" in name]
        assert set(rotary) <= {torch.float32} and bool(rotary) == (folder == llava)


def test_what_is_no_torch_module_has_no_facts():
    assert model_facts(object()) == {}


class Peak(TorchDispatchMode):
    """Most bytes of all storages that are alive at once."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.most = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.alive:
                    self.alive[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    self.most = max(self.most, self.now)
                    weakref.finalize(storage, self.gone, storage._cdata)
        return result

    def gone(self, key):
        self.now -= self.alive.pop(key, 0)


def gigabytes(rows, tokens, dtype, images=True):
    """Weights and largest activations of LLaVA-1.6-Mistral-7B's two parts, in tensors without content."""
    language = t.MistralConfig(vocab_size=32064, rope_theta=1e6, sliding_window=None)
    vision = t.CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        image_size=336, patch_size=14, projection_dim=768,
    )  # fmt: skip
    with FakeTensorMode():
        torch.set_default_dtype(dtype)
        try:
            models = t.MistralModel(language).eval(), t.CLIPVisionModel(vision).eval()
        finally:
            torch.set_default_dtype(torch.float32)
        weights = sum(p.numel() * p.element_size() for model in models for p in model.parameters())
        embeds = torch.empty(rows, tokens, language.hidden_size, dtype=dtype)
        # the image and four parts of it, 24 by 24 patches each
        pixels = torch.empty(rows * 5, 3, 336, 336, dtype=dtype)
        peaks = []
        for model, inputs in ((models[1], {"pixel_values": pixels}), (models[0], {"inputs_embeds": embeds})):
            if model is models[1] and not images:
                continue
            with Peak() as peak, torch.inference_mode():
                model(**inputs)
            peaks.append(peak.most)
            gc.collect()
    return (weights + max(peaks)) / 2**30


@pytest.mark.parametrize("tokens", [60, 1250, 2880])
def test_a_7b_model_is_measured_within_24_gigabytes(tokens):
    # 128 texts, or as many images as the tokens allow
    rows = min(128, max(1, MAX_TOKENS_PER_PASS // tokens))
    assert 13 < gigabytes(rows, tokens, torch.bfloat16, images=tokens > 60) < 24


def test_without_the_limit_and_in_float32_an_a100_would_not_hold_it():
    assert gigabytes(128, 1250, torch.float32) > 80
