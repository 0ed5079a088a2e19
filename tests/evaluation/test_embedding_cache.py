import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.benchmarks.base import Benchmark, Query
from megapairs_hf.evaluation.benchmarks.files import ImageFolder
from megapairs_hf.evaluation.embedding_cache import Cache, CacheConfig, image_digests


class Model:
    """Counts what it encodes; embeddings depend on color and text."""

    def __init__(self, size=4, turn=0, fail_after=None):
        self.size, self.turn, self.fail_after = size, turn, fail_after
        self.encoded = []

    def encode(self, inputs, **_):
        self.encoded += inputs
        if self.fail_after is not None and len(self.encoded) > self.fail_after:
            raise KeyboardInterrupt
        return np.stack([np.roll(self.vector(one), self.turn) for one in inputs])

    def vector(self, one):
        image, text = (one["image"], one["text"]) if isinstance(one, dict) else (one, "")
        made = np.full(self.size, 0.1)
        if isinstance(image, str):
            image, text = None, image
        if image is not None:
            made[:3] += np.array(image.getpixel((0, 0))) / 50
        made[3] += len(text)
        return made


@pytest.fixture
def benchmark(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(10):
        Image.new("RGB", (8, 8), (25 * n, 255 - 25 * n, 9 * n)).save(folder / f"{n}.png")
    return images_of(folder)


def images_of(folder):
    images = ImageFolder(folder, {str(n): f"{n}.png" for n in range(10)})
    return Benchmark(
        "b", "val", [Query("q", Input("x", "0"))], {str(n): Input(image=str(n)) for n in range(10)}, images
    )


def cache(tmp_path, model, fingerprint="m@1", **settings):
    return Cache(str(tmp_path / "cache"), model, fingerprint, CacheConfig(**settings))


def test_a_second_evaluation_encodes_the_queries_only(benchmark, tmp_path):
    first, second = Model(), Model()
    made = cache(tmp_path, first).gallery(benchmark)
    assert len(first.encoded) == 10 + 4
    again = cache(tmp_path, second).gallery(benchmark)
    # one image, to see that it is the same model
    assert len(second.encoded) == 4
    np.testing.assert_array_equal(made, again)
    cache(tmp_path, second).embeddings([Input("another prompt", "0")], benchmark.image)
    assert len(second.encoded) == 4 + 2
    expected = np.stack([first.vector(benchmark.image(str(n))) for n in range(10)])
    np.testing.assert_allclose(made, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-3)


def test_equal_parts_are_encoded_once_and_all_come_back(benchmark, tmp_path):
    (benchmark.image.root / "9.png").write_bytes((benchmark.image.root / "3.png").read_bytes())
    model = Model()
    made = cache(tmp_path, model).embeddings(
        [Input(image="3"), Input(image="1"), Input(image="9"), Input(image="3"), Input("t", "3")], benchmark.image
    )
    assert len(model.encoded) == 3 + 3
    np.testing.assert_array_equal(made[0], made[2])
    np.testing.assert_array_equal(made[0], made[3])
    assert not np.array_equal(made[0], made[4])


def test_other_bytes_another_model_and_another_transform_are_encoded_again(benchmark, tmp_path):
    cache(tmp_path, Model()).gallery(benchmark)
    for settings in ({"fingerprint": "m@2"}, {"transform": "center crop"}):
        model = Model()
        cache(tmp_path, model, **settings).gallery(benchmark)
        assert len(model.encoded) == 14
    Image.new("RGB", (8, 8), "white").save(benchmark.image.root / "4.png")
    model = Model()
    cache(tmp_path, model).gallery(benchmark)
    assert len(model.encoded) == 14


def test_files_are_hashed_once_and_again_where_they_were_replaced(benchmark, tmp_path, monkeypatch):
    read, plain = [], Path.read_bytes

    def counted(path):
        if path.suffix == ".png":
            read.append(path.name)
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    names, images = [str(n) for n in range(10)], tmp_path / "images"

    def digests():
        read.clear()
        # another run, whose folder of images is opened anew
        return image_digests(names, images_of(images).image, str(tmp_path / "cache"))

    first = digests()
    assert sorted(read) == sorted(f"{n}.png" for n in range(10))
    assert first == {n: sha256(plain(images / f"{n}.png")).hexdigest() for n in names}
    assert digests() == first and not read
    status = (images / "3.png").stat()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(images / "3.png")
    os.utime(images / "3.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    changed = digests()
    assert read == ["3.png"] and [n for n in names if changed[n] != first[n]] == ["3"]
    # a list that was cut off is made again
    os.truncate(tmp_path / "cache" / "images.json", 50)
    assert digests() == changed and len(read) == 10 and digests() == changed and not read


def test_an_interrupted_run_continues_and_ends_the_same(benchmark, tmp_path):
    whole = cache(tmp_path / "whole", Model(), rows=3).gallery(benchmark)
    with pytest.raises(KeyboardInterrupt):
        cache(tmp_path, Model(fail_after=7), rows=3).gallery(benchmark)
    model = Model()
    made = cache(tmp_path, model, rows=3).gallery(benchmark)
    assert len(model.encoded) == 4 + 4
    np.testing.assert_array_equal(made, whole)
    one, other = (next(p for p in (tmp_path / name).iterdir()) for name in ("cache", "whole/cache"))
    assert open_artifact(one).fingerprint == open_artifact(other).fingerprint


def test_a_model_that_changed_under_the_cache_is_refused(benchmark, tmp_path):
    cache(tmp_path, Model()).gallery(benchmark)
    with pytest.raises(EvaluationError, match=r"embeddings of 6 numbers, but the cache has 4 .*pin its revision"):
        cache(tmp_path, Model(size=6)).gallery(benchmark)
    with pytest.raises(EvaluationError, match="no longer gives the embeddings"):
        cache(tmp_path, Model(turn=1)).gallery(benchmark)


def test_a_missing_image_and_an_empty_list_are_refused(benchmark, tmp_path):
    (benchmark.image.root / "5.png").unlink()
    with pytest.raises(EvaluationError, match="image 5 is not in"):
        cache(tmp_path, Model()).gallery(benchmark)
    with pytest.raises(EvaluationError, match="nothing to encode"):
        cache(tmp_path, Model()).embeddings([], benchmark.image)


RANKS = """
import sys
import numpy as np
from megapairs_hf.core import distributed as launch
from tests.evaluation.test_embedding_cache import Model, cache, images_of
from pathlib import Path

folder = Path(sys.argv[1])
model = Model()
made = cache(folder, model, rows=3).gallery(images_of(folder / "images"))
np.save(folder / f"rank-{launch.rank()}.npy", made)
(folder / f"rank-{launch.rank()}.txt").write_text(str(len(model.encoded)))
"""


def test_two_processes_share_the_encoding(benchmark, tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    alone = cache(tmp_path / "alone", Model(), rows=3).gallery(benchmark)
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_addr", "127.0.0.1", "--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = [*command, str(tmp_path / "ranks.py"), str(tmp_path)]
    done = subprocess.run(words, check=False, env=environment, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        np.testing.assert_array_equal(np.load(tmp_path / f"rank-{rank}.npy"), alone)
    # shards of 3, 3, 3 and 1 rows: two a process, and each looks at four parts to see that the model is the same
    assert [int((tmp_path / f"rank-{rank}.txt").read_text()) for rank in (0, 1)] == [6 + 4, 4 + 4]
