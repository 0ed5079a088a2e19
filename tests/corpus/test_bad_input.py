import dataclasses
import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from megapairs_hf.core.errors import CorpusError, StaleArtifactError
from megapairs_hf.corpus import CorpusConfig, make_corpus
from megapairs_hf.images.decode import to_rgb
from tests.small import megapairs


def png(color, size=(40, 40)):
    sink = io.BytesIO()
    Image.new("RGB", size, color).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with everything that people's folders have in them."""
    root = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    Image.fromarray(noise).save(root / "whole.jpg")
    (root / "truncated.jpg").write_bytes((root / "whole.jpg").read_bytes()[:9000])
    (root / "empty.png").write_bytes(b"")
    (root / "text.png").write_text("this is no image")
    Image.fromarray(np.linspace(0, 65535, 1600).reshape(40, 40).astype(np.uint16)).save(root / "sixteen.tif")
    Image.new("CMYK", (44, 40), (0, 255, 255, 0)).save(root / "cmyk.jpg")
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    frames[0].save(root / "animated.gif", save_all=True, append_images=frames[1:])
    palette = Image.new("P", (40, 40), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.paste(0, (0, 0, 10, 10))
    palette.save(root / "palette.png", transparency=0)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 30), "green").save(root / "rotated.jpg", exif=exif)
    Image.new("1", (30_000, 30_000)).save(root / "huge.png")
    (root / os.fsdecode(b"caf\xe9.png")).write_bytes(png((1, 2, 3)))
    (root / "no_caption.png").write_bytes(png((4, 5, 6)))
    (root / "long_caption.png").write_bytes(png((7, 8, 9)))
    for i in range(5):
        (root / f"same_{i}.png").write_bytes(png((90, 90, 90)))
    for path in root.iterdir():
        caption = {"no_caption": "  ", "long_caption": "word " * 10_000}.get(path.stem, f"an image called {path.stem}")
        path.with_suffix(".txt").write_text(caption.encode("utf-8", "replace").decode())
    return root


def test_each_image_is_used_rightly_or_rejected_with_a_reason(folder, tmp_path):
    corpus = make_corpus(CorpusConfig(source="image_folder", path=str(folder)), out=tmp_path / "corpus")
    rows = {row["image_id"]: row for row in corpus.table().to_pylist()}
    rejected = {row["key"]: row["reason"] for row in corpus.rejected().to_pylist()}
    assert rejected == {
        "truncated.jpg": "truncated",
        "empty.png": "empty_file",
        "text.png": "not_an_image",
        "huge.png": "too_many_pixels",
        "no_caption.png": "no_caption",
        **{f"same_{i}.png": "duplicate_image" for i in range(1, 5)},
    }
    assert corpus.manifest.stats["rows_in"] == len(rows) + len(rejected)
    assert corpus.manifest.rejected["duplicate_image"] == 4
    assert "caf\\xe9.png" in rows

    def pixel(name):
        return np.asarray(to_rgb(rows[name]["image"]["bytes"]))[0, 0].tolist()

    assert pixel("palette.png") == [255, 255, 255]
    assert pixel("animated.gif") == [255, 0, 0]
    assert pixel("sixteen.tif")[0] == 0
    assert pixel("cmyk.jpg")[0] > 240
    assert (rows["rotated.jpg"]["width"], rows["rotated.jpg"]["height"]) == (30, 60)
    assert len(rows["long_caption.png"]["caption"].split()) == 256
    assert corpus.manifest.stats["notes"]["caption_cut"] == 1
    # what is stored now opens as it was decoded, everywhere
    for row in rows.values():
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert image.mode == "RGB"
        assert image.size == (row["width"], row["height"])


def test_a_changed_folder_is_noticed(folder, tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    (root / "a.png").write_bytes(png((1, 1, 1)))
    words = ("corpus", "--source", "image_folder", "--path", root, "--caption-template", "'a {stem}'")
    assert megapairs(*words, "--work", tmp_path / "w").returncode == 0
    (root / "b.png").write_bytes(png((2, 2, 2)))
    again = megapairs(*words, "--work", tmp_path / "w")
    assert again.returncode == 1
    assert "1 new, 0 changed, 0 gone; pass --update" in again.stderr


def test_captions_from_metadata(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(png((len(name), ord(name[0]), 0)))
    lines = [{"file_name": "a.png", "caption": "first", "label": "cat"}, {"file_name": "gone.png", "caption": "x"}]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = CorpusConfig(source="image_folder", path=str(tmp_path), meta_columns=("label",))
    corpus = make_corpus(config, out=tmp_path / "corpus")
    assert corpus.table(["caption", "meta"]).to_pylist() == [{"caption": "first", "meta": {"label": "cat"}}]
    assert corpus.manifest.rejected == {"no_caption": 1, "unreadable_file": 1}
    template = CorpusConfig(source="image_folder", path=str(tmp_path), caption_template="a photo of a {label}")
    assert make_corpus(template, out=tmp_path / "t").table(["caption"])["caption"].to_pylist() == ["a photo of a cat"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--source", "image_folder", "--path", "EMPTY"], "there is no image in"),
        (["--source", "image_folder", "--path", "nowhere"], "there is no folder nowhere"),
        (["--source", "parquet", "--path", "PARQUET", "--caption_column", "captoin"], "did you mean 'caption'?"),
        (["--source", "parquet", "--path", "PARQUET", "--meta_columns", "[size]"], "there is no column 'size'"),
        (["--source", "image_folder"], "`path` is None, but must be given"),
        (["--source", "scenes", "--part", "train"], "`group_column` is None"),
        (["--config", "EMPTY/none.yaml"], "cannot read the settings"),
    ],
)
def test_a_source_that_cannot_be_used_is_one_sentence(words, sentence, corpus, tmp_path):
    (tmp_path / "empty").mkdir()
    places = {"EMPTY": str(tmp_path / "empty"), "PARQUET": corpus.path}
    replaced = [word.replace("EMPTY", places["EMPTY"]).replace("PARQUET", places["PARQUET"]) for word in words]
    result = megapairs("corpus", *replaced, "--work", tmp_path / "w")
    assert result.returncode == 1
    assert sentence in result.stderr
    assert result.stderr.strip().count("\n") == 0
    assert "Traceback" not in result.stderr


def test_changed_captions_are_noticed(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    (root / "a.png").write_bytes(png((1, 1, 1)))
    (root / "a.txt").write_text("red")
    config = CorpusConfig(source="image_folder", path=str(root))
    make_corpus(config, out=tmp_path / "c")
    (root / "a.txt").write_text("darkest red")
    with pytest.raises(StaleArtifactError, match="0 new, 1 changed, 0 gone"):
        make_corpus(config, out=tmp_path / "c")


def test_a_corpus_without_a_usable_image_fails_every_time(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    (root / "a.png").write_text("no image")
    config = CorpusConfig(source="image_folder", path=str(root), caption_template="{stem}")
    for _ in range(2):
        with pytest.raises(CorpusError, match="none of the 1 images"):
            make_corpus(config, out=tmp_path / "c")


def test_a_line_separator_inside_a_caption_ends_no_row(tmp_path):
    (tmp_path / "a.png").write_bytes(png((9, 9, 9)))
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "a.png", "caption": "nearly\u2028black"}\n', encoding="utf-8"
    )
    made = make_corpus(CorpusConfig(source="image_folder", path=str(tmp_path)), out=tmp_path.parent / "c2028")
    assert "".join(made.table()["caption"].to_pylist()).split() == ["nearly", "black"]


METADATA = {
    "metadata.csv": "file_name,text,label\na.png,nearly black,x\n",
    "metadata.jsonl": '{"file_name": "a.png", "text": "nearly black", "label": "x"}\n',
}


@pytest.mark.parametrize("name", METADATA)
def test_captions_in_another_column_are_asked_for_at_once(tmp_path, name):
    root = tmp_path / "images"
    root.mkdir()
    (root / "a.png").write_bytes(png((9, 9, 9)))
    (root / name).write_text(METADATA[name])
    config = CorpusConfig(source="image_folder", path=str(root))
    told = (
        f"there is no column 'caption' in {root / name}; it has label, text (did you mean 'text'?); name it with"
        " --caption_column, make captions with --caption_template, or do without: --captions optional"
    )
    with pytest.raises(CorpusError) as caught:
        make_corpus(config, out=tmp_path / "c")
    assert str(caught.value) == told and not (tmp_path / "c").exists()
    with pytest.raises(
        CorpusError, match=r"; it has label, text \(did you mean 'text'\?\); name it with --caption_column"
    ):
        make_corpus(dataclasses.replace(config, caption_column="texts"), out=tmp_path / "c")
    made = make_corpus(dataclasses.replace(config, caption_column="text"), out=tmp_path / "c")
    assert made.table()["caption"].to_pylist() == ["nearly black"]
    # captions beside the images are captions too
    (root / "a.txt").write_text("beside")
    made = make_corpus(config, out=tmp_path / "d")
    assert made.table()["caption"].to_pylist() == ["beside"]


def test_images_without_captions_are_good_rows_unless_captions_are_required(tmp_path, capsys):
    root = tmp_path / "images"
    root.mkdir()
    for i in range(3):
        (root / f"{i}.png").write_bytes(png((9, 9, i)))
    config = CorpusConfig(source="image_folder", path=str(root))
    made = make_corpus(config, out=tmp_path / "c")
    assert made.table(["caption", "captions"]).to_pylist() == [{"caption": "", "captions": []}] * 3
    pretrain = megapairs(
        "pretrain", "--corpus", made.path, "--work", tmp_path / "w", "--clip.batch_size", "2", "--dino.batch_size", "2"
    )
    assert pretrain.stderr.strip().endswith("or embed with published encoders of images") and pretrain.returncode == 1
    assert "no captions: only the image relations" in capsys.readouterr().err
    (root / "metadata.csv").write_text("file_name,label\n0.png,x\n1.png,x\n2.png,y\n")
    assert make_corpus(config, out=tmp_path / "d").rows == 3
    required = dataclasses.replace(config, captions="required")
    with pytest.raises(CorpusError, match=r"there is no column 'caption' in .*metadata.csv; it has label; name it"):
        make_corpus(required, out=tmp_path / "e")
    (root / "metadata.csv").unlink()
    with pytest.raises(CorpusError, match=r"there are no captions in .*images; .*--caption_template.*optional"):
        make_corpus(required, out=tmp_path / "e")
    # one caption anywhere, and a row without one is rejected, unless it is said that it may lack
    (root / "1.txt").write_text("the only one")
    made = make_corpus(config, out=tmp_path / "f")
    assert made.table(["image_id"])["image_id"].to_pylist() == ["1.png"]
    assert made.manifest.rejected == {"no_caption": 2}
    capsys.readouterr()
    made = make_corpus(dataclasses.replace(config, captions="optional"), out=tmp_path / "g")
    assert made.table(["caption"])["caption"].to_pylist() == ["", "the only one", ""]
    assert "2 of 3 images have no caption" in capsys.readouterr().err
    # a part of a captioned folder is no folder without captions
    with pytest.raises(CorpusError, match="1 no_caption"):
        make_corpus(dataclasses.replace(config, limit=1), out=tmp_path / "h")


def test_every_caption_is_kept(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(png((ord(name), 0, 0)))
    lines = [
        {"file_name": "a.png", "caption": "one", "captions": [" one ", "two\nlines", ""]},
        {"file_name": "b.png", "caption": ["first", "second"]},
        {"file_name": "c.png", "captions": ["alone"]},
    ]
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = make_corpus(CorpusConfig(source="image_folder", path=str(tmp_path)), out=tmp_path.parent / "every")
    assert made.table(["caption", "captions"]).to_pylist() == [
        {"caption": "one", "captions": ["one", "two lines"]},
        {"caption": "first", "captions": ["first", "second"]},
        {"caption": "alone", "captions": ["alone"]},
    ]
    # and a corpus that is made of a corpus has them again
    again = make_corpus(CorpusConfig(source="parquet", path=made.path, id_column="image_id"), out=tmp_path / "again")
    assert again.table(["image_id", "captions"]).equals(made.table(["image_id", "captions"]))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "file_name,caption\na.png,café\n".encode("latin-1")),
        ("metadata.csv", "file_name,caption\na.png,café\n".encode("utf-16-le")),
        ("metadata.jsonl", b'\n{"file_name": "a.png", "caption": "caf\xe9"}\n'),
    ],
)
def test_metadata_in_another_encoding_is_refused_in_one_sentence(tmp_path, name, content):
    (tmp_path / "a.png").write_bytes(png((9, 9, 9)))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=r"^line 2 of \S+ is not UTF-8 text; save the file as UTF-8, or name"):
        make_corpus(CorpusConfig(source="image_folder", path=str(tmp_path)), out=tmp_path / "c")


@pytest.mark.parametrize("rows", [1, 20_000])
def test_a_quote_that_is_never_closed_is_one_sentence(tmp_path, rows):
    (tmp_path / "a.png").write_bytes(png((9, 9, 9)))
    (tmp_path / "metadata.csv").write_text('file_name,caption\na.png,"open\n' + "b.png,text\n" * rows)
    with pytest.raises(CorpusError, match=r"^line \d+ of \S+ cannot be read \(.*\); correct its quotes$"):
        make_corpus(CorpusConfig(source="image_folder", path=str(tmp_path)), out=tmp_path / "c")
    (tmp_path / "metadata.csv").write_text('file_name,caption\na.png,a 5" pipe\n')
    made = make_corpus(CorpusConfig(source="image_folder", path=str(tmp_path)), out=tmp_path / "c")
    assert made.table()["caption"].to_pylist() == ['a 5" pipe']


def test_metadata_cannot_reach_outside_the_folder(tmp_path):
    (tmp_path / "private.png").write_bytes(png((9, 9, 9)))
    root = tmp_path / "images"
    root.mkdir()
    (root / "a.png").write_bytes(png((1, 1, 1)))
    (root / "metadata.csv").write_text("file_name,caption\na.png,inside\n../private.png,outside\n")
    made = make_corpus(CorpusConfig(source="image_folder", path=str(root)), out=tmp_path / "c")
    assert made.manifest.rejected == {"outside_source": 1}
    (root / "metadata.csv").write_text("file_name,caption\na.png,a red, round ball\n")
    with pytest.raises(CorpusError, match=r"line 2 .* more fields"):
        make_corpus(CorpusConfig(source="image_folder", path=str(root)), out=tmp_path / "d")


def test_labels_are_words(tmp_path):
    import datasets

    rows = {"image": [{"bytes": png((i, 0, 0)), "path": None} for i in range(3)], "label": [0, 1, None]}
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "a.parquet")
    config = CorpusConfig(
        source="parquet", path=str(tmp_path / "a.parquet"), caption_template="a {label}", meta_columns=("label",)
    )
    made = make_corpus(config, out=tmp_path / "c")
    assert made.table(["caption"])["caption"].to_pylist() == ["a cat", "a dog"]
    assert made.table(["meta"])["meta"][0].as_py() == {"label": "cat"}
    assert made.manifest.rejected == {"no_caption": 1}
