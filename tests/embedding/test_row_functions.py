"""`EmbedImages` and `EmbedTexts`: the same bits in any batch and any order, errors, and the stage's rows."""

import io
import pickle
import random
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value, load_dataset
from datasets.fingerprint import Hasher

from megapairs_hf.core.columns import add_columns, drop_errors
from megapairs_hf.core.errors import ConfigError, ModelError
from megapairs_hf.core.row_function import ERROR
from megapairs_hf.embedding import EmbedConfig, EncoderConfig, embed_corpus
from megapairs_hf.embedding.embed import EmbedImages, EmbedTexts
from megapairs_hf.embedding.unit_embeddings import unit_embeddings
from tests.small import ROOT, SIMILARITY, SIZES, run

ROWS = 40


@pytest.fixture(scope="module")
def rows(corpus):
    """Images and captions, some short, some longer than the models take."""
    data = corpus.dataset().select(range(ROWS)).select_columns(["image_id", "image"])
    words = " ".join(corpus.table(["caption"])["caption"].to_pylist()).split()
    rng = random.Random(0)
    texts = [" ".join(rng.choices(words, k=rng.randint(1, 30))) for _ in range(ROWS)]
    return data.add_column("caption", texts)


@pytest.fixture(scope="module")
def bert(corpus, tmp_path_factory):
    """A tiny text model for Sentence Transformers, which pads: mean pooling over a BERT."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    from megapairs_hf.models.small_encoders import train_tokenizer

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    tokenizer = train_tokenizer(corpus.table(["caption"])["caption"].to_pylist(), SIZES)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **sizes)).save_pretrained(folder / "t")
    tokenizer.save_pretrained(folder / "t")
    transformer = Transformer(str(folder / "t"), max_seq_length=24)
    model = SentenceTransformer(modules=[transformer, Pooling(32, "mean")], device="cpu")
    model.save(str(folder / "st"), create_model_card=False)
    return str(folder / "st")


@pytest.fixture
def functions(models, bert):
    """Every library and both inputs."""
    return {
        "clip_image": EmbedImages(f"{models}/clip", "v", batch_size=16),
        "dino_image": EmbedImages(f"{models}/dino", "v", batch_size=16, pooling="mean"),
        "clip_text": EmbedTexts(f"{models}/clip", "caption", "v", batch_size=16),
        "bert": EmbedTexts(bert, "caption", "v", library="sentence_transformers", batch_size=16),
        "words": EmbedTexts(f"{models}/words", "caption", "v", library="sentence_transformers", batch_size=16),
    }


NAMES = ["clip_image", "dino_image", "clip_text", "bert", "words"]


class Batch(dict):
    """What `Dataset.map` gives: undecoded in `pa_table`."""

    def __init__(self, rows):
        self.pa_table = rows.with_format("arrow")[:]
        super().__init__(dict.fromkeys(rows.column_names))


def embeddings_of(function, rows, size):
    starts = range(0, len(rows), size)
    return np.concatenate(
        [function(Batch(rows.select(range(low, min(low + size, len(rows))))))["v"] for low in starts]
    )


@pytest.mark.parametrize("name", NAMES)
def test_bits_depend_neither_on_batches_nor_on_order(name, rows, functions):
    whole = embeddings_of(functions[name], rows, 1000)
    assert whole.dtype == np.float16
    assert np.abs(np.linalg.norm(whole.astype(float), axis=1) - 1).max() < 1e-3
    assert len(np.unique(whole, axis=0)) > ROWS / 4
    for size in (1, 3, 64):
        np.testing.assert_array_equal(embeddings_of(functions[name], rows, size), whole)
    order = np.random.default_rng(0).permutation(ROWS)
    np.testing.assert_array_equal(embeddings_of(functions[name], rows.select(order), 7), whole[order])


def test_padding_does_not_change_what_is_embedded(rows, functions, bert):
    """Against Sentence Transformers by itself, one text at a time, with no padding at all."""
    from sentence_transformers import SentenceTransformer

    alone = SentenceTransformer(bert, device="cpu").encode(rows["caption"][:], batch_size=1, normalize_embeddings=True)
    assert np.abs(embeddings_of(functions["bert"], rows, 1000).astype(float) - alone).max() < 1e-3


ENCODERS = (*SIMILARITY, EncoderConfig("words", "./words", "caption", library="sentence_transformers"))


def test_the_functions_make_the_rows_of_the_stage(corpus, models, tmp_path):
    made = embed_corpus(corpus, config=EmbedConfig(ENCODERS, batch_size=16), out=tmp_path, work=models)
    data = corpus.dataset()
    for size, encoder in zip((5, 1000, 7, 50), ENCODERS, strict=True):
        kind = EmbedImages if encoder.input == "image" else EmbedTexts
        function = kind(f"{models}/{encoder.model}", column=encoder.name, library=encoder.library, batch_size=16)
        added = add_columns(data, function, batch_size=size)
        artifact = made[encoder.name].dataset()
        assert added["image_id"][:] == artifact["image_id"][:] == data["image_id"][:]
        assert added.features[encoder.name] == artifact.features["embedding"]
        stored = made[encoder.name].arrays()
        np.testing.assert_array_equal(np.array(added.with_format("arrow")[:][encoder.name].to_pylist()), stored)
        assert set(added[ERROR]) == {""}


def test_the_stage_applies_the_same_inner_part(corpus, rows, models, tmp_path, monkeypatch):
    def reversed_embeddings(encoder, inputs, name):
        made = unit_embeddings(encoder, inputs, name)
        return made._replace(embeddings=made.embeddings[:, ::-1])

    config = EmbedConfig(SIMILARITY, batch_size=16)
    before = embed_corpus(corpus, config=config, out=tmp_path / "a", work=models)
    functions = [EmbedImages(f"{models}/clip", "v", batch_size=16), EmbedTexts(f"{models}/clip", column="v")]
    expected = [embeddings_of(function, rows, 1000) for function in functions]
    monkeypatch.setattr("megapairs_hf.embedding.unit_embeddings.unit_embeddings", reversed_embeddings)
    after = embed_corpus(corpus, config=config, out=tmp_path / "b", work=models)
    for name, artifact in before.items():
        np.testing.assert_array_equal(after[name].arrays(), artifact.arrays()[:, ::-1])
    for function, embeddings in zip(functions, expected, strict=True):
        np.testing.assert_array_equal(embeddings_of(function, rows, 1000), embeddings[:, ::-1])


def test_bad_images_get_an_error_and_zeros(rows, models, tmp_path):
    good = rows[0]["image"]
    sink = io.BytesIO()
    good.save(sink, "PNG")
    (tmp_path / "good.png").write_bytes(sink.getvalue())
    cells = {
        "bytes": {"bytes": sink.getvalue(), "path": None},
        "path": {"bytes": None, "path": str(tmp_path / "good.png")},
        "truncated": {"bytes": sink.getvalue()[:-60], "path": None},
        "not_an_image": {"bytes": b"text", "path": None},
        "unreadable_file": {"bytes": None, "path": str(tmp_path / "gone.png")},
        "no_image": None,
        "remote_image": {"bytes": None, "path": "https://example.org/a.png"},
    }
    data = Dataset.from_dict({"image": list(cells.values())}, features=Features({"image": Image(decode=False)}))
    function = EmbedImages(f"{models}/clip", "v")
    for size in (1, 1000):
        added = add_columns(data, function, batch_size=size)
        reasons = [error.split(":")[0] for error in added[ERROR]]
        assert reasons == ["", "", *list(cells)[2:]]
        assert added["v"][0] == added["v"][1]
        assert added["v"][2:] == [[0.0] * 24] * 5
        assert len(drop_errors(added)) == 2
    # what streaming and Ray give: files' bytes, paths, Pillow images, structs in an array of objects
    first = np.array(added["v"][0], np.float16)
    for image in (sink.getvalue(), str(tmp_path / "good.png"), good):
        np.testing.assert_array_equal(function({"image": [image]})["v"][0], first)
    np.testing.assert_array_equal(function({"image": np.array([cells["bytes"]], object)})["v"][0], first)
    assert function.one(image=good)[ERROR] == ""


def test_an_image_by_reference_is_read_below_its_root(rows, models, tmp_path):
    rows[0]["image"].save(tmp_path / "a.png")
    function = EmbedImages(f"{models}/clip", "v", root=str(tmp_path))
    cells = [{"bytes": None, "path": name} for name in ("a.png", "b.png", "../a.png")]
    made = function({"image": cells})
    assert made[ERROR][0] == ""
    assert "b.png is not in" in made[ERROR][1]
    assert "lies outside" in made[ERROR][2]


def test_a_text_that_is_not_there_gets_an_error(models):
    function = EmbedTexts(f"{models}/clip", column="v", batch_size=4)
    made = function({"caption": ["a red circle", "", None, "  "]})
    assert made[ERROR] == ["", *["no_caption: there is no text"] * 3]
    assert made["v"][1:].any() == False  # noqa: E712
    assert function({"caption": [""]})["v"].shape == (1, 24)
    with pytest.raises(ConfigError, match="v embeds texts, but a row holds int; name a column of texts"):
        function({"caption": [[1, 2]]})
    with pytest.raises(ConfigError, match="no column 'caption'; columns: text"):
        function({"text": ["a"]})


class Numbers:
    """An encoder of texts that are numbers."""

    transform, batch_size, in_float32 = None, 2, None

    def encode_captions(self, captions):
        return torch.tensor([[0.5, 0.5] if text == "blank" else [float(text), 0.0] for text in captions])


def test_an_embedding_of_no_use_is_its_rows_error(monkeypatch):
    embeddings, errors = unit_embeddings(Numbers(), ["3", "0", "nan", "-2", "inf"], "m")
    assert embeddings.tolist() == [[1, 0], [0, 0], [0, 0], [-1, 0], [0, 0]]
    assert [error.split(":")[0] for error in errors] == ["", "zero_embedding", "not_finite", "", "not_finite"]
    # also where it is the only row of its batch
    assert unit_embeddings(Numbers(), ["nan"], "m").errors[0].startswith("not_finite")
    monkeypatch.setattr(Numbers, "encode_captions", lambda self, captions: torch.full((len(captions), 2), torch.nan))
    with pytest.raises(ModelError, match="m gives embeddings that are not finite"):
        unit_embeddings(Numbers(), ["3"], "m")


def test_streaming_gives_the_same_rows(rows, models):
    expected = add_columns(rows, EmbedImages(f"{models}/clip", "v", batch_size=16))
    stream = rows.to_iterable_dataset().decode(False)
    streamed = list(add_columns(stream, EmbedImages(f"{models}/clip", "v", batch_size=16), batch_size=9))
    assert [list(row["v"]) for row in streamed] == expected["v"][:]
    assert [row["image_id"] for row in streamed] == expected["image_id"][:]


def test_a_pickle_holds_no_model_and_works(rows, models):
    function = EmbedImages(f"{models}/clip", "v")
    before = Hasher.hash(function)
    made = embeddings_of(function, rows, 1000)
    assert function._encoder is not None
    assert Hasher.hash(function) == before
    content = pickle.dumps(function)
    assert len(content) < 1000
    np.testing.assert_array_equal(embeddings_of(pickle.loads(content), rows, 1000), made)


def test_the_fingerprint_is_that_of_what_decides_the_embeddings(models, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(f"{models}/clip", tmp_path / "clip")
    model = str(tmp_path / "clip")
    before = Hasher.hash(EmbedImages(model))
    assert Hasher.hash(EmbedImages(model)) == before
    others = [EmbedImages(model, draft=False), EmbedImages(model, batch_size=8), EmbedImages(model, dtype="bfloat16")]
    hashes = [Hasher.hash(function) for function in (*others, EmbedTexts(model), EmbedTexts(model, input="text"))]
    monkeypatch.setattr(EmbedImages, "VERSION", 2)
    hashes.append(Hasher.hash(EmbedImages(model)))
    monkeypatch.undo()
    # trained again under the same path
    with (tmp_path / "clip" / "model.safetensors").open("ab") as file:
        file.write(b" ")
    hashes.append(Hasher.hash(EmbedImages(model)))
    assert len({before, *hashes}) == 8


def test_a_name_on_the_hub_is_hashed_and_loaded_by_its_commit(monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr("megapairs_hf.embedding.sources.commit_of", lambda name, revision: commit)
    function = EmbedImages("org/m")
    assert function.settings.model.revision == commit
    assert function.fingerprint == f"org/m@{commit}"
    # the name of an architecture is none on the Hub
    assert EmbedImages("ViT-B-32", library="open_clip", pretrained="openai").settings.model.revision is None


def test_models_and_settings_that_cannot_be_used(models, tmp_path):
    with pytest.raises(ModelError, match=r"there is no folder .*nowhere"):
        EmbedImages("./nowhere")
    with pytest.raises(ModelError, match="cannot load the encoder embedding"):
        EmbedImages(str(tmp_path)).one(image="a.png")
    with pytest.raises(ConfigError, match="`batch_size` is 0"):
        EmbedImages(f"{models}/clip", batch_size=0)
    with pytest.raises(ConfigError, match="EmbedImages: `batch_size` cannot be 'x'"):
        EmbedImages(f"{models}/clip", batch_size="x")
    with pytest.raises(ConfigError, match="EmbedTexts: `dtype` cannot be 'fp16'; take one of 'float32', 'bfloat16'"):
        EmbedTexts(f"{models}/clip", dtype="fp16")
    with pytest.raises(ConfigError, match=r"`model\.library` cannot be 'keras'"):
        EmbedImages(f"{models}/clip", library="keras")
    with pytest.raises(ConfigError, match="`name` is 'a b'"):
        EmbedImages(f"{models}/clip", column="a b")
    for name in ("image_id", "error", "caption", "captions", "image"):
        with pytest.raises(
            ConfigError, match=f"`column` '{name}' would replace the '{name}' of the rows; take another"
        ):
            EmbedImages(f"{models}/clip", column=name)
        with pytest.raises(ConfigError, match="take another name"):
            EmbedTexts(f"{models}/clip", column=name)
    with pytest.raises(ConfigError, match="would replace the 'photo' of the rows"):
        EmbedImages(f"{models}/clip", column="photo", image_column="photo")
    with pytest.raises(ConfigError, match="would replace the 'title' of the rows"):
        EmbedTexts(f"{models}/clip", "title", "title")


def test_a_rejected_row_keeps_its_place_in_the_stage(rows, models, tmp_path):
    cells = rows.cast_column("image", Image(decode=False))["image"][:6]
    cells[1] = {"bytes": b"broken", "path": None}
    columns = {"image_id": [f"i{n}" for n in range(6)], "image": cells, "caption": ["a", "b", "", "d", "e", "f"]}
    features = Features({"image_id": Value("string"), "image": Image(decode=False), "caption": Value("string")})
    data = Dataset.from_dict(columns, features=features)
    made = embed_corpus(data, config=EmbedConfig(SIMILARITY, batch_size=4), out=tmp_path / "a", work=models)
    for name, row, rejected in (("clip_image", 1, "not_an_image"), ("clip_text", 2, "no_caption")):
        artifact = made[name]
        assert artifact.shard(0)["image_id"].to_pylist() == columns["image_id"]
        assert np.flatnonzero(~artifact.arrays().any(axis=1)).tolist() == [row]
        assert artifact.rejected().to_pylist()[0]["key"] == f"i{row}"
        assert artifact.manifest.rejected == {rejected: 1}
        assert artifact.manifest.rows == 6
        loaded = load_dataset(artifact.path, split="train")
        assert loaded.features["embedding"] == List(Value("float16"), length=24)
        assert loaded["image_id"][:] == columns["image_id"]
        assert load_dataset(artifact.path, "rejected", split="train")["reason"][:] == [rejected]
    silent = data.remove_columns("caption").add_column("caption", [""] * 6)
    with pytest.raises(ConfigError, match=r"no image of .* has a caption, and the encoder clip_text embeds captions"):
        embed_corpus(silent, config=EmbedConfig(SIMILARITY, batch_size=4), out=tmp_path / "b", work=models)


SCRIPT = """
import sys

import multiprocess
import numpy as np
from datasets import load_from_disk

from megapairs_hf.core.columns import add_columns
from megapairs_hf.core.distributed import rank
from megapairs_hf.embedding import EmbedImages, EmbedTexts

if __name__ == "__main__":
    data, models, out, method = sys.argv[1:]
    arguments = {"batch_size": 9}
    if method != "launched":
        multiprocess.set_start_method(method)
        arguments |= {"num_proc": 2, "with_rank": True}
    added = load_from_disk(data)
    added = add_columns(added, EmbedImages(f"{models}/clip", "image_v", batch_size=16), **arguments)
    added = add_columns(added, EmbedTexts(f"{models}/clip", column="text_v", batch_size=16), **arguments)
    for name in ("image_v", "text_v"):
        np.save(f"{out}/{name}-{rank()}.npy", np.array(added[name][:], np.float16))
"""


@pytest.mark.long
@pytest.mark.parametrize("method", ["fork", "spawn", "launched"])
def test_two_processes_make_the_rows_of_one(method, rows, models, functions, tmp_path):
    """`num_proc=2` however processes are started (forked ones must not hang), and a script under `torchrun`."""
    rows.save_to_disk(tmp_path / "data")
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2"] if method == "launched" else []
    endpoint = ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"] if launcher else []
    words = [*launcher, *endpoint, tmp_path / "script.py", tmp_path / "data", models, tmp_path, method]
    environment = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = run([sys.executable, *map(str, words)], environment)
    assert done.returncode == 0, done.stderr
    for name, function in (("image_v", functions["clip_image"]), ("text_v", functions["clip_text"])):
        for rank in range(2 if launcher else 1):
            np.testing.assert_array_equal(np.load(tmp_path / f"{name}-{rank}.npy"), embeddings_of(function, rows, 64))


def test_the_column_is_a_float16_list_of_fixed_length(models):
    function = EmbedTexts(f"{models}/clip", column="v")
    assert function.features == Features({"v": List(Value("float16"), length=24), ERROR: Value("string")})
    # a row with an error is passed over, even where no model was needed so far
    assert EmbedTexts(f"{models}/clip", column="v")({"caption": ["a"], ERROR: ["bad"]})["v"].tolist() == [[0.0] * 24]


def test_several_texts_have_the_mean_of_their_embeddings(rows, models, tmp_path):
    function = EmbedTexts(f"{models}/clip", "captions", "v", batch_size=16)
    texts = rows["caption"][:4]
    lists = [texts[:3], [texts[3]], ["", None, texts[1]], [], [texts[0]] * 2]
    result = function({"captions": lists})
    single = EmbedTexts(f"{models}/clip", "caption", "v", batch_size=16)({"caption": texts})["v"].astype(np.float64)
    mean = single[:3].mean(0)
    expected = np.stack([mean / np.linalg.norm(mean), single[3], single[1], np.zeros(single.shape[1]), single[0]])
    assert np.allclose(result["v"], expected, atol=1e-3)
    assert [error.split(":")[0] for error in result[ERROR]] == ["", "", "", "no_caption", ""]
    # a list of one text has the same bits as the text, and the command gives the same rows
    assert (result["v"][1] == single[3].astype(np.float16)).all()
    corpus = rows.select(range(3)).remove_columns("caption").add_column("captions", lists[:3])
    corpus = corpus.add_column("caption", [texts[0], texts[3], texts[1]])
    config = EmbedConfig((EncoderConfig("text", f"{models}/clip", "caption"),), batch_size=16, device="cpu")
    stage = embed_corpus(corpus, config=config, out=tmp_path)["text"].arrays()
    assert (stage == result["v"][:3]).all()
    with pytest.raises(ConfigError, match="a row holds int"):
        function({"captions": [["a", 1]]})


def test_texts_whose_embeddings_cancel_out_have_none():
    from megapairs_hf.embedding.unit_embeddings import Embedded, mean_embeddings

    units = np.array([[1, 0], [-1, 0], [0, 1], [0, 0], [0, 1]], np.float16)
    result = mean_embeddings(Embedded(units, ["", "", "", "not_finite: x", ""]), [2, 2, 1])
    assert result.embeddings.tolist() == [[0, 0], [0, 1], [0, 1]]
    assert result.errors == ["zero_embedding: the texts cancel out", "", ""]
