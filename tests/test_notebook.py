"""The notebook, cell by cell, as a user runs it: from a folder of images to a data set on the Hub and a model."""

import csv
import io
import json
import os
import signal
import subprocess
import sys

import pytest
from PIL import Image

from tests.annotation.small_models import save_vlm, teach
from tests.hub.children import environment, run_child
from tests.hub.conftest import serve as serve_hub
from tests.small import ROOT

NOTEBOOK = ROOT / "docs" / "notebooks" / "synthesis.ipynb"
REPLY = "Both images show shapes on a plain ground. The target image has other colors."

RUN = """
import ast, json, sys
from pathlib import Path

cells, parameters = json.loads(Path(sys.argv[1]).read_text())["cells"], json.loads(sys.argv[2])
space = {"__name__": "__main__"}
for number, cell in enumerate(cell for cell in cells if cell["cell_type"] == "code"):
    tree = ast.parse("".join(cell["source"]))
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"cell {number}", "exec"), space)
    if "parameters" in cell["metadata"].get("tags", ()):
        space |= parameters
    if last is not None:
        value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), space)
        shown = value._repr_html_() if hasattr(value, "_repr_html_") else repr(value)
        assert shown, number
results = {
    "images": len(space["ds"]),
    "pairs": len(space["pairs"]),
    "triplets": len(space["triplets"]),
    "html": space["triplets"]._repr_html_()[:100_000],
    "descriptions": sorted({d for d, e in zip(space["pairs"]["description"], space["pairs"]["error"]) if not e}),
    "published": [len(space["published"]), len(space["row"]["q_text"]), space["row"]["q_img"].size],
    "steps": space["trained"].manifest.stats["steps"],
    "theirs": space["trainer"].state.global_step,
    "embedding": space["ds"].with_format("numpy")["dino_image"][:].tolist(),
    "ids": space["ds"]["image_id"][:],
}
Path("results.json").write_text(json.dumps(results))
"""


@pytest.fixture(scope="module")
def hub():
    yield from serve_hub()


@pytest.fixture(scope="module")
def photos(tmp_path_factory, corpus):
    """The scenes as a folder of files with a table of captions, and one file that is no image."""
    folder = tmp_path_factory.mktemp("notebook") / "photos"
    folder.mkdir()
    rows = corpus.table(["image_id", "image", "caption"]).to_pylist()
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption"])
        for number, row in enumerate(rows):
            name = f"{number:03d}.png"
            Image.open(io.BytesIO(row["image"]["bytes"])).save(folder / name)
            writer.writerow([name, row["caption"]])
        (folder / "broken.png").write_bytes(b"no image")
        writer.writerow(["broken.png", "a broken file"])
    return folder


def parameters(photos, models, **others):
    return {
        "PHOTOS": str(photos),
        "IMAGE_ENCODER": f"{models}/dino",
        "TEXT_ENCODER": f"{models}/words",
        "MINE": {"similarity_range": [0.1, 0.99], "range_kind": "quantile", "neighbors": 12},
        "BACKBONE": f"{models}/clip",
        "TRAIN": {"steps": 2, "batch_size": 8, "negatives": 1, "lr": 1e-4},
        **others,
    }


def run_notebook(hub, home, values):
    home.mkdir(exist_ok=True)
    done = run_child(hub, home / "hf", "-c", RUN, NOTEBOOK, json.dumps(values))
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((home / "results.json").read_text()), done.stderr


@pytest.fixture(scope="module")
def rule_based(hub, photos, models, tmp_path_factory):
    home = tmp_path_factory.mktemp("rules")
    return *run_notebook(hub, home, parameters(photos, models, REPO_ID="you/your-pairs")), home


@pytest.mark.timeout(600)
def test_the_whole_notebook_by_rules(rule_based):
    results, log, _ = rule_based
    assert results["images"] == 96
    assert "1 of 97 rows left out" in log
    assert results["triplets"] > 50
    assert results["published"][0] > 40
    assert results["published"][1] >= 3
    assert results["published"][2] == [32, 32]
    assert results["html"].count("data:image/") >= 2
    assert (results["steps"], results["theirs"]) == (2, 2)


SHARED = """
import json, os, sys
from pathlib import Path

cells, parameters = json.loads(Path(sys.argv[1]).read_text())["cells"], json.loads(sys.argv[2])
space = {}
for cell in cells:
    source = "".join(cell["source"])
    if cell["cell_type"] == "code" and ("parameters" in cell["metadata"].get("tags", ()) or "ds = " in source):
        exec(source, space)
        if "parameters" in cell["metadata"].get("tags", ()):
            space |= parameters
rows = [space["ds"]["image_id"][:], space["ds"].with_format("numpy")["dino_image"][:].tolist()]
Path(f"rows-{os.environ['RANK']}.json").write_text(json.dumps(rows))
"""


@pytest.mark.long
@pytest.mark.timeout(600)
def test_its_embedding_in_two_processes_gives_equal_rows(rule_based, hub, photos, models, tmp_path):
    results = rule_based[0]
    (tmp_path / "script.py").write_text(SHARED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1"]
    rendezvous = ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    values = json.dumps(parameters(photos, models))
    done = subprocess.run(
        [*launcher, *rendezvous, "script.py", str(NOTEBOOK), values],
        cwd=tmp_path,
        env=environment(hub, tmp_path / "hf") | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for rank in (0, 1):
        ids, embeddings = json.loads((tmp_path / f"rows-{rank}.json").read_text())
        assert ids == results["ids"]
        assert embeddings == results["embedding"]


@pytest.mark.timeout(600)
def test_the_first_lines_of_the_readme_run(hub, photos, models, tmp_path):
    code = (ROOT / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    changes = {
        '"photos"': f'"{photos}"',
        "facebook/dinov2-large": f"{models}/dino",
        'relations=["dino_image"]': 'relations=["dino_image"], similarity_range=(0.1, 0.99), range_kind="quantile"',
        'urls=["http://gpu-1:8080/v1"], model="OpenGVLab/InternVL2-26B"': 'engine="rule_based"',
        'urls=["http://gpu-2:8080/v1"], model="meta-llama/Meta-Llama-3-8B-Instruct"': 'images=ds, engine="rule_based"',
        "your-name/your-pairs": "you/readme-pairs",
    }
    for old, new in changes.items():
        assert old in code, old
        code = code.replace(old, new)
    (tmp_path / "home").mkdir()
    done = run_child(hub, tmp_path / "home" / "hf", "-c", code + "\nprint(len(triplets))")
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.strip().splitlines()[-1]) > 50


@pytest.fixture
def vlm_server(tmp_path):
    """`transformers serve` with a tiny LLaVA-NeXT that has learnt one sentence; its address and its model."""
    folder = tmp_path / "vlm"
    save_vlm(folder, [REPLY] * 3)
    teach(folder, REPLY)
    from tests.small import reserve

    port = reserve()
    number = port.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--device", "cpu"]
    log = (tmp_path / "serve.log").open("w+")
    process = subprocess.Popen(
        [*command, "--port", str(number), "--host", "127.0.0.1"],
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        start_new_session=True,
    )
    try:
        wait_for(process, number)
        yield f"http://127.0.0.1:{number}/v1", str(folder)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()
        port.close()


def wait_for(process, port):
    """Until it answers; pytest's time-out ends a wait that is too long."""
    import time
    from urllib.error import URLError
    from urllib.request import urlopen

    while process.poll() is None:
        try:
            urlopen(f"http://127.0.0.1:{port}/health")
        except (URLError, ConnectionError):
            time.sleep(0.2)
        else:
            return
    raise AssertionError("the server has ended")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_whole_notebook_with_a_real_server(hub, photos, models, vlm_server, tmp_path):
    url, model = vlm_server
    describe = {"urls": [url], "model": model, "max_new_tokens": 60, "concurrency": 4}
    values = parameters(photos, models, REPO_ID="you/served-pairs", DESCRIBE=describe)
    results, _ = run_notebook(hub, tmp_path / "home", values)
    # the tiny model says its sentence to any two images, and now and then does not stop after it
    assert REPLY in results["descriptions"]
    assert [text for text in results["descriptions"] if not text.startswith(REPLY)] == []
    assert results["triplets"] > 20
    assert results["steps"] == 2
