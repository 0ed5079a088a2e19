"""Published files of captions: COCO's, Karpathy's, Flickr's, and tables with a row per caption."""

import csv
import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megapairs_hf.core.errors import ConfigError, CorpusError
from megapairs_hf.corpus import CorpusConfig
from megapairs_hf.corpus.sources.folder import FolderSource

from .test_folder_captions import captions_of, corpus_of, photos, png, rejected_of

__all__ = ["photos"]
TEXTS = {"a.png": ["a red ball", "the ball"], "b.png": ["two dogs", "dogs, and a cat", "ü 犬"]}


def coco(texts, **facts):
    images = [{"id": i, "file_name": name, "width": 9, "height": 9, "license": 4} for i, name in enumerate(texts)]
    notes = [
        {"id": 100 * n + i, "image_id": i, "caption": text}
        for i, name in enumerate(texts)
        for n, text in enumerate(texts[name])
    ]
    # as in COCO, captions of an image do not stand together
    return {"info": {}, "licenses": [], "images": images, "annotations": sorted(notes, key=lambda n: n["id"]), **facts}


def karpathy(texts, folder="val2014"):
    images = [
        {"filepath": folder, "filename": name, "sentids": [0], "imgid": i, "cocoid": 7 + i, "split": "restval"}
        | {"sentences": [{"tokens": text.split(), "raw": text, "imgid": i, "sentid": 0} for text in texts[name]]}
        for i, name in enumerate(texts)
    ]
    return {"images": images, "dataset": "coco"}


def pairs(texts, image="image"):
    return [{image: name, "caption": text} for name in texts for text in texts[name]]


def table(texts, image="image_name", separator=","):
    sink = io.StringIO()
    writer = csv.writer(sink, delimiter=separator)
    writer.writerow([image, "comment_number", "caption"])
    writer.writerows([name, n, text] for name in texts for n, text in enumerate(texts[name]))
    return sink.getvalue()


def parquet(texts):
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(pairs(texts, "filename")), sink)
    return sink.getvalue()


JSON = {
    "coco": coco(TEXTS),
    "coco with ids as texts": json.loads(json.dumps(coco(TEXTS)).replace('"image_id": 1', '"image_id": "1"')),
    "karpathy": karpathy(TEXTS),
    "karpathy without a folder": karpathy(TEXTS, ""),
    "a row per caption": pairs(TEXTS),
    "a row per image": [{"image": f"val2014/{name}", "caption": texts} for name, texts in TEXTS.items()],
    "by name": TEXTS,
}
FILES = {
    **{f"{name}.json": json.dumps(value).encode() for name, value in JSON.items()},
    "results.csv": table(TEXTS).encode(),
    "pipes.csv": table(TEXTS, separator="|").encode(),
    "captions.txt": table(TEXTS, "image").encode(),
    "tabs.tsv": table(TEXTS, "filename", "\t").encode("utf-16"),
    "flickr.token": "\n".join(f"{n}#{i}\t{t}" for n in TEXTS for i, t in enumerate(TEXTS[n])).encode(),
    "lines.jsonl": "\n".join(json.dumps(row) for row in pairs(TEXTS, "img")).encode(),
    "table.parquet": parquet(TEXTS),
}


@pytest.mark.parametrize("name", FILES)
def test_a_named_file_gives_every_image_all_its_captions(photos, tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "elsewhere" / name
    file.write_bytes(FILES[name])
    corpus = corpus_of(photos, caption_file=str(file))
    assert captions_of(corpus) == TEXTS
    assert rejected_of(corpus)["sub/c.png"][0] == "no_caption"
    assert corpus.table(["caption"])["caption"].to_pylist() == ["a red ball", "two dogs"]


@pytest.mark.parametrize("form", JSON)
@pytest.mark.parametrize("where", ["captions_val2017.json", "annotations/captions_x.json", "dataset_coco.json"])
def test_a_published_name_in_the_folder_is_read(photos, form, where):
    (photos / where).parent.mkdir(exist_ok=True)
    (photos / where).write_text(json.dumps(JSON[form]))
    assert captions_of(corpus_of(photos)) == TEXTS


@pytest.mark.parametrize("where", ["captions_photos.json", "annotations/captions_photos.json", "dataset.json"])
def test_a_file_beside_the_folder_is_read_and_said(photos, where, capsys):
    (photos.parent / where).parent.mkdir(exist_ok=True)
    (photos.parent / where).write_text(json.dumps(coco(TEXTS)))
    (photos.parent / "captions_other.json").write_text(json.dumps(coco({"z.png": ["z"]})))
    (photos.parent / "captions_broken.json").write_text("[")
    assert captions_of(corpus_of(photos)) == TEXTS
    assert f"captions are read from {photos.parent / where}" in capsys.readouterr().err


def test_facts_of_images_go_into_meta(photos):
    (photos / "captions_a.json").write_text(json.dumps(coco(TEXTS)))
    assert corpus_of(photos).table(["meta"])["meta"].to_pylist() == [{"id": i, "license": 4} for i in (0, 1)]
    (photos / "captions_a.json").write_text(json.dumps(karpathy(TEXTS)))
    facts = [{"imgid": i, "cocoid": 7 + i, "split": "restval"} for i in (0, 1)]
    assert corpus_of(photos, "d").table(["meta"])["meta"].to_pylist() == facts


def test_images_that_are_not_in_the_folder_are_counted_and_not_rejected(photos, capsys):
    (photos / "captions_all.json").write_text(json.dumps(coco(TEXTS | {f"{i}.png": ["x"] for i in range(7)})))
    corpus = corpus_of(photos)
    assert captions_of(corpus) == TEXTS
    assert list(rejected_of(corpus)) == ["sub/c.png"]
    assert "7 of 9 rows of captions_all.json name images that are not in the folder" in capsys.readouterr().err


def test_names_are_paths_where_there_are_several_of_one_name(photos):
    (photos / "sub" / "a.png").write_bytes(png(77))
    (photos / "captions.json").write_text(json.dumps({"sub/a.png": "below", "a.png": "above"}))
    assert captions_of(corpus_of(photos)) == {"a.png": ["above"], "sub/a.png": ["below"]}
    (photos / "captions.json").unlink()
    (photos / "sub" / "captions.json").write_text(json.dumps({"a.png": "below"}))
    assert captions_of(corpus_of(photos, "d")) == {"sub/a.png": ["below"]}
    (photos / "sub" / "captions.json").write_text(json.dumps({"images/a.png": "which"}))
    with pytest.raises(CorpusError, match=r"names images/a.png, of which there are a.png and sub/a.png; write"):
        corpus_of(photos, "e")


def test_what_has_captions_already_is_not_read_twice(photos):
    (photos / "captions_coco.json").write_text(json.dumps(coco(TEXTS)))
    (photos / "dataset_coco.json").write_text(json.dumps(karpathy(TEXTS)))
    (photos.parent / "captions.json").write_text(json.dumps({"sub/c.png": "beside"}))
    assert captions_of(corpus_of(photos)) == TEXTS
    (photos / "metadata.csv").write_text("file_name,caption\nb.png,own\n")
    assert captions_of(corpus_of(photos, "d")) == {"b.png": ["own"]}
    (photos / "metadata.csv").write_text("file_name,color\na.png,red\nb.png,blue\n")
    corpus = corpus_of(photos, "e")
    assert captions_of(corpus) == TEXTS
    assert corpus.table(["meta"])["meta"].to_pylist()[1] == {"color": "blue", "id": 1, "license": 4}


def test_a_named_file_comes_before_tables(photos):
    (photos / "metadata.csv").write_text("file_name,caption,color\na.png,own,red\na.png,own too,red\nb.png,own,blue\n")
    (photos.parent / "x.json").write_text(json.dumps({"a.png": ["one", "two"]}))
    corpus = corpus_of(photos, caption_file=str(photos.parent / "x.json"))
    assert captions_of(corpus) == {"a.png": ["one", "two"], "b.png": ["own"]}
    assert [row["color"] for row in corpus.table(["meta"])["meta"].to_pylist()] == ["red", "blue"]


def test_texts_beside_images_come_before_a_file_beside_the_folder(photos):
    (photos / "a.txt").write_text("own")
    (photos.parent / "captions.json").write_text(json.dumps(TEXTS))
    assert captions_of(corpus_of(photos)) == {"a.png": ["own"]}


@pytest.mark.parametrize("name", ["dataset_infos.json", "dataset_dict.json", "dataset_info.json"])
def test_other_files_of_such_names_are_no_captions(photos, name):
    (photos / name).write_text('{"splits": ["train"], "features": {"image": {}}}')
    assert corpus_of(photos).rows == 3


BAD = {
    "not there": (None, "cannot read the captions: .*No such file or directory; check the path"),
    "other images": (coco({"z.png": ["z"]}), "names none of the images in .*photos .z.png, ….; check both"),
    "boxes": (
        {"images": [{"id": 0, "file_name": "a.png"}], "annotations": [{"image_id": 0}]},
        "none of the known forms",
    ),
    "a number": (3, "none of the known forms"),
    "nothing": ({}, "none of the known forms"),
    "odd parts": ({"images": [3, None, {"sentences": 3}], "annotations": ["x", {"caption": 3}]}, "none of the known"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_named_file_of_no_use_is_one_sentence(photos, what):
    content, sentence = BAD[what]
    if content is not None:
        (photos.parent / "file.json").write_text(json.dumps(content))
    with pytest.raises(CorpusError, match=sentence) as caught:
        corpus_of(photos, caption_file=str(photos.parent / "file.json"))
    assert "\n" not in str(caught.value)


def test_a_caption_file_is_for_image_folders():
    with pytest.raises(ConfigError, match=r"`caption_file` is 'x.json', but must be left out"):
        CorpusConfig("parquet", path="x", caption_file="x.json")


def test_parts_that_are_no_captions_cost_nothing_else(photos):
    odd = coco(TEXTS)
    odd["images"] += [3, {}, {"id": 8, "file_name": None}, {"file_name": "sub/c.png"}]
    odd["annotations"] += [
        None,
        {},
        {"image_id": 99, "caption": "of nothing"},
        {"image_id": 0, "caption": ["x", None]},
    ]
    odd["annotations"] += [{"image_id": 1, "caption": float("nan")}, {"image_id": 1, "caption": "\ud800 half"}]
    (photos / "captions.json").write_text(json.dumps(odd))
    expected = {"a.png": [*TEXTS["a.png"]], "b.png": [*TEXTS["b.png"], "\ufffd half"]}
    found = captions_of(corpus_of(photos))
    assert {name: [text for text in texts if text != "x"] for name, texts in found.items()} == expected


ODD = [
    None,
    True,
    3,
    -1,
    float("nan"),
    "",
    "\ud800",
    "a\0b",
    [],
    {},
    [[]],
    {"a": 1},
    "../../etc/passwd",
    1e400,
    ["a.png"],
]


def paths(value, path=()):
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from paths(value[key], (*path, key))


def put(value, path, new):
    if not path:
        return new
    value = value.copy()
    value[path[0]] = put(value[path[0]], path[1:], new)
    return value


def mutated(content, name, draw):
    if name.endswith(".json") and draw.random() < 0.7:
        value = json.loads(content)
        for _ in range(draw.randint(1, 3)):
            value = put(value, draw.choice(list(paths(value))), draw.choice(ODD))
        return json.dumps(value).encode()
    content = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        start = draw.randrange(len(content))
        end = start + draw.choice([0, 1, 1, 20])
        content[start:end] = bytes(draw.choices(b',"\n\t|;[]{}#:\\\xff\x00a1', k=draw.choice([0, 1, 5])))
    return bytes(content)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_files_give_captions_or_one_sentence(photos, seed):
    results = []
    for i in range(60):
        draw = random.Random(f"{seed} {i}")
        name = draw.choice(list(FILES))
        file = photos.parent / name
        file.write_bytes(mutated(FILES[name], name, draw))
        try:
            source = FolderSource(CorpusConfig("image_folder", path=str(photos), caption_file=str(file)))
        except CorpusError as error:
            assert "\n" not in str(error), (seed, i)
            results.append("refused")
            continue
        rows = list(source.read(0, source.rows))
        assert [row.key for row in rows] == ["a.png", "b.png", "sub/c.png"], (seed, i)
        assert all(isinstance(text, str) and text.encode() for row in rows for text in row.captions), (seed, i)
        results.append("read")
    assert set(results) == {"read", "refused"}
