"""Artifacts on the Hub itself, through `hf://`: written with the manifest last, read back, and sent once."""

from tests.hub.children import child, megapairs
from tests.making import make_work

REPO = ("dataset", "org/work")

READ = """
import sys
from megapairs_hf.artifacts import remote
from megapairs_hf.artifacts.artifact import open_artifact
corpus = open_artifact("hf://datasets/org/work/corpus")
print(corpus.rows, corpus.table(["caption"]).num_rows, corpus.rejected().num_rows)
for name in ("pairs", "instructions", "triplets"):
    remote.send(f"{sys.argv[1]}/{name}", f"hf://datasets/org/work/{name}")
triplets = remote.fetch("hf://datasets/org/work/triplets")
print(open_artifact(triplets).rows, (triplets / "README.md").is_file())
"""


def test_a_stage_writes_to_the_hub_and_others_read_it_there(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("MEGAPAIRS_CACHE", str(tmp_path / "cache"))
    hub.private[REPO] = True
    hub.commit(REPO, "main", {"README.md": b"work"})
    scenes = ["--source", "scenes", "--scenes.count", "24", "--scenes.size", "32", "--shard_rows", "12"]
    done = megapairs(hub, tmp_path, "corpus", "--work", "hf://datasets/org/work", *scenes)
    assert done.returncode == 0, done.stderr
    files = hub.commits[hub.heads[REPO]["main"]]
    assert {name for name in files if name.startswith("corpus/")} == {
        "corpus/README.md",
        "corpus/manifest.json",
        "corpus/rejected.parquet",
        "corpus/shard-00000-of-00002.parquet",
        "corpus/shard-00001-of-00002.parquet",
    }
    told = child(hub, tmp_path, READ, make_work(tmp_path / "made"))
    assert told.splitlines() == ["24 24 0", "110 True"]
    assert not [name for name in hub.commits[hub.heads[REPO]["main"]] if "/." in name]
