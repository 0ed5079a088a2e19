import io
import json
import tarfile

import numpy as np
from datasets import load_dataset

from megapairs_hf.core.config import build_config, read_yaml
from megapairs_hf.corpus import CorpusConfig, ScenesConfig, make_corpus
from megapairs_hf.corpus.check_rows import is_held_out
from megapairs_hf.corpus.stage import open_source
from tests.small import ROOT, megapairs


def test_a_corpus_is_a_data_set(corpus):
    loaded = load_dataset("parquet", data_files=corpus.shard_paths(), split="train")
    assert loaded[0]["image"].size == (32, 32)
    sizes = ["width", "height", "num_bytes", "sha256", "pixels_sha256"]
    assert loaded.column_names == ["image_id", "image", "caption", "captions", *sizes, "meta"]


def test_a_parquet_folder_gives_the_same_images(corpus, tmp_path):
    # rejected.parquet lies in the same folder and is no part of the data
    config = CorpusConfig(source="parquet", path=corpus.path, id_column="image_id", meta_columns=("width",))
    copied = make_corpus(config, out=tmp_path / "copy")
    columns = ["image_id", "pixels_sha256", "caption"]
    assert copied.table(columns).equals(corpus.table(columns).cast(copied.table(columns).schema))
    assert copied.table(["meta"])["meta"][0].as_py() == {"width": 32}


def test_webdataset_tars(corpus, tmp_path):
    rows = corpus.table(["image_id", "image", "caption"]).slice(0, 6).to_pylist()
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for row in rows:
            for suffix, content in (("png", row["image"]["bytes"]), ("txt", row["caption"].encode())):
                info = tarfile.TarInfo(f"{row['image_id']}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    config = CorpusConfig(source="webdataset", path=str(tmp_path), id_column="__key__")
    made = make_corpus(config, out=tmp_path / "corpus")
    assert made.table(["caption"])["caption"].to_pylist() == [row["caption"] for row in rows]
    assert made.table(["image_id"])["image_id"].to_pylist() == [row["image_id"] for row in rows]


def test_doubles_are_found_across_shards(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(6):
        from PIL import Image

        Image.new("RGB", (20, 20), (i % 3, 0, 0)).save(tmp_path / "images" / f"{i}.png")
    config = CorpusConfig(
        source="image_folder", path=str(tmp_path / "images"), caption_template="{stem}", shard_rows=2
    )
    made = make_corpus(config, out=tmp_path / "corpus")
    assert made.table(["image_id"])["image_id"].to_pylist() == ["0.png", "1.png", "2.png"]
    assert [shard["rows"] for shard in made.manifest.shards] == [2, 1, 0]
    assert made.rejected()["detail"].to_pylist() == [
        "same pixels as 0.png",
        "same pixels as 1.png",
        "same pixels as 2.png",
    ]


def test_parts_share_no_group_and_leave_out_nothing():
    scenes = ScenesConfig(count=400)
    parts = {
        part: open_source(CorpusConfig("scenes", scenes=scenes, group_column="family", held_out=0.3, part=part))
        for part in ("train", "held_out")
    }
    groups = {part: set(source.groups("family")) for part, source in parts.items()}
    assert not groups["train"] & groups["held_out"]
    assert parts["train"].rows + parts["held_out"].rows == 400
    share = np.mean([is_held_out(f"group {i}", 0.3) for i in range(5000)])
    # three standard errors of a binomial share
    assert abs(share - 0.3) < 3 * (0.3 * 0.7 / 5000) ** 0.5


def test_a_remote_image_is_not_fetched(tmp_path):
    rows = [{"image": {"bytes": None, "path": "http://127.0.0.1:9/a.png"}, "caption": "x"}]
    import pyarrow as pa
    import pyarrow.parquet as pq

    from megapairs_hf.core.schema import IMAGE_TYPE, with_features

    schema = with_features(pa.schema([("image", IMAGE_TYPE), ("caption", pa.string())]), ("image",))
    good = {"bytes": make_png(), "path": None}
    pq.write_table(
        pa.Table.from_pylist([*rows, {"image": good, "caption": "y"}], schema=schema), tmp_path / "a.parquet"
    )
    made = make_corpus(CorpusConfig(source="parquet", path=str(tmp_path)), out=tmp_path / "corpus")
    assert made.manifest.rejected == {"remote_image": 1}
    assert json.dumps(made.manifest.config)


def make_png():
    from PIL import Image

    sink = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(sink, "PNG")
    return sink.getvalue()


def test_the_source_is_required(tmp_path):
    result = megapairs("corpus", "--path", tmp_path, "--work", tmp_path / "w")
    assert result.returncode == 1 and not (tmp_path / "w").exists()
    assert result.stderr.strip().endswith("`source` is required; add it") and result.stderr.strip().count("\n") == 0


def test_every_corpus_of_a_recipe_uses_its_settings():
    files = [*ROOT.glob("recipes/*.yaml"), ROOT / "megapairs_hf/cli/demo.yaml"]
    corpora = [values for path in files for key, values in read_yaml(path).items() if key in {"corpus", "heldout"}]
    assert len(corpora) == 6
    for values in corpora:
        build_config(CorpusConfig, values)
