import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, List, Value

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.cli import main
from megapairs_hf.core.errors import ArtifactError, ConfigError
from megapairs_hf.mining import mine
from megapairs_hf.mining.embedding_folders import open_embedding_folder
from tests.clustered import made_corpus

SETTINGS = {"neighbors": 12, "similarity_range": (0.2, 0.98), "range_kind": "quantile", "near_duplicate": 0.95}
FLAGS = [
    "--neighbors",
    "12",
    "--similarity_range",
    "[0.2, 0.98]",
    "--range_kind",
    "quantile",
    "--near_duplicate",
    "0.95",
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def unit(embeddings):
    return (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((15, 32))
    image = unit(centers[rng.integers(0, 15, 240)] + 0.7 * rng.standard_normal((240, 32)))
    return image, unit(image + 0.4 * rng.standard_normal((240, 32)))


# number of the part: its rows; ten comes after nine, and files of earlier versions are not padded
PARTS = {2: (0, 50), 9: (50, 51), 10: (51, 200), 11: (200, 240)}


def keys():
    return [f"{n:09d}" for n in range(240)]


def clip_retrieval(folder, arrays, padded=True):
    """`img_emb/img_emb_02.npy`, `text_emb/text_emb_02.npy`, `metadata/metadata_02.parquet`."""
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for part, (low, high) in PARTS.items():
        number = f"{part:02d}" if padded else part
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", arrays[0][low:high])
        np.save(folder / "text_emb" / f"text_emb_{number}.npy", arrays[1][low:high])
        table = pa.table({"image_path": keys()[low:high], "caption": ["a mug"] * (high - low)})
        pq.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")
    return folder


def curated(folder, embeddings, kind=None):
    """Tables as NeMo Curator's: `image_id` that it made up, `embedding` as a list."""
    folder.mkdir()
    for part, (low, high) in PARTS.items():
        ids = [f"{part:05d}_{n:06d}" for n in range(high - low)]
        lists = pa.array(embeddings[low:high].astype(float).tolist(), pa.list_(kind or pa.float32()))
        pq.write_table(
            pa.table({"image_id": ids, "embedding": lists}), folder / f"part_{part}.parquet", row_group_size=40
        )
    return folder


def expected(ids, **embeddings):
    features = {name: List(Value("float16"), length=32) for name in embeddings}
    rows = Dataset.from_dict(
        {"image_id": ids, **embeddings}, features=Features({"image_id": Value("string"), **features})
    )
    return mine(rows, **SETTINGS).to_list()


@pytest.mark.parametrize("padded", [True, False])
def test_clip_retrieval(padded, arrays, tmp_path):
    folder = clip_retrieval(tmp_path / "clip", arrays, padded)
    pairs = mine(folder, **SETTINGS)
    assert len(pairs) > 100
    assert pairs.to_list() == expected(keys(), img_emb=arrays[0], text_emb=arrays[1])
    # searched where they lie: nothing was copied, nothing was pickled
    assert mine(str(folder), relations=["img_emb"], **SETTINGS).to_list() == expected(keys(), img_emb=arrays[0])
    assert mine(folder, **SETTINGS)._fingerprint == pairs._fingerprint


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()])
def test_nemo_curator(kind, arrays, tmp_path):
    folder = curated(tmp_path / "tables", arrays[0], kind)
    pairs = mine(folder, **SETTINGS)
    ids = [f"{part:05d}_{n:06d}" for part, (low, high) in PARTS.items() for n in range(high - low)]
    assert pairs.to_list() == expected(ids, embedding=arrays[0])


def test_the_command_names_images_by_the_ids_of_the_folder_or_of_a_corpus(arrays, tmp_path, capsys):
    clip, tables = clip_retrieval(tmp_path / "clip", arrays), curated(tmp_path / "tables", arrays[0])
    words = ["mine", "--work", str(tmp_path / "work"), "--embeddings"]
    assert main([*words, str(clip), "--out", str(tmp_path / "own"), *FLAGS]) == 0
    own = open_artifact(tmp_path / "own", "pairs")
    assert own.table().to_pylist() == expected(keys(), img_emb=arrays[0], text_emb=arrays[1])
    assert "corpus" not in own.manifest.inputs
    capsys.readouterr()
    # with a corpus, row by row, and it says so
    corpus = made_corpus(tmp_path / "work" / "corpus", 240, 100)
    assert main([*words, str(tables), "--out", str(tmp_path / "joined"), *FLAGS]) == 0
    joined = open_artifact(tmp_path / "joined", "pairs")
    assert joined.table().to_pylist() == expected([f"p{n:07d}" for n in range(240)], embedding=arrays[0])
    assert joined.manifest.inputs["corpus"] == corpus.fingerprint
    assert "row by row" in (message := capsys.readouterr().err) and "'00002_000000' for that of 'p0000000'" in message
    made_corpus(tmp_path / "other", 239, 100)
    assert main([*words, str(tables), "--corpus", str(tmp_path / "other"), "--out", str(tmp_path / "x"), *FLAGS]) == 1
    assert "has 240 rows, but the corpus 239" in capsys.readouterr().err
    # a corpus that is named must be there
    assert main([*words, str(tables), "--corpus", str(tmp_path / "gone"), "--out", str(tmp_path / "x"), *FLAGS]) == 1
    assert "holds no artifact" in capsys.readouterr().err


def test_embeddings_of_ours_need_their_corpus(arrays, tmp_path, capsys):
    from tests.clustered import made_embeddings

    corpus = made_corpus(tmp_path / "elsewhere", 240, 100)
    made_embeddings(tmp_path / "work" / "embeddings" / "image", corpus, arrays[0])
    assert main(["mine", "--work", str(tmp_path / "work"), *FLAGS]) == 1
    assert (
        "the corpus that the embeddings were made of is not there; name its folder with --corpus"
        in capsys.readouterr().err
    )


def test_folders_whose_rows_do_not_belong_together_say_why(arrays, tmp_path):
    def broken(name):
        return clip_retrieval(tmp_path / name, arrays)

    short = broken("short")
    np.save(short / "text_emb" / "text_emb_10.npy", arrays[1][51:199])
    with pytest.raises(ArtifactError, match=r"text_emb_10\.npy has 148 rows, but metadata 10 has 149"):
        mine(short, **SETTINGS)
    missing = broken("missing")
    (missing / "img_emb" / "img_emb_09.npy").unlink()
    with pytest.raises(ArtifactError, match="number 9 in only one of img_emb and metadata"):
        mine(missing, **SETTINGS)
    wide = broken("wide")
    np.save(wide / "img_emb" / "img_emb_09.npy", np.ones((1, 31), np.float16))
    with pytest.raises(ArtifactError, match="not of one length"):
        mine(wide, **SETTINGS)
    pickled = broken("pickled")
    np.save(pickled / "img_emb" / "img_emb_09.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ArtifactError, match="is no array of embeddings"):
        mine(pickled, **SETTINGS)
    flat = broken("flat")
    np.save(flat / "img_emb" / "img_emb_09.npy", np.ones(32, np.int64))
    with pytest.raises(ArtifactError, match=r"holds int64 \[32\]; embeddings are rows of float16 or float32"):
        mine(flat, **SETTINGS)
    unnamed = broken("unnamed")
    pq.write_table(pa.table({"caption": ["a"]}), unnamed / "metadata" / "metadata_09.parquet")
    with pytest.raises(ArtifactError, match="has no column 'image_path', which names the images"):
        mine(unnamed, **SETTINGS)
    bare = broken("bare")
    for file in (bare / "metadata").iterdir():
        file.unlink()
    with pytest.raises(ArtifactError, match=r"has no file like metadata_0\.parquet"):
        mine(bare, **SETTINGS)
    repeated = broken("repeated")
    pq.write_table(pa.table({"image_path": [keys()[3]]}), repeated / "metadata" / "metadata_09.parquet")
    with pytest.raises(ConfigError, match="has the image id '000000003' in 2 rows"):
        mine(repeated, **SETTINGS)
    with pytest.raises(ConfigError, match="relation 'dino' needs embeddings 'dino'; there are img_emb, text_emb"):
        mine(broken("known"), ["dino"], **SETTINGS)


def test_what_is_no_folder_of_embeddings_says_what_is(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "gone"):
        with pytest.raises(ArtifactError, match=r"neither img_emb/img_emb_0\.npy \(clip-retrieval\) nor parquet"):
            mine(folder)
    (tmp_path / "ragged").mkdir()
    lists = pa.array([[1.0, 2.0], [1.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"image_id": ["a", "b"], "embedding": lists}), tmp_path / "ragged" / "0.parquet")
    with pytest.raises(ArtifactError, match=r"0\.parquet: the embeddings in the column 'embedding' are not of one"):
        mine(tmp_path / "ragged", **SETTINGS)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "0.parquet").write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match="is no parquet file"):
        mine(tmp_path / "cut")


def test_a_folder_is_told_by_its_content(arrays, tmp_path):
    folder = clip_retrieval(tmp_path / "clip", arrays)
    first = open_embedding_folder(folder)
    assert first.texts == {"text_emb"}
    np.save(folder / "img_emb" / "img_emb_09.npy", arrays[0][:1])
    changed = open_embedding_folder(folder)
    copy = open_embedding_folder(clip_retrieval(tmp_path / "copy", arrays))
    assert first.inputs == copy.inputs != changed.inputs
    assert open_embedding_folder(folder, text_columns=[]).inputs != changed.inputs
