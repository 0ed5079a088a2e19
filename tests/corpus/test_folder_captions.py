"""Captions of a folder: texts beside the images, and tables of every make."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from megapairs_hf.core.errors import CorpusError
from megapairs_hf.core.image_formats import NOT_OPENED_SUFFIXES, SUFFIXES
from megapairs_hf.corpus import CorpusConfig, make_corpus


def png(number):
    sink = io.BytesIO()
    Image.new("RGB", (20, 20), (number, 0, 0)).save(sink, "PNG")
    return sink.getvalue()


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.png", "sub/c.png"]):
        (root / name).write_bytes(png(i))
    return root


def corpus_of(root, name="c", **settings):
    return make_corpus(CorpusConfig("image_folder", path=str(root), **settings), out=root.parent / name)


def captions_of(corpus):
    return {row["image_id"]: row["captions"] for row in corpus.table(["image_id", "captions"]).to_pylist()}


def rejected_of(corpus):
    return {row["key"]: (row["reason"], row["detail"]) for row in corpus.rejected().to_pylist()}


@pytest.mark.parametrize("suffix", [".txt", ".TXT", ".Txt"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_texts_beside_images(photos, suffix, encoding):
    (photos / "a.png").with_suffix(suffix).write_bytes("ein größeres Bild 🐕\r\n".encode(encoding))
    assert captions_of(corpus_of(photos)) == {"a.png": ["ein größeres Bild 🐕"]}


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le", "utf-16-be", "utf-32", "shift-jis"])
def test_a_text_in_another_encoding_costs_its_row_until_the_encoding_is_named(photos, encoding):
    text = "犬" if encoding == "shift-jis" else "größer"
    (photos / "a.txt").write_bytes(text.encode(encoding))
    (photos / "b.txt").write_text("fine")
    corpus = corpus_of(photos)
    reason, detail = rejected_of(corpus)["a.png"]
    assert reason == "caption_encoding" and "a.txt" in detail and "`caption_encoding: " in detail
    assert captions_of(corpus) == {"b.png": ["fine"]}
    assert captions_of(corpus_of(photos, "d", caption_encoding=encoding, limit=1)) == {"a.png": [text]}


ROWS = [
    {"file_name": "a.png", "caption": "a red, round ball", "label": "ball"},
    {"file_name": "b.png", "caption": "ü; tab\tand\nline", "label": "x"},
]
EXPECTED = {"a.png": ["a red, round ball"], "b.png": ["ü; tab and line"]}


def csv_of(rows, separator=",", head=""):
    import csv

    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(rows[0]), delimiter=separator)
    writer.writeheader()
    writer.writerows(rows)
    return head + sink.getvalue()


def parquet_of(rows):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def lines_of(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


TABLES = {
    "comma": ("metadata.csv", csv_of(ROWS).encode()),
    "semicolon": ("metadata.csv", csv_of(ROWS, ";").encode()),
    "tab": ("metadata.csv", csv_of(ROWS, "\t").encode()),
    "byte order mark": ("metadata.csv", csv_of(ROWS, ";").encode("utf-8-sig")),
    "excel's unicode text": ("metadata.csv", csv_of(ROWS, "\t").encode("utf-16")),
    "excel's hint": ("metadata.csv", csv_of(ROWS, ";", "sep=;\r\n").encode()),
    "spaces": ("metadata.csv", csv_of(ROWS).replace("caption", " caption ", 1).encode()),
    "numbered rows": ("metadata.csv", csv_of([{"": str(i), **row} for i, row in enumerate(ROWS)]).encode()),
    "lines": ("metadata.jsonl", lines_of(ROWS).encode()),
    "lines with a mark": ("metadata.jsonl", lines_of(ROWS).replace("\n", "\r\n").encode("utf-8-sig")),
    "parquet": ("metadata.parquet", parquet_of(ROWS)),
    "json": ("metadata.json", json.dumps(ROWS).encode()),
    "dots": ("metadata.jsonl", lines_of([ROWS[0] | {"file_name": "./sub/../a.png"}, ROWS[1]]).encode()),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_of_every_make(photos, kind):
    name, content = TABLES[kind]
    (photos / name).write_bytes(content)
    corpus = corpus_of(photos)
    assert captions_of(corpus) == EXPECTED
    assert [row["label"] for row in corpus.table(["meta"])["meta"].to_pylist()] == ["ball", "x"]
    assert {key: reason for key, (reason, _) in rejected_of(corpus).items()} == {"sub/c.png": "no_caption"}


def test_a_table_in_each_folder_and_absolute_paths(photos):
    (photos / "metadata.csv").write_text(f"file_name,caption\na.png,one\n{photos}/b.png,two\n/etc/hostname,three\n")
    (photos / "sub" / "metadata.jsonl").write_text(lines_of([{"file_name": "c.png", "caption": "c"}]))
    corpus = corpus_of(photos)
    assert captions_of(corpus) == {"a.png": ["one"], "b.png": ["two"], "sub/c.png": ["c"]}
    assert rejected_of(corpus)["/etc/hostname"][0] == "outside_source"


SEVERAL = {
    "list": lines_of([{"file_name": "a.png", "caption": ["one", None, "two"]}]),
    "columns": lines_of([{"file_name": "a.png", "caption_1": "two", "caption_0": "one", "caption_2": None}]),
    "rows": lines_of([{"file_name": "a.png", "caption": text} for text in ("one", "two", "one")]),
    "written": lines_of([{"file_name": "a.png", "caption": "['one', 'two']"}]),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_several_captions_of_an_image(photos, kind):
    (photos / "metadata.jsonl").write_text(SEVERAL[kind])
    corpus = corpus_of(photos)
    assert captions_of(corpus) == {"a.png": ["one", "two"]}
    assert corpus.table(["caption"])["caption"].to_pylist() == ["one"]
    assert corpus.manifest.stats["rows_in"] == 3


def test_a_row_per_caption_in_csv_fills_a_template_for_each(photos):
    (photos / "metadata.csv").write_text("file_name,text\na.png,dog\na.png,cat\nb.png,\n")
    corpus = corpus_of(photos, caption_template="a {text}")
    assert captions_of(corpus) == {"a.png": ["a dog", "a cat"]}


@pytest.mark.parametrize("value", [{"raw": "a cat"}, True, 3, 1.5, [[1]]])
def test_what_is_no_caption_costs_its_row(photos, value):
    (photos / "metadata.jsonl").write_text(
        lines_of([{"file_name": "a.png", "caption": value}, {"file_name": "b.png", "caption": "fine"}])
    )
    (photos / "a.txt").write_text("beside")
    corpus = corpus_of(photos)
    assert captions_of(corpus) == {"b.png": ["fine"]} and rejected_of(corpus)["a.png"][0] == "caption_not_text"


@pytest.mark.parametrize("value", [None, float("nan"), "", "nan", []])
def test_no_caption_in_the_table_leaves_the_text_beside(photos, value):
    (photos / "metadata.jsonl").write_text(lines_of([{"file_name": "a.png", "caption": value}]))
    (photos / "a.txt").write_text("beside")
    assert captions_of(corpus_of(photos)) == {"a.png": ["beside"]}


def test_half_a_character_in_any_column(photos):
    rows = [{"file_name": "a.png", "caption": "a \ud83d", "label": "\ud83d", "tags": ["\ud83d", "x"], "o\ud83d": "y"}]
    (photos / "metadata.jsonl").write_text(lines_of(rows))
    corpus = corpus_of(photos)
    meta = corpus.table(["meta"])["meta"][0].as_py()
    assert captions_of(corpus) == {"a.png": ["a \ufffd"]}
    assert meta["label"] == "\ufffd" and meta["tags"] == ["\ufffd", "x"]
    corpus = corpus_of(photos, "d", caption_template="{label} {stem} 1")
    assert captions_of(corpus) == {"a.png": ["\ufffd a 1"]}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("metadata.csv", "file_name,caption,caption\na.png,b,c\n", "has the column 'caption' twice"),
        ("metadata.jsonl", '{"file_name": "a.png", "caption": "a", "caption": "b"}', "has the column 'caption' twice"),
        ("metadata.csv", "image;caption\na.png;b\n", "among them `file_name`; it has image, caption"),
        ("metadata.csv", "", "must name the columns, among them `file_name`; it has nothing"),
        ("metadata.jsonl", '{"image": "a.png"}', "every row of .* must have a `file_name`, and row 1 has image"),
        ("metadata.jsonl", '{"file_name": null}', "every row of .* must have a `file_name`"),
        ("metadata.jsonl", "[" * 200_000, "line 1 of .* is not valid JSON"),
        ("metadata.jsonl", "[1]", "must be an object"),
        ("metadata.json", '{"images": []}', "must be a list of objects"),
        ("metadata.parquet", "PAR1", "is no parquet file that can be read"),
        ("metadata.csv", "file_name;caption\na.png;a;b\n", "line 2 of .* has more fields"),
        ("products.csv", "file;text\na.png;a dog\n", "products.csv seems to hold the captions.*metadata.csv"),
        (
            "captions.json",
            '{"images": [{"file_name": "a.png"}]}',
            "captions.json seems to hold the captions, but has none of the known",
        ),
        ("captions_de.json", "[1, 2", "captions_de.json is not valid JSON"),
        ("captions.json", '[{"image": "a.png", "text": "x"}]', "no column 'caption' in .*; it has text"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_sentence(photos, name, content, sentence):
    (photos / name).write_text(content)
    with pytest.raises(CorpusError, match=sentence) as caught:
        corpus_of(photos)
    assert "\n" not in str(caught.value)


def test_two_tables_of_the_same_images_are_refused(photos):
    (photos / "metadata.csv").write_text("file_name,caption\na.png,x\nsub/c.png,y\n")
    (photos / "metadata.jsonl").write_text(lines_of([{"file_name": "a.png", "caption": "x"}]))
    with pytest.raises(CorpusError, match=r"there are metadata.csv and metadata.jsonl in .*; keep one of them"):
        corpus_of(photos)
    (photos / "metadata.jsonl").rename(photos / "sub" / "metadata.jsonl")
    (photos / "sub" / "metadata.jsonl").write_text(lines_of([{"file_name": "c.png", "caption": "x"}]))
    with pytest.raises(CorpusError, match=r"sub/c.png is in metadata.csv and sub/metadata.jsonl"):
        corpus_of(photos)


def test_a_table_of_other_things_is_no_table_of_captions(photos):
    (photos / "prices.csv").write_text("id,price\n1,2\n")
    (photos / "products.csv").write_text("file_name,caption\na.png,x\n")
    with pytest.raises(CorpusError, match=r"products\.csv"):
        corpus_of(photos)
    assert corpus_of(photos, captions="optional").rows == 3
    (photos / "products.csv").unlink()
    assert corpus_of(photos, "d").rows == 3


@pytest.mark.parametrize("suffix", sorted(SUFFIXES | NOT_OPENED_SUFFIXES))
def test_every_image_is_seen(photos, suffix):
    for name in (f"x{suffix}", f"sub/Y{suffix.upper()}"):
        (photos / name).write_bytes(png(50 + len(name)))
    (photos / "z.pdf").write_bytes(b"%PDF-1.4")
    corpus = corpus_of(photos, captions="optional")
    assert {f"x{suffix}", f"sub/Y{suffix.upper()}"} <= set(captions_of(corpus))
    assert rejected_of(corpus)["z.pdf"][0] == "unsupported_format" and "PDF" in rejected_of(corpus)["z.pdf"][1]


def test_a_folder_may_be_written_in_any_way(photos, monkeypatch):
    (photos / "a.txt").write_text("red")
    monkeypatch.chdir(photos.parent)
    for path in ("photos", "photos/", "./photos", "photos//", "photos/."):
        corpus = make_corpus(CorpusConfig("image_folder", path=path), out="c")
    assert captions_of(corpus) == {"a.png": ["red"]}
    monkeypatch.chdir(photos)
    corpus = make_corpus(CorpusConfig("image_folder", path=".", caption_template="of {folder}"), out="../d")
    assert captions_of(corpus)["a.png"] == ["of photos"]
