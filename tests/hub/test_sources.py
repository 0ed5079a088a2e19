"""A data set on the Hub where a stage takes an artifact."""

from pathlib import Path

from tests.hub.children import child, megapairs
from tests.making import make_work

READ = """
from megapairs_hf.artifacts.lookup import rows_by_id
from megapairs_hf.artifacts.sources import as_artifact
from megapairs_hf.core.errors import ArtifactError
corpus = as_artifact("you/triplets", "corpus")
row = next(rows_by_id(corpus, ["c003"], ["image_id", "image", "caption"]))
print(corpus.rows, row["image_id"], row["image"]["bytes"][:4], row["caption"])
print(as_artifact("you/triplets", "corpus").fingerprint == corpus.fingerprint)
pairs = as_artifact("you/pairs", "pairs")
print(pairs.rows, pairs.shard(0).to_pylist()[0]["negative_ids"])
for name, kind in {"you/nothing": "pairs", "you/pairs": "corpus", "you/triplets": "pairs"}.items():
    try:
        as_artifact(name, kind)
    except ArtifactError as error:
        print(error)
"""


def test_published_data_sets_serve_as_artifacts(hub, tmp_path):
    work = make_work(tmp_path / "work")
    for name in ("triplets", "pairs"):
        files = [file for file in Path(work / name).rglob("*") if file.is_file()]
        content = {file.relative_to(work / name).as_posix(): file.read_bytes() for file in files}
        hub.private["dataset", f"you/{name}"] = False
        hub.commit(("dataset", f"you/{name}"), "main", content)
    lines = child(hub, tmp_path, READ).splitlines()
    assert lines[:3] == [
        "72 c003 b'\\x89PNG' a crimson star on a white ground",
        "True",
        "40 ['c001', 'c002', 'c003', 'c004', 'c005']",
    ]
    assert lines[3].startswith("you/nothing is not here, and cannot open you/nothing as pairs")
    assert lines[4].startswith("you/pairs has no column 'image_id', needed for corpus")
    assert lines[5] == "you/triplets has no configuration 'pairs' to serve as pairs; it has triplets, images"
    rules = ["--engine", "rule_based", "--out", tmp_path / "descriptions"]
    done = megapairs(hub, tmp_path, "describe", "--pairs", "you/pairs", "--images", "you/triplets", *rules)
    assert done.returncode == 0, done.stderr
    assert "descriptions: 40 rows" in done.stderr
