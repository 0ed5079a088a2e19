"""Embeddings from files, from Python functions and from ONNX graphs: the same rows as they have, or one sentence."""

import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.cli import main
from megapairs_hf.core.columns import add_columns
from megapairs_hf.core.errors import ArtifactError, ConfigError, MegaPairsError, ModelError, StaleArtifactError
from megapairs_hf.embedding import EmbedConfig, EncoderConfig, embed_corpus
from megapairs_hf.embedding.embed import EmbedImages, EmbedTexts
from tests.small import ROOT, files_of

D = 12


@pytest.fixture(scope="module")
def ids(corpus):
    return corpus.table(["image_id"])["image_id"].to_pylist()


@pytest.fixture(scope="module")
def rows(ids):
    """One row per image, in another order than the corpus, and two that it does not have."""
    rng = np.random.default_rng(0)
    names = [*ids, "other", "another"]
    order = rng.permutation(len(names))
    return [names[i] for i in order], (rng.standard_normal((len(names), D)) * 7)[order].astype(np.float32)


def lists(array, kind=None):
    return pa.array(array.astype(float).tolist(), pa.list_(kind or pa.float32()))


def write_npy(folder, names, array):
    np.save(folder / "v.npy", array)
    (folder / "ids.txt").write_text("\n".join(names) + "\n")
    return {"model": "./v.npy"}


def write_npy_ids(suffix):
    def write(folder, names, array):
        np.save(folder / "v.npy", np.asfortranarray(array.astype(np.float64)))
        file = folder / f"names.{suffix}"
        if suffix == "json":
            file.write_text(json.dumps(names))
        elif suffix == "npy":
            np.save(file, np.array(names))
        else:
            pq.write_table(pa.table({"key": names}), file)
        return {"model": "./v.npy", "source_ids": str(file)}

    return write


def write_npz(folder, names, array):
    np.savez(folder / "v.npz", ids=np.array(names), embeddings=array, other=np.zeros((2, 2, 2)))
    return {"model": "./v.npz"}


def write_parquet(folder, names, array):
    pq.write_table(
        pa.table({"image_id": names, "v": lists(array), "n": list(range(len(names)))}), folder / "v.parquet"
    )
    return {"model": "./v.parquet"}


def write_named_columns(folder, names, array):
    table = pa.table({"url": names, "a": lists(array[:, ::-1]), "b": lists(array, pa.float64())})
    (folder / "parts").mkdir()
    for n in range(0, len(names), 30):
        pq.write_table(table.slice(n, 30), folder / "parts" / f"part_{n}.parquet")
    return {"model": "./parts", "source_column": "b", "source_ids": "url"}


def write_saved(folder, names, array):
    Dataset.from_dict({"image_id": names, "v": array.tolist()}).save_to_disk(folder / "saved")
    return {"model": "./saved"}


def write_clip_retrieval(folder, names, array):
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / "clip" / name).mkdir(parents=True)
    for part, low in enumerate(range(0, len(names), 40)):
        np.save(folder / "clip" / "img_emb" / f"img_emb_{part}.npy", array[low : low + 40].astype(np.float16))
        np.save(folder / "clip" / "text_emb" / f"text_emb_{part}.npy", -array[low : low + 40].astype(np.float16))
        table = pa.table({"image_path": [f"/data/photos/{name}" for name in names[low : low + 40]]})
        pq.write_table(table, folder / "clip" / "metadata" / f"metadata_{part}.parquet")
    return {"model": "./clip"}


def write_nemo(folder, names, array):
    (folder / "nemo").mkdir()
    for part, low in enumerate(range(0, len(names), 40)):
        table = pa.table({"image_id": names[low : low + 40], "embedding": lists(array[low : low + 40])})
        pq.write_table(table, folder / "nemo" / f"{part}.parquet")
    return {"model": "./nemo"}


LAYOUTS = {
    "npy": write_npy,
    **{f"npy with {kind}": write_npy_ids(kind) for kind in ("json", "npy", "parquet")},
    "npz": write_npz,
    "parquet": write_parquet,
    "named columns": write_named_columns,
    "saved data set": write_saved,
    "clip-retrieval": write_clip_retrieval,
    "NeMo Curator": write_nemo,
}


def embed(corpus, folder, settings, out="out"):
    encoder = EncoderConfig(**{"name": "v", "input": "image", "library": "file", **settings})
    return embed_corpus(corpus, config=EmbedConfig((encoder,)), out=folder / out, work=folder)["v"]


def unit(array):
    return array / np.linalg.norm(array, axis=1, keepdims=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_are_joined_by_id(corpus, ids, rows, tmp_path, layout, capsys):
    names, array = rows
    made = embed(corpus, tmp_path, LAYOUTS[layout](tmp_path, names, array))
    expected = unit(np.stack([array[names.index(name)] for name in ids]).astype(float))
    assert np.abs(made.arrays() - expected).max() < 1e-3
    assert made.manifest.rejected == {}
    assert made.manifest.stats["dimension"] == D
    assert made.manifest.stats["input"] == "image"
    assert made.dataset()["image_id"][:] == ids
    assert ("is taken off" in capsys.readouterr().err) == (layout == "clip-retrieval")


def test_texts_of_clip_retrieval_are_those_of_captions(corpus, ids, rows, tmp_path):
    names, array = rows
    settings = write_clip_retrieval(tmp_path, names, array)
    made = embed(corpus, tmp_path, {**settings, "input": "caption"})
    expected = -unit(np.stack([array[names.index(name)] for name in ids]).astype(float))
    assert np.abs(made.arrays() - expected).max() < 2e-3


def test_rows_by_position(corpus, ids, tmp_path):
    array = np.random.default_rng(0).standard_normal((len(ids), D)).astype(np.float16)
    np.save(tmp_path / "v.npy", array)
    made = embed(corpus, tmp_path, {"model": "./v.npy", "source_ids": "position"})
    assert np.abs(made.arrays() - unit(array.astype(float))).max() < 1e-3
    np.save(tmp_path / "v.npy", array[1:])
    with pytest.raises(ArtifactError, match=r"has 95 rows, but .* 96, so they cannot be joined by position"):
        embed(corpus, tmp_path, {"model": "./v.npy", "source_ids": "position"}, "two")


def test_what_is_missing_or_no_number_is_rejected(corpus, ids, rows, tmp_path, capsys):
    names, array = list(rows[0]), rows[1].copy()
    array[names.index(ids[3])] = np.nan
    array[names.index(ids[40])] = 0
    array[names.index(ids[41]), 5] = np.inf
    left = [n for n, name in enumerate(names) if name != ids[70]]
    write_npy(tmp_path, [names[n] for n in left], array[left])
    (tmp_path / "e.yaml").write_text("encoders:\n- {name: v, model: ./v.npy, library: file, input: image}\n")
    words = ["--corpus", corpus.path, "--work", str(tmp_path), "--config", str(tmp_path / "e.yaml")]
    assert main(["embed", *words]) == 0
    message = capsys.readouterr().err
    assert "1 missing_embedding, 2 not_finite, 1 zero_embedding" in message
    made = open_artifact(tmp_path / "embeddings" / "v")
    assert made.rows == len(ids)
    assert {row["key"]: row["reason"] for row in made.rejected().to_pylist()} == {
        ids[3]: "not_finite",
        ids[40]: "zero_embedding",
        ids[41]: "not_finite",
        ids[70]: "missing_embedding",
    }
    assert np.flatnonzero(~made.arrays().any(axis=1)).tolist() == [3, 40, 41, 70]


def table(folder, **columns):
    pq.write_table(pa.table(columns), folder / "v.parquet")
    return {"model": "./v.parquet"}


def bare(folder, array):
    np.save(folder / "v.npy", array, allow_pickle=True)
    return {"model": "./v.npy"}


def write_pickle(folder, names, array):
    write_npy(folder, names, array)
    return bare(folder, np.array([{}], object))


WRONG = {
    "count": lambda f, names, array: write_npy(f, names[:-1], array),
    "flat": lambda f, names, array: write_npy(f, names, array[:, 0]),
    "cube": lambda f, names, array: write_npy(f, names, array[:, None]),
    "integers": lambda f, names, array: write_npy(f, names, array.astype(int)),
    "repeated": lambda f, names, array: write_npy(f, [names[1], *names[1:]], array),
    "blank": lambda f, names, array: write_npy(f, ["", *names[1:]], array),
    "others": lambda f, names, array: write_npy(f, [f"x{n}" for n in range(len(names))], array),
    "no ids": lambda f, names, array: bare(f, array),
    "no file": lambda f, names, array: {"model": "./nowhere.npy"},
    "pickle": write_pickle,
    "ragged": lambda f, names, array: table(
        f, image_id=names, v=[r[: 3 + n % 2].tolist() for n, r in enumerate(array)]
    ),
    "two columns": lambda f, names, array: table(f, image_id=names, a=lists(array), b=lists(array)),
    "null": lambda f, names, array: table(f, image_id=names, v=[None, *array[1:].astype(float).tolist()]),
    "empty": lambda f, names, array: (f / "empty").mkdir() or {"model": "./empty"},
}
REFUSED = {
    "count": r"98 embeddings, but 97 ids; give an id for each",
    "flat": r"holds float32 \[98\]; embeddings are rows",
    "cube": r"holds float32 \[98, 1, 12\]",
    "integers": r"holds int64",
    "repeated": r"the id '.*' is in 2 rows",
    "blank": r"1 rows have no id",
    "others": r"names no image of .*: its ids are like 'x0', 'x1', 'x2', those of the corpus like",
    "no ids": r"has no ids beside it .*; name a file of ids by `source_ids`, or `position`",
    "no file": r"there is no .*nowhere.npy",
    "pickle": r"is no array of embeddings",
    "ragged": r"not of one length",
    "two columns": r"by `source_column`: there is image_id, a, b, of which a, b fit",
    "null": r"rows without an embedding",
    "empty": r"holds no embeddings that can be read",
}


@pytest.mark.parametrize("what", REFUSED)
def test_files_that_cannot_be_used_say_why(corpus, rows, tmp_path, what):
    with pytest.raises(MegaPairsError, match=REFUSED[what]):
        embed(corpus, tmp_path, WRONG[what](tmp_path, *rows))


def test_other_files_make_the_embeddings_stale(corpus, rows, tmp_path):
    settings = write_npy(tmp_path, *rows)
    made = embed(corpus, tmp_path, settings)
    assert embed(corpus, tmp_path, settings).fingerprint == made.fingerprint
    write_npy(tmp_path, rows[0], rows[1] + 1)
    with pytest.raises(StaleArtifactError, match=r"inputs\.model"):
        embed(corpus, tmp_path, settings)


def test_the_row_function_reads_files_too(corpus, ids, rows, tmp_path):
    made = embed(corpus, tmp_path, write_npy(tmp_path, *rows))
    data = corpus.dataset()
    function = EmbedImages(str(tmp_path / "v.npy"), "v", library="file")
    added = add_columns(data, function, batch_size=7)
    np.testing.assert_array_equal(np.array(added.with_format("arrow")[:]["v"].to_pylist()), made.arrays())
    assert function.one(image_id="nobody")["error"].startswith("missing_embedding")
    # the command mines what it embedded: no model, no GPU
    texts = EmbedTexts(str(tmp_path / "v.npy"), library="file")
    np.testing.assert_array_equal(texts.one(image_id=ids[0])["embedding"], made.arrays()[0])


# ---- Python functions

MODULE = """
import numpy as np
import torch

def colors(images):
    return np.stack([np.asarray(image, float).mean((0, 1)) for image in images])

def lengths(texts):
    return [[len(text), text.count(" ") + 1.0] for text in texts]

class Model:
    def __init__(self, device):
        self.device = device
    def __call__(self, images):
        assert isinstance(images, list) and images[0].mode == "RGB"
        return torch.from_numpy(colors(images)).to(self.device)

def flat(images): return np.ones(len(images))
def cube(images): return np.ones((len(images), 3, 7, 7))
def one_row(images): return np.ones((1, 5))
def whole_numbers(images): return np.ones((len(images), 5), np.int64)
def words(images): return ["a"] * len(images)
def nothing(images): return None
def fails(images): raise KeyError("no such layer")
def nan(images): return np.full((len(images), 3), np.nan)
NUMBER = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_encoders.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield "my_encoders"
    sys.modules.pop("my_encoders", None)
    while str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


def python(corpus, folder, model, kind="image", out="out"):
    encoder = EncoderConfig("v", model, kind, "python")
    return embed_corpus(corpus, config=EmbedConfig((encoder,), batch_size=16), out=folder / out)["v"]


@pytest.mark.parametrize("name", ["my_encoders:colors", "my_encoders.py:colors", "my_encoders:Model"])
def test_a_function_of_images(corpus, module, tmp_path, name):
    from megapairs_hf.images.decode import to_rgb

    made = python(corpus, tmp_path, name)
    images = [to_rgb(row["image"]["bytes"]) for row in corpus.table(["image"]).to_pylist()]
    expected = unit(np.stack([np.asarray(image, float).mean((0, 1)) for image in images]))
    assert np.abs(made.arrays() - expected).max() < 1e-3
    added = add_columns(corpus.dataset(), EmbedImages(name, "v", library="python", batch_size=16), batch_size=7)
    np.testing.assert_array_equal(np.array(added.with_format("arrow")[:]["v"].to_pylist()), made.arrays())


def test_a_function_of_captions(corpus, module, tmp_path):
    made = python(corpus, tmp_path, "my_encoders:lengths", "caption")
    captions = corpus.table(["caption"])["caption"].to_pylist()
    expected = unit(np.array([[len(text), text.count(" ") + 1.0] for text in captions]))
    assert np.abs(made.arrays() - expected).max() < 1e-3


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "flat",
            r"the encoder v returned float64 numbers of shape \[1?\d\] for 1?\d inputs?, but must",
        ),
        ("cube", r"shape \[1?\d, 3, 7, 7\]"),
        ("one_row", r"shape \[1, 5\] for 16 inputs"),
        ("whole_numbers", r"int64 numbers of shape \[1?\d, 5\]"),
        ("words", r"failed with TypeError"),
        ("nothing", r"failed with TypeError"),
        ("fails", r"failed with KeyError: 'no such layer'"),
        ("nan", r"not finite"),
        ("NUMBER", r"nothing to call named 'NUMBER'"),
        ("absent", r"nothing to call named 'absent'"),
    ],
)
@pytest.mark.parametrize("kind", ["image", "caption"])
def test_what_is_no_embedding_is_one_sentence(corpus, module, tmp_path, name, sentence, kind):
    with pytest.raises(ModelError, match=sentence) as refused:
        python(corpus, tmp_path, f"my_encoders:{name}", kind)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out" / "v" / "manifest.json").exists()


@pytest.mark.parametrize("model", ["nowhere:f", "no/file.py:f", "json.nowhere:f"])
def test_modules_that_are_not_there(corpus, tmp_path, model):
    with pytest.raises(ModelError, match=r"there is no (module|file)|cannot import"):
        python(corpus, tmp_path, model)
    with pytest.raises(ConfigError, match="must be module:callable"):
        EncoderConfig("v", "no_function", "image", "python")


def test_a_changed_function_makes_other_embeddings(corpus, module, tmp_path):
    python(corpus, tmp_path, "my_encoders:colors")
    file = tmp_path / "my_encoders.py"
    file.write_text(file.read_text() + "\n# changed\n")
    with pytest.raises(StaleArtifactError, match=r"inputs\.model"):
        python(corpus, tmp_path, "my_encoders:colors")


@pytest.mark.parametrize("file", [".plan.json", "manifest.json"])
def test_code_that_an_artifact_names_is_never_run(corpus, models, tmp_path, monkeypatch, file):
    """Neither by the plan of an interrupted run nor by the manifest of a finished one."""
    (tmp_path / "evil.py").write_text("raise SystemExit('it was run')\n")
    monkeypatch.chdir(tmp_path)
    encoder = EncoderConfig("v", f"{models}/clip", "image")
    config, out = EmbedConfig((encoder,), batch_size=16), tmp_path / "out"
    embed_corpus(corpus, config=config, out=out)
    folder = out / "v"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"]["model"] |= {"library": "python", "model": "evil:f", "trust_remote_code": True}
    if file == ".plan.json":
        manifest["shards"] = [shard["file"] for shard in manifest["shards"]]
        (folder / "manifest.json").unlink()
        (folder / ".parts").mkdir()
        (folder / ".parts" / "00000.json").write_text("{}")
    (folder / file).write_text(json.dumps(manifest))
    with pytest.raises(StaleArtifactError, match="model"):
        embed_corpus(corpus, config=config, out=out)
    assert "evil" not in sys.modules
    # and every other reader of a finished one
    if file == "manifest.json":
        open_artifact(folder, "embeddings").dataset()
        assert main(["inspect", str(folder)]) == 0
    assert "evil" not in sys.modules


def test_only_the_settings_of_a_call_reach_what_loads_encoders():
    """No module but these makes an encoder, so that no manifest's settings can become one."""
    users = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "megapairs_hf").rglob("*.py")
        if any(f"{name}(" in path.read_text() for name in ("load_encoder", "load_encoders", "load_callable"))
    }
    assert users == {
        "megapairs_hf/embedding/embed.py",
        "megapairs_hf/embedding/stage.py",
        "megapairs_hf/embedding/device_defaults.py",
        "megapairs_hf/embedding/encoders.py",
        "megapairs_hf/embedding/python_encoder.py",
    }


# ---- ONNX


@pytest.fixture(scope="module")
def onnx(models, tmp_path_factory):
    pytest.importorskip("onnxscript")
    import shutil

    from megapairs_hf.models import load_mmret
    from megapairs_hf.models.onnx import export_onnx

    folder = tmp_path_factory.mktemp("onnx") / "clip"
    shutil.copytree(f"{models}/clip", folder)
    export_onnx(load_mmret(f"{models}/clip"), folder / "onnx")
    return folder


@pytest.mark.parametrize("kind", ["image", "caption"])
def test_a_graph_gives_the_embeddings_of_its_model(corpus, models, onnx, tmp_path, kind):
    both = {}
    for library, folder in (("transformers", f"{models}/clip"), ("onnx", str(onnx))):
        encoder = EncoderConfig("v", folder, kind, library)
        config = EmbedConfig((encoder,), batch_size=16)
        both[library] = embed_corpus(corpus, config=config, out=tmp_path / library)["v"].arrays().astype(float)
    assert np.abs(both["onnx"] - both["transformers"]).max() < 2e-3
    # a graph is identified by its bytes
    file = EncoderConfig("v", "./clip/onnx/image.onnx", "image", "onnx")
    if kind == "image":
        made = embed_corpus(corpus, config=EmbedConfig((file,), batch_size=16), out=tmp_path / "f", work=onnx.parent)
        assert np.abs(made["v"].arrays() - both["onnx"]).max() < 2e-3


def graph(folder, shape, nodes=(), rows="rows"):
    """A graph from pixels [B, 3, 32, 32] to something of another shape."""
    from onnx import TensorProto, helper, save

    pixels = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, [rows, 3, 32, 32])
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)
    nodes = nodes or [helper.make_node("Identity", ["pixel_values"], ["out"])]
    model = helper.make_model(helper.make_graph(nodes, "g", [pixels], [output]), ir_version=9)
    model.opset_import[0].version = 17
    save(model, str(folder / "model.onnx"))


@pytest.mark.parametrize("rows", ["rows", 4])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_map_is_pooled_and_a_fixed_batch_is_kept_to(corpus, models, tmp_path, pooling, rows):
    pytest.importorskip("onnx")
    from transformers import AutoImageProcessor

    from megapairs_hf.images.decode import to_rgb

    graph(tmp_path, [rows, 3, 32, 32], rows=rows)
    AutoImageProcessor.from_pretrained(f"{models}/clip", backend="pil").save_pretrained(tmp_path)
    encoder = EncoderConfig("v", str(tmp_path), "image", "onnx", pooling=pooling)
    config = EmbedConfig((encoder,), batch_size=10)
    if pooling == "cls":
        with pytest.raises(ModelError, match=r"shape \[1, 3, 32, 32\] for 1 input"):
            embed_corpus(corpus, config=config, out=tmp_path / "out")
        return
    made = embed_corpus(corpus, config=config, out=tmp_path / "out")["v"].arrays()
    images = [to_rgb(row["image"]["bytes"]) for row in corpus.table(["image"]).to_pylist()]
    pixels = AutoImageProcessor.from_pretrained(f"{models}/clip", backend="pil")(images, return_tensors="np")
    assert np.abs(made - unit(pixels["pixel_values"].mean((2, 3)).astype(float))).max() < 5e-3


def test_graphs_that_cannot_be_used_say_why(models, onnx, tmp_path):
    def tried(folder, **settings):
        return EmbedImages(str(folder), library="onnx", **settings).features

    with pytest.raises(ModelError, match=r"has no .onnx file; name the graph for this input by `pretrained`"):
        tried(models + "/clip")
    with pytest.raises(ModelError, match=r"there is no graph onnx/vision.onnx"):
        tried(onnx, pretrained="onnx/vision.onnx")
    with pytest.raises(ModelError, match=r"the graph has no output 'x'; it has sentence_embedding"):
        tried(onnx, source_column="x")
    with pytest.raises(ModelError, match=r"takes .*input_ids.*, but an image is one input"):
        tried(onnx, pretrained="onnx/joint.onnx")
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match="cannot load the encoder embedding"):
        tried(tmp_path)


def test_the_same_bytes_whatever_else_is_embedded(corpus, rows, models, tmp_path):
    """Files beside models, in one run and in two."""
    write_npy(tmp_path, *rows)
    stored = EncoderConfig("v", str(tmp_path / "v.npy"), "image", "file")
    clip = EncoderConfig("clip", f"{models}/clip", "image")
    embed_corpus(corpus, config=EmbedConfig((stored, clip), batch_size=16), out=tmp_path / "both")
    for encoder in (stored, clip):
        embed_corpus(corpus, config=EmbedConfig((encoder,), batch_size=16), out=tmp_path / "one")
    assert files_of(tmp_path / "both") == files_of(tmp_path / "one")
