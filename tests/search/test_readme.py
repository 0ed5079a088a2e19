"""The README's commands from a folder of one's own images without captions to the page, as they stand there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from megapairs_hf.cli.search import DEFAULT_MODEL
from megapairs_hf.search.page.sources import TOY
from tests.making import begin
from tests.search.serving import get
from tests.search.stand_in import color_folder
from tests.small import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def commands() -> list[list[str]]:
    """The words of each command of the README's block about searching."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if "megapairs search index" in block]
    return [shlex.split(line, comments=True) for line in block.splitlines()]


@pytest.fixture
def folder(tmp_path: Path, models: str) -> Path:
    """200 images, and in place of the default model's id a folder: a tiny CLIP of the demo."""
    color_folder(tmp_path / "photos", 200)
    owner, name = DEFAULT_MODEL.split("/")
    with begin(tmp_path / owner, "encoders", [f"{name}/model.safetensors"]) as writer:
        shutil.copytree(f"{models}/clip", tmp_path / owner / name)
        writer.adopt(0, 1, [], {})
        writer.finish({})
    return tmp_path


def test_the_readmes_commands_lead_to_a_page_that_answers(folder: Path) -> None:
    install, *steps = commands()
    assert install[:2] == ["pip", "install"]
    assert 1 <= len(steps) <= 3
    assert all(step[:2] == ["megapairs", "search"] for step in steps)
    how = {"cwd": folder, "text": True, "env": {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}}
    python = [sys.executable, "-m", "megapairs_hf"]
    for step in steps[:-1]:
        done = subprocess.run([*python, *step[1:]], capture_output=True, check=False, **how)
        assert done.returncode == 0, done.stderr
        assert "200 new, 0 changed, 0 gone; 200 images" in done.stderr
    # the default port may be in use
    serve = [*python, *steps[-1][1:], "--port", "0"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how) as server:
        try:
            assert server.stderr is not None
            url = next(m[0] for line in server.stderr if (m := re.search(r"http://\S+:\d+", line)))
            while (answer := get(f"{url}/api/search?row=0&text=at+night&k=3"))[0] == 503:
                time.sleep(0.2)
            assert answer[0] == 200, answer[1]
            hits = json.loads(answer[1])["hits"]
            assert len({hit["image_id"] for hit in hits}) == 3
            assert get(f"{url}/images/0/{hits[0]['row']}")[1][:4] == b"RIFF"
            page = get(f"{url}/")[1].decode()
            assert json.dumps(TOY)[1:-1] in page or TOY in page
        finally:
            server.kill()
