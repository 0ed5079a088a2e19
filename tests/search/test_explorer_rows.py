"""What the explorer reads: filters against brute force, sources, images, what is refused, and how little is read."""

from __future__ import annotations

import csv
import io
import json
import shutil
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.cli import main
from megapairs_hf.core.errors import ArtifactError, ConfigError
from megapairs_hf.core.schema import TRIPLETS, with_features
from megapairs_hf.dataset import load_triplets
from megapairs_hf.dataset.layout import image_table
from megapairs_hf.images.decode import encode_image
from megapairs_hf.search.explorer.app import make_session, routes
from megapairs_hf.search.explorer.config import ExploreConfig
from megapairs_hf.search.explorer.filters import ANY, PASS_RATE, Filter
from megapairs_hf.search.explorer.image_store import ImageStore
from megapairs_hf.search.explorer.sources import open_source
from megapairs_hf.search.explorer.stored_rows import ParquetRows
from megapairs_hf.search.page.guard import guarded
from tests.making import begin, draw, make_work
from tests.search.serving import running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from megapairs_hf.search.explorer.session import ExplorerSession

RELATIONS = ("clip_image", "dino_image", "clip_text")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_work(tmp_path_factory.mktemp("rows") / "work")


def session_of(source: Path | str, marks: Path, **settings: Any) -> ExplorerSession:
    return make_session(open_source(str(source)), ExploreConfig(marks=str(marks), **settings))


def triplet_rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Triplets with every sort of blank."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        names = [name for name in RELATIONS if rng.random() < 0.5]
        texts = [f"make it {'RED' if rng.random() < 0.3 else 'blue'} {i}", "naïve İstanbul"][: int(rng.integers(1, 3))]
        rates = [float(rng.random()) if rng.random() < 0.7 else float("nan") for _ in texts]
        rows.append(
            {
                "q_img": f"i{i:05d}",
                "q_text": texts,
                "t_img": f"i{(i * 7 + 1) % count:05d}",
                "hns": [f"i{i:05d}"],
                "relation": names,
                "scores": [{"relation": name, "score": float(rng.random())} for name in names],
                "task": "composed_image_retrieval",
                "language": "en",
                "verified": rates if rng.random() < 0.8 else [],
            }
        )
    return rows


def write_triplets(path: Path, rows: list[dict[str, Any]], shards: int = 3) -> Path:
    names = [f"triplets/train-{i:05d}-of-{shards:05d}.parquet" for i in range(shards)]
    with begin(path, "triplets", names) as writer:
        for i, part in enumerate(np.array_split(np.arange(len(rows)), shards)):
            table = pa.Table.from_pylist([rows[n] for n in part], schema=with_features(TRIPLETS))
            writer.write(i, table)
        writer.finish({"relations": dict.fromkeys(RELATIONS, 1)})
    return path


def score(row: dict[str, Any], name: str) -> float:
    if name == PASS_RATE:
        rates = [rate for rate in row["verified"] if rate == rate]
        return min(rates, default=float("nan"))
    scores = [np.float32(one["score"]) for one in row["scores"] if name in (ANY, one["relation"])]
    return float(max(scores, default=float("nan")))


def passes(row: dict[str, Any], chosen: Filter) -> bool:
    texts = [*row["q_text"], row["q_img"], row["t_img"]]
    value = score(row, chosen.score)
    return (
        (not chosen.relation or chosen.relation in row["relation"])
        and (chosen.low is None or value >= chosen.low)
        and (chosen.high is None or value <= chosen.high)
        and (not chosen.word or any(chosen.word.lower() in text.lower() for text in texts))
    )


FILTERS = [
    Filter(),
    Filter(relation="clip_image"),
    Filter(relation="no such relation"),
    Filter(low=0.5),
    Filter(high=0.25, score="dino_image"),
    Filter(low=0.2, high=0.6, score=PASS_RATE),
    Filter(word="red"),
    Filter(word="NAÏVE"),
    Filter(word=".*"),
    Filter(word="i00007"),
    Filter(word="red", relation="clip_text", low=0.3),
]


@pytest.mark.parametrize("chosen", FILTERS, ids=str)
def test_a_filter_lets_through_what_brute_force_does(tmp_path: Path, chosen: Filter) -> None:
    rows = triplet_rows(200)
    session = session_of(write_triplets(tmp_path / "t", rows), tmp_path / "m")
    expected = [i for i, row in enumerate(rows) if passes(row, chosen)]
    selection = session.selections["triplets"]
    assert selection.rows(chosen).tolist() == expected
    # again, from what was kept
    assert selection.rows(chosen).tolist() == expected


@pytest.mark.parametrize("name", [ANY, "dino_image", PASS_RATE])
@pytest.mark.parametrize("order", ["score, highest first", "score, lowest first"])
def test_rows_without_a_score_come_last(tmp_path: Path, name: str, order: Any) -> None:
    rows = triplet_rows(120)
    session = session_of(write_triplets(tmp_path / "t", rows), tmp_path / "m")
    sign = -1 if order == "score, highest first" else 1
    values = [score(row, name) for row in rows]
    expected = sorted(
        range(len(rows)), key=lambda i: (values[i] != values[i], sign * values[i] if values[i] == values[i] else 0)
    )
    assert session.selections["triplets"].rows(Filter(score=name, order=order)).tolist() == expected


def test_a_sample_holds_every_row_once_and_is_that_of_its_seed(tmp_path: Path) -> None:
    session = session_of(write_triplets(tmp_path / "t", triplet_rows(50)), tmp_path / "m")
    rows = session.selections["triplets"].rows
    one, other = rows(Filter(order="sample", seed=1)).tolist(), rows(Filter(order="sample", seed=2)).tolist()
    assert sorted(one) == list(range(50)) and one != other
    assert one == rows(Filter(order="sample", seed=1)).tolist()


@pytest.mark.parametrize("name", ["corpus", "pairs", "descriptions", "instructions", "triplets"])
def test_every_kind_of_rows_is_shown_with_its_images(work: Path, tmp_path: Path, name: str) -> None:
    session = session_of(work / name, tmp_path / "m", rows=5)
    for table in session.explored.tables:
        shown = session.show(table.name, Filter(), 1)
        assert not shown.status["error"], shown.status
        assert len(shown.rows["rows"]) == min(5, table.rows.count)
        if table.name == name:
            assert all(image["src"] for row in shown.rows["rows"] for image in row["images"])
    rejected = open_artifact(work / name).manifest.rejected
    assert [table.reasons for table in session.explored.tables[1:]] == ([rejected] if rejected else [])


def test_a_published_folder_a_csv_and_json_lines_are_explored(work: Path, tmp_path: Path) -> None:
    published = tmp_path / "published"
    shutil.copytree(work / "triplets", published)
    (published / "manifest.json").unlink()
    session = session_of(published, tmp_path / "m", rows=3)
    assert session.show("triplets", Filter(split="validation"), 1).status["text"].startswith("8 of 38")
    assert all(image["src"] for row in session.show("triplets", Filter(), 1).rows["rows"] for image in row["images"])
    rows = [{"query_id": "c000", "target_id": "c001", "instructions": ["a", "b"]}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sink = io.StringIO()
    writer = csv.writer(sink)
    writer.writerows([["query_id", "target_id", "negative_ids"], ["c000", "c001", '["c002"]']])
    (tmp_path / "own.csv").write_text(sink.getvalue())
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "own.parquet")
    for file, kind, texts in (
        ("own.jsonl", "instructions", 2),
        ("own.csv", "pairs", 0),
        ("own.parquet", "instructions", 2),
    ):
        explored = open_source(str(tmp_path / file), str(work / "corpus"))
        one = make_session(explored, ExploreConfig(marks=str(tmp_path / "m")))
        [row] = one.show(kind, Filter(), 1).rows["rows"]
        assert len(row["texts"]) == texts
        assert all(image["src"] for image in row["images"])


def test_a_mistyped_folder_is_not_only_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(path: str) -> list[str]:
        raise OSError(f"no route for {path}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("megapairs_hf.search.explorer.sources.storage.list_files", unreachable)
    said = (
        r"there is no folder runs/mmrt here, .* on the Hub .* \(no route for hf://datasets/runs/mmrt\); check the path"
    )
    with pytest.raises(ArtifactError, match=said):
        open_source("runs/mmrt")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("absent", "holds neither an artifact nor a data set"),
        ("work/model", "which has no rows to explore"),
        ("odd.parquet", "has the columns of no kind of rows"),
        ("cut.parquet", "cannot be read"),
        ("odd.csv", "query_id|q_img|image_id"),
    ],
)
def test_what_cannot_be_explored_is_a_sentence(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, sentence: str
) -> None:
    (tmp_path / "work").symlink_to(work)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "odd.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "odd.parquet").read_bytes()[:40])
    (tmp_path / "odd.csv").write_text("a\n1\n")
    assert main(["explore", str(tmp_path / name)]) == 1
    error = capsys.readouterr().err
    with pytest.raises(ArtifactError, match=sentence):
        open_source(str(tmp_path / name))
    assert error.count("\n") == 1


def test_a_file_of_something_else_is_no_file_of_marks(work: Path, tmp_path: Path) -> None:
    (tmp_path / "m").write_text("thesis")
    with pytest.raises(ArtifactError, match="m line 1 is no mark"):
        session_of(work / "triplets", tmp_path / "m")
    assert (tmp_path / "m").read_text() == "thesis"


def test_marks_are_on_what_the_row_says_and_nothing_else(work: Path, tmp_path: Path) -> None:
    session = session_of(work, tmp_path / "m")
    row = load_triplets(work / "triplets").ids(2)
    session.mark("triplets", 2, 1, "edit", "  other words ")
    session.mark("pairs", 2, -1, "bad", "")
    lines = [json.loads(line) for line in (tmp_path / "m").read_text().splitlines()]
    pair = {"query_id": row["q_img"], "target_id": row["t_img"]}
    assert lines == [
        {**pair, "text": row["q_text"][1], "mark": "edit", "edited": "other words"},
        {**pair, "text": "", "mark": "bad", "edited": ""},
    ]
    session.mark("triplets", 2, -1, "none", "")
    assert len((tmp_path / "m").read_text().splitlines()) == 1
    for bad in (("no table", 0, -1, "bad", ""), ("triplets", 99, -1, "bad", ""), ("triplets", -1, -1, "bad", ""),
                ("triplets", 0, 3, "bad", ""), ("triplets", 0, -2, "bad", ""), ("triplets", 0, 0, "edit", " "),
                ("triplets", 0, -1, "edit", "x"), ("corpus", 0, -1, "bad", "")):  # fmt: skip
        with pytest.raises(ConfigError):
            session.mark(*bad)  # type: ignore[arg-type]
    assert len((tmp_path / "m").read_text().splitlines()) == 1


def image_file(path: Path, ids: list[str], group: int) -> Path:
    colors = ["crimson", "seagreen", "royalblue", "orange"]
    rows = [
        {"image_id": name, "image": {"bytes": encode_image(draw(colors[i % 4], "circle", "white")), "path": None}}
        for i, name in enumerate(ids)
    ]
    pq.write_table(image_table(rows), path, row_group_size=group)
    return path


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_images_are_found_by_id_wherever_they_stand(tmp_path: Path, order: str) -> None:
    ids = [f"n{i:03d}" for i in range(60)]
    if order == "shuffled":
        np.random.default_rng(0).shuffle(ids)
    rows = ParquetRows([str(image_file(tmp_path / f"{i}.parquet", ids[i * 30 : i * 30 + 30], 7)) for i in range(2)])
    store = ImageStore(rows)
    some = ["n041", "n003", "absent", "n059"]
    assert store.numbers(some) == {name: ids.index(name) for name in some if name != "absent"}
    assert store.numbers([]) == {}
    if order == "sorted":
        # of ten row groups those that may have one of the four
        assert len(store.ids) <= 4
    shown = Image.open(io.BytesIO(store.image(ids.index("n041"), 64)))
    original = Image.open(io.BytesIO(rows.take([ids.index("n041")], ["image"])[0]["image"]["bytes"]))
    expected = np.asarray(original.resize((64, 51)), float)
    assert shown.size == (64, 51) and np.abs(np.asarray(shown.convert("RGB"), float) - expected).mean() < 12


def fetch(url: str, **headers: str) -> tuple[int, bytes, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as response:
            return response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


@pytest.fixture(scope="module")
def address(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config = ExploreConfig(marks=str(tmp_path_factory.mktemp("marks") / "m.jsonl"), auth="a:b")
    session = make_session(open_source(str(work)), config)
    with running(guarded(routes(session), config)) as url:
        yield url


KEY = {"Authorization": "Basic YTpi"}


@pytest.mark.parametrize(
    "path",
    [
        "images/0/999999",
        "images/9/0",
        "images/0/-1",
        "images/0/..%2f..%2fetc%2fpasswd",
        "images/..%2f..%2fetc/passwd",
        "images/0/0?side=9999",
        "file=/etc/passwd",
        "docs",
        "openapi.json",
    ],
)
def test_nothing_but_images_by_number_is_served(address: str, path: str) -> None:
    status, content, _ = fetch(f"{address}/{path}", **KEY)
    assert status in {404, 422} and b"root:" not in content


def test_images_and_marks_are_behind_the_guard(address: str) -> None:
    status, content, headers = fetch(f"{address}/images/0/0", **KEY)
    assert status == 200 and headers["content-type"] == "image/webp" and headers["x-content-type-options"] == "nosniff"
    assert max(Image.open(io.BytesIO(content)).size) == 120
    assert fetch(f"{address}/marks.jsonl", **KEY)[:2] == (200, b"")
    for url in ("images/0/0", "marks.jsonl"):
        assert fetch(f"{address}/{url}")[0] == 401
        assert fetch(f"{address}/{url}", **KEY, Host="evil.example")[0] == 403
        assert fetch(f"{address}/{url}", **KEY, **{"Sec-Fetch-Site": "cross-site"})[0] == 403


def test_an_image_that_is_none_is_an_error_of_its_own(tmp_path: Path) -> None:
    rows = [{"q_img": "a", "q_text": ["t"], "t_img": "b", "hns": ["a"]}]
    images = [{"image_id": "a", "image": {"bytes": b"<script>", "path": None}},
              {"image_id": "b", "image": {"bytes": None, "path": "/etc/passwd"}}]  # fmt: skip
    for folder, table in (("triplets", pa.Table.from_pylist(rows)), ("images", pa.Table.from_pylist(images))):
        (tmp_path / "t" / folder).mkdir(parents=True)
        pq.write_table(table, tmp_path / "t" / folder / "train-00000-of-00001.parquet")
    config = ExploreConfig(marks=str(tmp_path / "m"))
    with running(guarded(routes(make_session(open_source(str(tmp_path / "t")), config)), config)) as url:
        for row in (0, 1):
            status, content, headers = fetch(f"{url}/images/0/{row}")
            assert status == 409 and headers["content-type"] == "application/json"
            assert b"root:" not in content


class Counted:
    """A file that counts the bytes that are read of it."""

    closed = False

    def __init__(self, file: Any, counts: dict[str, int]) -> None:
        self.file, self.counts = file, counts

    def read(self, size: int = -1) -> bytes:
        content: bytes = self.file.read(size)
        self.counts["bytes"] += len(content)
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self.file.seek(offset, whence))

    def tell(self) -> int:
        return int(self.file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def close(self) -> None:
        """The block that opened it closes it."""

    def flush(self) -> None:
        """Nothing waits."""


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many bytes of files were read."""
    counts = {"bytes": 0}
    plain = storage.open_read

    @contextmanager
    def counted(path: Any) -> Iterator[Any]:
        with plain(path) as file:
            yield Counted(file, counts)

    monkeypatch.setattr(storage, "open_read", counted)
    return counts


def taken(counts: dict[str, int]) -> int:
    number, counts["bytes"] = counts["bytes"], 0
    return number


def stored_bytes(files: list[Path], column: str) -> int:
    """Bytes of one column in parquet files."""
    total = 0
    for file in files:
        footer = pq.read_metadata(file)
        for group in range(footer.num_row_groups):
            parts = [footer.row_group(group).column(i) for i in range(footer.num_columns)]
            total += sum(p.total_compressed_size for p in parts if p.path_in_schema.split(".")[0] == column)
    return total


def million(path: Path, count: int, shards: int) -> list[Path]:
    """Triplets in shards as `build` writes them."""
    rng = np.random.default_rng(0)
    words = np.array(["red", "blue", "taller", "at night", "in the snow", "without people", "closer", "older"])
    names = [f"triplets/train-{i:05d}-of-{shards:05d}.parquet" for i in range(shards)]
    with begin(path, "triplets", names) as writer:
        for i, part in enumerate(np.array_split(np.arange(count), shards)):
            ids = np.char.mod("folder/%08d.jpg", part)
            texts = np.char.add(np.char.add("make it ", words[rng.integers(0, 8, 3 * len(part))]),
                                np.char.mod(", number %d", rng.integers(0, 1 << 30, 3 * len(part))))  # fmt: skip
            ends = pa.array(np.arange(0, 3 * len(part) + 1, 3), pa.int32())
            ones = pa.array(np.arange(len(part) + 1), pa.int32())
            scores = pa.StructArray.from_arrays(
                [pa.array(np.full(len(part), "clip_image")), pa.array(rng.random(len(part)), pa.float32())],
                ["relation", "score"],
            )
            columns = [
                pa.array(ids),
                pa.ListArray.from_arrays(ends, pa.array(texts)),
                pa.array(np.char.mod("folder/%08d.jpg", (part + 1) % count)),
                pa.ListArray.from_arrays(ones, pa.array(ids)),
                pa.ListArray.from_arrays(ones, pa.array(np.full(len(part), "clip_image"))),
                pa.ListArray.from_arrays(ones, scores),
                pa.array(np.full(len(part), "composed_image_retrieval")),
                pa.array(np.full(len(part), "en")),
                pa.ListArray.from_arrays(pa.array(np.zeros(len(part) + 1), pa.int32()), pa.array([], pa.float32())),
                pa.array([[]] * len(part), pa.list_(pa.list_(pa.float32()))),
            ]
            schema = with_features(TRIPLETS)
            writer.write(i, pa.table([c.cast(f.type) for c, f in zip(columns, schema, strict=True)], schema=schema))
        writer.finish({"relations": {"clip_image": count}})
    return [path / name for name in names]


@pytest.mark.parametrize(
    ("count", "shards"), [(20_000, 4), pytest.param(1_000_000, 16, marks=pytest.mark.long)], ids=["20k", "1M"]
)
def test_no_more_is_read_than_is_shown(tmp_path: Path, counts: dict[str, int], count: int, shards: int) -> None:
    files = million(tmp_path / "t", count, shards)
    total = sum(file.stat().st_size for file in files)
    footers = sum(pq.read_metadata(file).serialized_size for file in files)
    group = total / (count / 1000)
    taken(counts)
    session = session_of(tmp_path / "t", tmp_path / "m", rows=20)
    # manifest and footers, of which no more than 64 kB each are read at first
    assert taken(counts) <= footers + 100_000 * shards
    for page in (1, count // 40, count // 20):
        shown = session.show("triplets", Filter(), page)
        assert shown.rows["rows"][0]["number"] == (page - 1) * 20
        assert taken(counts) <= 2 * group
    scores = stored_bytes(files, "scores")
    best = session.show("triplets", Filter(order="score, highest first"), 1)
    assert best.status["text"].startswith(f"{count:,} of {count:,}")
    # the column of the filter, once, with small gaps that are cheaper read than left out; a row group for each row
    assert taken(counts) <= 1.3 * scores + 21 * group
    session.show("triplets", Filter(order="score, highest first", low=0.5), 1)
    assert taken(counts) <= 21 * group
    words = sum(stored_bytes(files, name) for name in ("q_text", "q_img", "t_img"))
    found = session.show("triplets", Filter(word="IN THE SNOW"), 1)
    assert all("in the snow" in " ".join(text["text"] for text in row["texts"]) for row in found.rows["rows"])
    assert taken(counts) <= 1.3 * words + 21 * group
    session.show("triplets", Filter(word="IN THE SNOW"), 2)
    assert taken(counts) <= 21 * group
