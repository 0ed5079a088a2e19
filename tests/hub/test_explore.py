"""A data set on the loopback Hub is explored without being downloaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.hub.children import child
from tests.making import make_work

if TYPE_CHECKING:
    from pathlib import Path

EXPLORE = """
import sys
from pathlib import Path
from megapairs_hf.search.explorer.app import make_session
from megapairs_hf.search.explorer.config import ExploreConfig
from megapairs_hf.search.explorer.filters import Filter
from megapairs_hf.search.explorer.sources import open_source

session = make_session(open_source("org/pairs"), ExploreConfig(marks=sys.argv[1], rows=4))
shown = session.show("triplets", Filter(split="validation"), 1)
image = session.explored.images[0].image(3, 64)
print(shown.status["text"], [row["title"] for row in shown.rows["rows"]][0], len(image) > 50)
print(all(image["src"] for row in shown.rows["rows"] for image in row["images"]))
print(session.show("images", Filter(word="crimson star"), 1).status["text"])
try:
    open_source("org/absent")
except Exception as error:
    print(type(error).__name__, error)
"""


def test_triplets_and_images_of_the_hub(hub: Any, tmp_path: Path) -> None:
    work = make_work(tmp_path / "work")
    files = {p.relative_to(work / "triplets").as_posix(): p for p in (work / "triplets").rglob("*.parquet")}
    hub.private["dataset", "org/pairs"] = False
    hub.commit(("dataset", "org/pairs"), "main", {name: path.read_bytes() for name, path in files.items()})
    lines = child(hub, tmp_path, EXPLORE, tmp_path / "marks.jsonl").splitlines()
    assert lines[0] == "8 of 38 rows, page 1 of 2 c030 -> c054 True"
    assert lines[1:3] == ["True", "3 of 72 rows, page 1 of 1"]
    assert lines[3].startswith("ArtifactError") and "org/absent" in lines[3]
    # nothing was put into the cache of downloads
    assert not list((tmp_path / "home").rglob("*.parquet"))
