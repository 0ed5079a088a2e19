"""Local models, and models behind transformers' own server, with images that really travel."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from megapairs_hf.annotation import Describe, DescribeConfig, Endpoint, InstructConfig, describe_pairs, instruct_pairs
from megapairs_hf.annotation.client.logprobs import REQUESTED
from megapairs_hf.annotation.client.messages import Request
from megapairs_hf.annotation.config import Local
from megapairs_hf.annotation.engines.journal import Journal
from megapairs_hf.annotation.engines.transformers_engine import LocalModel, time_estimate
from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.cli import main
from megapairs_hf.core.columns import add_columns, drop_errors
from megapairs_hf.core.errors import ArtifactError, ConfigError, ModelError
from tests.small import ROOT, reserve

from .small_models import save_idefics3, save_llm, save_vlm, teach
from .test_stage import RULES, digests, rejected

TEXTS = ["make it red and put the circle on the left", "This is the query image:", "a photo of two red circles"] * 5
FOUR = Local(batch_size=4, dtype="float32")


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return save_llm(tmp_path_factory.mktemp("llm"), TEXTS)


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    folder = save_vlm(tmp_path_factory.mktemp("vlm"), TEXTS)
    # random weights end few of their sentences, and which ones differs between processors
    teach(folder, "Two red circles.", 60)
    return folder


def short(model, **settings):
    return DescribeConfig(engine="transformers", model=model, max_new_tokens=12, local=FOUR, **settings)


def test_a_local_vlm_describes_and_is_the_same_after_an_interruption(vlm, pairs, corpus, tmp_path, monkeypatch):
    config = short(vlm, max_image_side=64)
    whole = describe_pairs(pairs, corpus, config=config, out=tmp_path / "a")
    assert whole.rows + sum(whole.manifest.rejected.values()) == 11
    for row in whole.table().to_pylist():
        assert row["completion_tokens"] <= 12
        assert row["prompt_tokens"] > 20
    kept, add_all = [], Journal.add_all

    def dies(self, replies):
        add_all(self, replies)
        kept.extend(key for key, _ in replies)
        if len(kept) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add_all", dies)
    with pytest.raises(KeyboardInterrupt):
        describe_pairs(pairs, corpus, config=config, out=tmp_path / "b")
    again = describe_pairs(pairs, corpus, config=config, out=tmp_path / "b")
    assert digests(again.path) == digests(whole.path)
    assert len(kept) == len(set(kept))


@pytest.mark.parametrize("save", [save_vlm, save_idefics3], ids=["llava_next", "idefics3"])
def test_the_recipe_runs_in_process_and_says_how_long_it_will_take(save, pairs, corpus, tmp_path, capsys):
    """`recipes/local_vlm.yaml` with tiny models of random weights in the place of those from the Hub."""
    (tmp_path / "m").mkdir()
    save(tmp_path / "m", TEXTS)
    teach(tmp_path / "m", "Two red circles.", 60)
    words = ["--config", str(ROOT / "recipes/local_vlm.yaml"), "--model", str(tmp_path / "m")]
    words += ["--local.dtype", "float32", "--corpus", corpus.path, "--pairs", pairs.path]
    assert main(["describe", *words, "--out", str(tmp_path / "d")]) == 0
    described = open_artifact(tmp_path / "d")
    assert described.manifest.config["engine"] == "transformers"
    assert described.rows > 0 and described.rows + sum(described.manifest.rejected.values()) == 11
    lines = [line for line in capsys.readouterr().err.splitlines() if "responses took" in line]
    # of eleven pairs four are in the first batch
    assert len(lines) == 1 and lines[0].startswith(f"{tmp_path / 'm'} on cpu: the first 4 responses took ")
    assert "at that rate the 7 rows that are left take at least " in lines[0]


@pytest.mark.parametrize(
    ("seconds", "requests", "left", "text"),
    [
        (
            8.0,
            4,
            7,
            "the first 4 responses took 8.0 s, 2.0 s each; at that rate the 7 rows that are left take at least 14.0 s",
        ),
        (
            600.0,
            4,
            100,
            "took 10.0 minutes, 150.0 s each; at that rate the 100 rows that are left take at least 4.2 hours",
        ),
        (600.0, 4, 2_000, "the 2,000 rows that are left take at least 3.5 days"),
        (8.0, 4, 0, "2.0 s each; nothing is left"),
    ],
)
def test_the_estimate_is_arithmetic(seconds, requests, left, text):
    assert text in time_estimate(seconds, requests, left, "m on cpu")
    assert time_estimate(8.0, 4, None, "m on cpu") == "m on cpu: the first 4 responses took 8.0 s, 2.0 s each"


def test_map_gives_the_rows_of_the_stage(vlm, pairs, corpus, rows, tmp_path):
    config = short(vlm, max_image_side=64)
    stage = describe_pairs(pairs, corpus, config=config, out=tmp_path / "a")
    # seven rows are the first shard: the same requests are sampled together
    mapped = add_columns(rows, Describe(corpus, config=config, journal=tmp_path / "j"), batch_size=7)
    names = ["query_id", "target_id", "description", "raw", "completion_tokens"]
    assert drop_errors(mapped).select_columns(names).to_list() == stage.table(names).to_pylist()
    assert len(Journal(tmp_path / "j")) >= 11


def test_images_reach_the_model(vlm, corpus, tmp_path):
    model = LocalModel(vlm, FOUR, vision=True)
    from megapairs_hf.annotation.corpus_reader import CorpusImages, CorpusReader

    images = CorpusImages(CorpusReader(corpus), 64)
    images.load(["i0", "i11"])

    def request(*names):
        parts = [{"type": "image_url", "image_url": {"url": images.data_url(name)}} for name in names]
        content = [*parts, {"type": "text", "text": "compare"}]
        return Request([{"role": "user", "content": content}], "m", {"temperature": 0, "top_p": None, "max_tokens": 3})

    one, two = model.generate([request("i0"), request("i0", "i11")], 0)
    # each image of 64 x 32 is 4 tokens of the whole, and two tiles of 4 with a line break a row
    assert two.prompt_tokens - one.prompt_tokens > 10
    images.close()


def test_a_local_llm_responds_as_transformers_does(llm, pairs, corpus, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = InstructConfig(engine="transformers", model=llm, max_new_tokens=9, temperature=0.0, local=FOUR)
    model = LocalModel(config.model, config.local, vision=False)
    texts = ["make it red", "on the left of a circle and more", "x"]
    how = {"temperature": 0.0, "top_p": None, "max_tokens": 9}
    said = model.generate([Request([{"role": "user", "content": text}], llm, how) for text in texts], 0)
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(llm), AutoTokenizer.from_pretrained(llm)
    for text, reply in zip(texts, said, strict=True):
        ids = tokenizer(f"user: {text}\nassistant: ", return_tensors="pt").input_ids
        made = plain.generate(ids, do_sample=False, max_new_tokens=9)[0, ids.shape[1] :]
        assert reply.text == tokenizer.decode(made, skip_special_tokens=True)
        assert reply.prompt_tokens == ids.shape[1]
        assert reply.completion_tokens == len(made)


def test_the_probability_of_yes_is_that_of_the_models_logits(llm, monkeypatch):
    """A model that says neither: its likeliest token is read as yes, the one after it as no."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = LocalModel(llm, FOUR, vision=False)
    how = {"temperature": 0.0, "top_p": None, "max_tokens": 2}
    requests = [Request([{"role": "user", "content": text}], llm, how) for text in ("make it red", "x")]
    assert [response.yes for response in model.generate(requests, 0)] == [None, None]
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(llm), AutoTokenizer.from_pretrained(llm)
    for request in requests:
        ids = tokenizer(f"user: {request.messages[0]['content']}\nassistant: ", return_tensors="pt").input_ids
        with torch.no_grad():
            (first, second), (yes, no) = plain(ids).logits[0, -1].topk(2)
        words = {int(yes): "Yes", int(no): " no"}
        with monkeypatch.context() as patch:
            patch.setattr(model.tokenizer, "decode", lambda tokens, w=words, **_: w.get(tokens[0], "…"))
            asked = dataclasses.replace(request, parameters=how | REQUESTED)
            assert model.generate([asked], 0)[0].yes == pytest.approx(torch.sigmoid(first - second).item(), abs=1e-5)


def test_a_llm_of_random_weights_is_rejected_pair_by_pair(llm, pairs, corpus, tmp_path):
    described = describe_pairs(pairs, corpus, config=DescribeConfig(**RULES), out=tmp_path / "d")
    config = InstructConfig(engine="transformers", model=llm, max_new_tokens=9, local=FOUR)
    with pytest.raises(ArtifactError, match="none of the 11 pairs got instructions that are any use"):
        instruct_pairs(described, corpus, config=config, out=tmp_path / "i")
    made = open_artifact(tmp_path / "i")
    assert made.rows == 0
    assert {reason for reason, _ in rejected(made).values()} == {"too_few_instructions"}
    assert made.manifest.rejected == {"too_few_instructions": 11}


def test_a_lora_adapter_changes_what_is_said(llm, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(llm)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "lora")
    how = {"temperature": 0.0, "top_p": None, "max_tokens": 20}
    request = [Request([{"role": "user", "content": "make it red"}], llm, how)]
    config = InstructConfig(engine="transformers", model=llm, local=FOUR)
    plain = LocalModel(config.model, config.local, vision=False).generate(request, 0)
    local = Local(batch_size=4, dtype="float32", adapter=str(tmp_path / "lora"))
    other = InstructConfig(engine="transformers", model=llm, local=local)
    assert LocalModel(other.model, other.local, vision=False).generate(request, 0) != plain


@pytest.mark.parametrize("kind", ["vlm", "llm"])
def test_weights_go_to_the_device_without_a_copy_in_host_memory(kind, request, monkeypatch):
    """`meta` stands for a GPU: a device that is not the processor; nothing is moved there after it was loaded."""
    import torch
    from transformers import PreTrainedModel

    def moved(self, *_, **__):
        raise AssertionError("the whole model was in host memory")

    monkeypatch.setattr(PreTrainedModel, "to", moved)
    for device in ("meta", "cpu"):
        model = LocalModel(request.getfixturevalue(kind), FOUR, vision=kind == "vlm", device=device)
        assert {each.device.type for each in model.model.parameters()} == {device}
        assert model.device == torch.device(device)
        assert not model.model.training


def test_wrong_models_and_settings(tmp_path, pairs, corpus):
    with pytest.raises(ModelError, match="check `model` and `local`"):
        describe_pairs(pairs, corpus, config=short(str(tmp_path)), out=tmp_path / "d")
    for bad in ({"batch_size": 0}, {"dtype": "int3"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Local(**bad)


@pytest.mark.long
@pytest.mark.skipif(
    importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None,
    reason="transformers' server needs the extra transformers[serving]",
)
def test_transformers_own_server(vlm, pairs, corpus, tmp_path):
    kept = reserve()
    port = kept.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("transformers")),
        "serve",
        vlm,
        "--device",
        "cpu",
        "--port",
        str(port),
    ]
    (tmp_path / "hub").mkdir()  # the list of models is that of the cache, which must exist
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=env)
    try:
        wait_for(f"http://127.0.0.1:{port}/v1/models", server, tmp_path / "log")
        endpoint = Endpoint(urls=(f"http://127.0.0.1:{port}/v1",), concurrency=2, max_retries=1, timeout_s=600.0)
        config = DescribeConfig(model=vlm, max_new_tokens=12, max_image_side=64, endpoint=endpoint)
        # what a model of random weights says is hardly ever of use
        with contextlib.suppress(ArtifactError):
            describe_pairs(pairs, corpus, config=config, out=tmp_path / "d")
        made = open_artifact(tmp_path / "d")
        assert made.rows + sum(made.manifest.rejected.values()) == 11
        assert set(made.manifest.rejected) <= {"empty_reply", "cut_off"}
    finally:
        server.kill()
        server.wait()
        kept.close()


def wait_for(url, server, log):
    while True:
        try:
            return json.load(urllib.request.urlopen(url))
        except OSError:
            assert server.poll() is None, log.read_text()[-2000:]
            time.sleep(0.3)


def test_weights_that_were_trained_again_are_loaded_again(images, tmp_path, monkeypatch):
    folder = save_vlm(tmp_path / "model", TEXTS)
    loads = []

    class Counted(LocalModel):
        def __init__(self, path, *arguments, **options):
            loads.append(path)
            super().__init__(path, *arguments, **options)

    monkeypatch.setattr("megapairs_hf.annotation.engines.transformers_engine.LocalModel", Counted)
    rows = {"query_id": ["i0"], "target_id": ["i11"]}

    def describe():
        # its path and not its name says where a local model is
        Describe(images, model_path=folder, config=short("mine", max_image_side=64))(rows)

    describe()
    describe()
    assert loads == [folder]
    weights = Path(folder, "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
    describe()
    assert loads == [folder] * 2
