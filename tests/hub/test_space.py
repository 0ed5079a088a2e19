"""`push space`: the folder of a Space is written, pushed to the loopback Hub, and answers when its app is started."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from megapairs_hf.core.errors import ArtifactError, ModelError
from megapairs_hf.core.version import __version__
from megapairs_hf.search import SearchIndex
from megapairs_hf.search.config import SearchConfig
from megapairs_hf.search.generation import verify_files
from megapairs_hf.search.page.space import open_space
from megapairs_hf.search.space import write_space
from tests.hub.children import megapairs
from tests.search.stand_in import ColorModel, color_folder
from tests.small import reserve

REPO = ("space", "org/photos")


@pytest.fixture(scope="module")
def source(models: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, a model, and an index of them by reference."""
    root = tmp_path_factory.mktemp("space")
    photos = color_folder(root / "photos")
    (photos / "red" / "00.txt").write_text("a red card")
    (photos / "broken.png").write_bytes(b"no image")
    shutil.copytree(f"{models}/clip", root / "clip")
    (root / "clip" / "checkpoint-1").mkdir()
    (root / "clip" / "checkpoint-1" / "model.safetensors").write_bytes(b"older")
    SearchIndex.build(str(root / "clip"), photos, root / "idx")
    return root


def push(hub: Any, tmp_path: Path, source: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return megapairs(hub, tmp_path, "push", "space", source / "idx", *words, "--out", tmp_path / "out")


def test_a_dry_run_writes_the_folder_and_lists_it(hub: Any, source: Path, tmp_path: Path) -> None:
    done = push(hub, tmp_path, source, REPO[1], "--license", "cc-by-4.0", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "index/index.json" in done.stdout and "model/model.safetensors" in done.stdout
    assert hub.heads == {}
    out = tmp_path / "out"
    names = {p.relative_to(out).as_posix() for p in out.rglob("[!.]*") if p.is_file()}
    assert {"README.md", "app.py", "requirements.txt", "index/index.json", "index/previews-1.arrow"} < names
    assert not any("checkpoint" in name or name.endswith((".png", ".txt")) for name in names - {"requirements.txt"})
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["sdk"], front["app_file"], front["license"]) == ("gradio", "app.py", "cc-by-4.0")
    assert "24 images" in card
    assert (out / "requirements.txt").read_text() == f"megapairs-hf[search]=={__version__}\n"
    assert len((out / "app.py").read_text().splitlines()) < 12
    # nothing of this machine
    text = b"".join(p.read_bytes() for p in out.rglob("*") if p.is_file())
    assert str(source).encode() not in text and b"broken.png" not in text


def test_a_push_makes_the_space_and_refuses_another(hub: Any, source: Path, tmp_path: Path) -> None:
    done = push(hub, tmp_path, source, REPO[1], "--license", "cc-by-4.0", "--private")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.endpoint}/spaces/{REPO[1]}"
    assert hub.private[REPO]
    files = hub.commits[hub.heads[REPO]["main"]]
    assert files["app.py"] == (tmp_path / "out" / "app.py").read_bytes()
    assert {name for name in files if name.startswith("index/")} == {
        f"index/{p.name}" for p in (tmp_path / "out" / "index").iterdir()
    }
    hub.commit(REPO, "main", {**files, "mine.py": b"print()", "index/rows-9.arrow": b"stale"})
    done = push(hub, tmp_path, source, REPO[1], "--license", "cc-by-4.0")
    assert done.returncode == 1 and "holds something else" in done.stderr
    done = push(hub, tmp_path, source, REPO[1], "--license", "cc-by-4.0", "--create-pr")
    assert done.returncode == 0 and "discussions/1" in done.stdout
    done = push(hub, tmp_path, source, REPO[1], "--license", "cc-by-4.0", "--overwrite")
    assert done.returncode == 0, done.stderr
    files = hub.commits[hub.heads[REPO]["main"]]
    # files of an earlier index go, those of somebody stay
    assert "index/rows-9.arrow" not in files and "mine.py" in files


def test_it_asks_for_the_license_of_the_images(hub: Any, source: Path, tmp_path: Path) -> None:
    done = push(hub, tmp_path, source, REPO[1])
    assert done.returncode == 1 and "--license" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_token_in_a_caption_stays_at_home(hub: Any, models: str, tmp_path: Path) -> None:
    photos = color_folder(tmp_path / "photos", 6)
    (photos / "red" / "00.txt").write_text("red hf_" + "a" * 34)
    SearchIndex.build(f"{models}/clip", photos, tmp_path / "idx")
    done = push(hub, tmp_path, tmp_path, REPO[1], "--license", "cc-by-4.0")
    assert done.returncode == 1 and "column caption, holds what looks like a token" in done.stderr
    assert "aaaa" not in done.stderr and REPO not in hub.heads


@pytest.mark.parametrize("previews", [0, 16])
def test_the_index_of_a_space_finds_what_the_index_finds(models: str, tmp_path: Path, previews: int) -> None:
    photos = color_folder(tmp_path / "photos")
    config = SearchConfig(preview_side=previews)
    index = SearchIndex.build(f"{models}/clip", photos, tmp_path / "idx", config=config)
    expected = index.query(photos / "red" / "00.png", "in blue", k=24)
    write_space(index, tmp_path / "space", license="cc-by-4.0")
    shutil.move(photos, tmp_path / "gone")
    space = open_space(tmp_path / "space")
    verify_files(space.folder, space.record)
    results = space.query(tmp_path / "gone" / "red" / "00.png", "in blue", k=24)
    assert [(hit.image_id, hit.score) for hit in results] == [(hit.image_id, hit.score) for hit in expected]
    for row in range(len(space)):
        shown = Image.open(io.BytesIO(space.image_bytes(row)))
        original = Image.open(tmp_path / "gone" / space.rows.image_id(row))
        assert max(shown.size) == min(max(original.size), previews or 512)


def test_what_cannot_be_a_space_is_a_sentence(source: Path, tmp_path: Path) -> None:
    index = SearchIndex.build(ColorModel(), source / "photos", tmp_path / "idx")
    with pytest.raises(ModelError, match="was not a saved one"):
        write_space(index, tmp_path / "space", license="mit")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(ArtifactError, match="is not empty"):
        write_space(SearchIndex.open(source / "idx"), tmp_path / "full", license="mit")


def answer(url: str) -> tuple[bytes, Any]:
    with urllib.request.urlopen(url, timeout=30) as response:
        return response.read(), response.headers


def test_its_app_starts_without_the_photos_and_answers(source: Path, tmp_path: Path) -> None:
    write_space(SearchIndex.open(source / "idx"), tmp_path / "space", license="cc-by-4.0", title="Photos")
    listener = reserve()
    port = listener.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, str(tmp_path / "space" / "app.py")]
    log = (tmp_path / "log").open("w")
    with log, subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log) as process:
        try:
            for _ in range(600):
                assert process.poll() is None, (tmp_path / "log").read_text()
                try:
                    found, headers = answer(f"{url}/api/search?text=red&k=3")
                    break
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.2)
            assert len(json.loads(found)["hits"]) == 3
            # the Hub shows a Space inside a page of its own
            assert "x-frame-options" not in headers
            assert "https://huggingface.co" in headers["content-security-policy"]
            content, _ = answer(f"{url}/images/0/0")
            assert Image.open(io.BytesIO(content)).format == "WEBP"
            page, _ = answer(url)
            assert b"gradio" in page
        finally:
            process.terminate()
            process.wait(20)
            listener.close()
