"""`auto`: the number format and the decoders that suit a device; inputs that are too much for a narrow format."""

import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from megapairs_hf.core.errors import ConfigError, ModelError, StaleArtifactError
from megapairs_hf.embedding import EmbedConfig, EncoderConfig, device_defaults, embed_corpus, encoders, stage
from megapairs_hf.embedding.config import ModelSettings
from megapairs_hf.embedding.device_defaults import agreed_dtypes, decoders, device_dtype
from megapairs_hf.embedding.embed import EmbedImages, EmbedTexts
from megapairs_hf.embedding.encoders import load_encoder
from megapairs_hf.embedding.loader import PreparedImages, pins
from megapairs_hf.embedding.unit_embeddings import unit_embeddings
from tests.small import SIMILARITY, files_of, torchrun


@pytest.fixture
def speeds(monkeypatch):
    """A processor on which a forward pass takes so many seconds; what was measured is in `asked`."""
    state = types.SimpleNamespace(float32=0.3, bfloat16=0.1, asked=[])

    def seconds(encoder):
        state.asked.append(str(encoder.dtype).removeprefix("torch."))
        return getattr(state, state.asked[-1])

    monkeypatch.setattr(device_defaults, "_seconds", seconds)
    return state


def embedded(corpus, models, out, encoders=SIMILARITY[:1], **options):
    dtype = options.pop("dtype", "auto")
    config = EmbedConfig(encoders=encoders, batch_size=16, dtype=dtype, device="cpu")
    made = embed_corpus(corpus, config=config, out=out, work=models, **options)
    return {name: artifact.manifest.config["dtype"] for name, artifact in made.items()}


@pytest.mark.parametrize(
    ("float32", "bfloat16", "expected"),
    [
        # AMX, AVX-512 VNNI alone, hardly any difference, a model for which nobody waits
        (0.3, 0.1, "bfloat16"),
        (0.3, 1.2, "float32"),
        (0.3, 0.27, "float32"),
        (0.003, 0.001, "float32"),
    ],
)
def test_a_processor_takes_the_faster_format(speeds, float32, bfloat16, expected, corpus, models, tmp_path):
    speeds.float32, speeds.bfloat16 = float32, bfloat16
    assert set(embedded(corpus, models, tmp_path, SIMILARITY).values()) == {expected}
    # texts are a small part of the time
    assert speeds.asked == (["float32"] * 2 if float32 < 0.02 else ["float32", "bfloat16"] * 2)


def test_the_first_choice_holds_for_resumed_runs_and_updates(speeds, corpus, models, tmp_path, monkeypatch):
    write, calls = stage._write, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(stage, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedded(corpus, models, tmp_path / "out")
    monkeypatch.setattr(stage, "_write", write)
    # another machine, which would choose otherwise
    speeds.bfloat16, speeds.asked = 3.0, []
    for options in ({}, {}, {"update": True}):
        assert embedded(corpus, models, tmp_path / "out", **options) == {"clip_image": "bfloat16"}
    assert speeds.asked == []
    assert embedded(corpus, models, tmp_path / "whole", dtype="bfloat16") == {"clip_image": "bfloat16"}
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    with pytest.raises(StaleArtifactError, match="dtype"):
        embedded(corpus, models, tmp_path / "out", dtype="float32")
    assert embedded(corpus, models, tmp_path / "out", overwrite=True) == {"clip_image": "float32"}


def test_an_encoder_that_is_added_later_has_its_own(speeds, corpus, models, tmp_path):
    assert embedded(corpus, models, tmp_path) == {"clip_image": "bfloat16"}
    speeds.bfloat16 = 3.0
    added = embedded(corpus, models, tmp_path, SIMILARITY)
    assert added == {"clip_image": "bfloat16", "dino_image": "float32", "clip_text": "float32"}


def test_a_model_that_is_not_finite_in_bfloat16_stays_in_float32(speeds, corpus, models, tmp_path, monkeypatch):
    load = encoders.load_encoder

    def too_narrow(settings, *others):
        if settings.dtype != "float32":
            raise ModelError("the encoder clip_image gives embeddings that are not finite")
        return load(settings, *others)

    monkeypatch.setattr(device_defaults, "load_encoder", too_narrow)
    assert embedded(corpus, models, tmp_path) == {"clip_image": "float32"}


def test_libraries_that_choose_themselves_are_not_measured(speeds):
    file = EncoderConfig("words", "a.npy", "caption", "file")
    choice = agreed_dtypes(EmbedConfig((file,)), "nowhere", {"words": "a.npy"}, overwrite=False)
    assert (choice.dtypes, speeds.asked) == ({"words": "float32"}, [])


PROGRAM = """
import sys
from megapairs_hf.core import distributed
from megapairs_hf.embedding import EmbedConfig, EncoderConfig, device_defaults, embed_corpus
# the processes are of different machines
device_defaults._seconds = lambda encoder: 0.3 if "32" in str(encoder.dtype) else 0.1 if distributed.is_main() else 3.0
device_defaults.note = lambda message: None
config = EmbedConfig((EncoderConfig("clip_image", "./clip", "image"),), batch_size=16, device="cpu")
made = embed_corpus(sys.argv[1], config=config, out=sys.argv[2], work=sys.argv[3])["clip_image"]
with open(f"{sys.argv[4]}/{distributed.rank()}", "w") as file:
    file.write(made.manifest.config["dtype"])
"""


def test_two_processes_agree(corpus, models, tmp_path):
    (tmp_path / "embed.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    command += [tmp_path / "embed.py", corpus.path, tmp_path / "two", models, tmp_path]
    done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["bfloat16"] * 2
    embedded(corpus, models, tmp_path / "one", dtype="bfloat16")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


@pytest.fixture
def gpus(monkeypatch):
    """A machine with GPUs, of which one is asked in another process whether it has bfloat16."""
    state = types.SimpleNamespace(count=1, bfloat16="True", cores=12)
    answer = lambda command, **_: types.SimpleNamespace(stdout=f"{state.bfloat16}\n")  # noqa: E731
    monkeypatch.setattr(torch.cuda, "device_count", lambda: state.count)
    monkeypatch.setattr(device_defaults.subprocess, "run", answer)
    monkeypatch.setattr(device_defaults, "cpu_cores", lambda: state.cores)
    device_defaults._has_bfloat16.cache_clear()
    yield state
    device_defaults._has_bfloat16.cache_clear()


@pytest.mark.parametrize(("bfloat16", "expected"), [("True", "bfloat16"), ("False", "float16"), ("", "float16")])
def test_a_gpu_takes_bfloat16_where_it_has_it(gpus, bfloat16, expected, models):
    gpus.bfloat16 = bfloat16
    assert device_dtype("cuda:1") == device_dtype(None) == expected
    assert EmbedImages(f"{models}/clip").settings.dtype == expected
    assert EmbedTexts(f"{models}/clip").settings.dtype == expected
    assert EmbedImages(f"{models}/clip", device="cpu").settings.dtype == "float32"
    assert EmbedImages(f"{models}/clip", dtype="float32").settings.dtype == "float32"
    gpus.count = 0
    assert [device_dtype(device) for device in (None, "cpu", "mps")] == ["float32"] * 3


def test_a_gpu_is_fed_by_processes(gpus, monkeypatch):
    assert decoders(None, None, "cuda:0") == (12, 11)
    assert decoders(None, None, "cpu") == (2, 0)
    # what is set holds
    assert decoders(5, None, "cuda:0") == (5, 0)
    assert decoders(5, 3, "cpu") == decoders(5, 3, "cuda:0") == (5, 3)
    assert decoders(None, 0, "cuda:0") == (12, 0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert decoders(None, None, "cuda:3") == (3, 2)
    gpus.cores = 256
    assert decoders(None, None, "cuda:3") == (16, 16)
    gpus.cores = 2
    assert decoders(None, None, "cuda:3") == (1, 1)


@pytest.mark.parametrize("field", ["threads", "workers"])
def test_decoders_that_cannot_be(field):
    with pytest.raises(ConfigError, match=f"`{field}` is -1, but must be .* or left out"):
        EmbedConfig(**{field: -1})


def test_batches_are_pinned_for_a_gpu(monkeypatch):
    """torch pins only where there is a GPU, so its call is counted."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: (pinned.append(self.shape), self)[1])
    batch = PreparedImages(["", "unreadable_image"], {"a": torch.zeros(1, 2), "b": [torch.zeros(3), torch.zeros(4)]})
    assert batch.pin_memory().good == [0]
    assert pinned == [(1, 2), (3,), (4,)]
    assert [pins(device) for device in ("cuda", "cuda:1", "cpu", "mps")] == [True, True, False, False]


def overflowing(model):
    """A tower that in float16 gives infinity for bright images, and is as it was in float32."""
    forward = model.get_image_features

    def features(pixel_values):
        output = forward(pixel_values=pixel_values)
        if pixel_values.dtype != torch.float32:
            output.pooler_output[pixel_values.mean((1, 2, 3)) > 0.6] = torch.inf
        return output

    model.get_image_features = features


def test_an_image_that_is_too_much_for_a_narrow_format_is_embedded_in_float32(models, monkeypatch):
    loads = []
    load = encoders.load_encoder

    def counted(settings, *others):
        loads.append(settings.dtype)
        return load(settings, *others)

    monkeypatch.setattr(encoders, "load_encoder", counted)
    config = EncoderConfig("m", f"{models}/clip", "image")
    narrow = load_encoder(ModelSettings(config, "bfloat16", 4), config.model, "cpu")
    narrow.in_float32 = encoders.partial(counted, ModelSettings(config, "float32", 4), config.model, "cpu")
    narrow.in_float32 = encoders.lru_cache(narrow.in_float32)
    overflowing(narrow.model)
    wide = load_encoder(ModelSettings(config, "float32", 4), config.model, "cpu")
    images = torch.full((4, 32, 32, 3), 120, dtype=torch.uint8)
    images[1], images[3] = 255, torch.randint(220, 255, (32, 32, 3), generator=torch.Generator().manual_seed(0))
    result = unit_embeddings(narrow, images, "m")
    assert result.errors == [""] * 4
    expected = unit_embeddings(wide, images, "m").embeddings
    np.testing.assert_array_equal(result.embeddings[[1, 3]], expected[[1, 3]])
    assert not np.array_equal(result.embeddings[0], expected[0])
    # alone as in company, and loaded once
    np.testing.assert_array_equal(unit_embeddings(narrow, images[3:], "m").embeddings[0], result.embeddings[3])
    assert loads == ["float32"]


@pytest.mark.parametrize(("dtype", "loaded"), [("bfloat16", True), ("float16", True), ("float32", False)])
def test_only_a_narrow_format_has_a_wider_one(models, dtype, loaded):
    encoder = load_encoder(ModelSettings(SIMILARITY[2], dtype, 4), f"{models}/clip", "cpu")
    assert (encoder.in_float32 is not None) == loaded
    if loaded:
        assert encoder.in_float32().dtype == torch.float32
        assert encoder.in_float32() is encoder.in_float32()


def test_one_image_that_gives_no_numbers_is_rejected_and_the_run_ends_well(corpus, models, tmp_path, monkeypatch):
    """Whatever the number format: the image is named, and its row is zeros."""
    from megapairs_hf.embedding.transformers_encoder import TransformersEncoder

    encode, batches = TransformersEncoder.encode_images, []

    def broken(self, batch):
        embeddings = encode(self, batch)
        batches.append(len(batch))
        # of whole batches the second image of the first, also when it is tried again
        if len(batch) == 16 and (self.dtype == torch.float32 or batches.count(16) == 1):
            embeddings[0 if self.dtype == torch.float32 else 1] = torch.nan
        return embeddings

    monkeypatch.setattr(TransformersEncoder, "encode_images", broken)
    config = EmbedConfig(SIMILARITY[:1], batch_size=16, dtype="bfloat16", device="cpu")
    made = embed_corpus(corpus, config=config, out=tmp_path, work=models)["clip_image"]
    rejected = [(row["key"], row["reason"]) for row in made.rejected().to_pylist()]
    assert rejected == [(corpus.table(["image_id"])["image_id"][1].as_py(), "not_finite")]
    assert made.rows == corpus.rows
    assert np.flatnonzero(~made.arrays().any(axis=1)).tolist() == [1]


@pytest.mark.long
def test_the_command_embeds_on_two_processes_with_the_defaults(corpus, models, tmp_path):
    (tmp_path / "embed.yaml").write_text("encoders:\n- {name: clip_image, model: ./clip, input: image}\n")
    words = ["embed", "--config", tmp_path / "embed.yaml", "--work", models, "--corpus", corpus.path, "--out"]
    done = torchrun(2, *words, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    # the models of the tests are too small to gain anything
    assert done.stderr.count("embed: dtype float32 for clip_image") == 1
