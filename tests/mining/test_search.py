"""The searches against brute force, written the slow and obvious way."""

import functools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from megapairs_hf.artifacts.arrow_arrays import embedding_table
from megapairs_hf.artifacts.file_rows import FileRows
from megapairs_hf.mining.knn import exact
from megapairs_hf.mining.knn.calibration import overlap
from megapairs_hf.mining.knn.duplicates import distinct
from megapairs_hf.mining.knn.embeddings import Embeddings
from megapairs_hf.mining.knn.exact import ExactSearch
from megapairs_hf.mining.knn.faiss_search import FaissSearch
from megapairs_hf.mining.knn.ivf import IVFSearch
from megapairs_hf.mining.knn.quantize import encode, fit_error_bounds, fit_scale, multiply
from megapairs_hf.mining.knn.thread_pool import workers


def unit(embeddings):
    return (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float16)


def brute_force(embeddings, queries, k):
    scores = queries.astype(np.float64) @ embeddings.astype(np.float64).T
    # a stable sort of the negated scores breaks ties by index
    indices = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return indices, np.take_along_axis(scores, indices, 1)


def corpora():
    rng = np.random.default_rng(0)
    normal = rng.standard_normal
    few = unit(normal((40, 32)))
    turned = rng.permutation(2500)
    # more than two tiles of 2,048, or more than one
    return {
        "random": unit(normal((4500, 64))),
        "every vector a copy": few[rng.integers(0, 40, 2500)],
        "some copies": np.concatenate([unit(normal((2200, 40))), np.repeat(unit(normal((3, 40))), 100, 0)])[turned],
        "clusters": unit(normal((40, 48))[rng.integers(0, 40, 4500)] + 0.3 * normal((4500, 48))),
        "a narrow cone": unit(normal((2500, 64)) * 0.05 + 1),
        "one huge coordinate": unit(normal((2500, 64)) * np.where(np.arange(64) == 5, 20, 1)),
        "three dimensions": unit(normal((2500, 3))),
        "seven": unit(normal((7, 16))),
        "one": unit(normal((1, 16))),
    }


CORPORA = corpora()


@functools.cache
def nearest(name):
    """The nearest hundred of every vector of a corpus."""
    return brute_force(CORPORA[name], CORPORA[name], 100)


@pytest.fixture(scope="module")
def crew():
    with workers(2) as crew:
        yield crew


@pytest.mark.parametrize("integers", [True, False], ids=["int8", "float32"])
@pytest.mark.parametrize("name", CORPORA)
def test_exact_search_equals_brute_force_to_the_last_id(name, integers, crew):
    embeddings = CORPORA[name]
    cut = len(embeddings) // 2 or 1
    for k in (5, 100):
        indices, scores = (array[:, :k] for array in nearest(name))
        for block in (None, 1000):
            search = ExactSearch(
                Embeddings([embeddings[:cut], embeddings[cut:]]), k, crew, block_rows=block, integers=integers
            )
            found, values = search.search(embeddings, np.arange(len(embeddings)))
            assert np.array_equal(found, indices)
            assert np.array_equal(
                values, np.take_along_axis(scores, np.arange(found.shape[1])[None], 1)
            ) or np.allclose(values, scores, atol=1e-13)
            found, _ = search.search(embeddings[:50])
            assert np.array_equal(found, indices[:50])


def test_other_queries_than_targets(crew):
    rng = np.random.default_rng(1)
    targets, queries = unit(rng.standard_normal((3000, 32))), unit(rng.standard_normal((700, 32)))
    found, scores = ExactSearch(Embeddings([targets]), 20, crew).search(queries)
    indices, values = brute_force(targets, queries, 20)
    assert np.array_equal(found, indices)
    assert np.allclose(scores, values, atol=1e-13)


@pytest.mark.parametrize("block", [None, 1000])
@pytest.mark.parametrize("name", ["random", "some copies"])
def test_a_threshold_that_was_too_high_is_noticed_and_mended(name, block, crew, monkeypatch):
    embeddings = CORPORA[name]
    monkeypatch.setattr(exact, "AGAIN_ROWS", 700)
    search = ExactSearch(Embeddings([embeddings]), 100, crew, block_rows=block)
    bars = search._thresholds

    def too_high(side, rows, depth=1):
        best = bars(side, rows, depth)
        if depth == 1:
            best.threshold[:] = round(0.9 / search.scale.unit)  # nothing but the vector itself is so near
        return best

    monkeypatch.setattr(search, "_thresholds", too_high)
    found, _ = search.search(embeddings, np.arange(len(embeddings)))
    assert np.array_equal(found, nearest(name)[0])


def test_the_bound_holds_for_every_pair(crew):
    for name in ("random", "one huge coordinate", "a narrow cone"):
        embeddings = CORPORA[name][:1000]
        scale = fit_scale(embeddings, integers=True)
        codes, _ = fit_error_bounds(*[encode(embeddings, scale, crew)] * 2)
        rough = multiply(codes.values, codes.values, crew.scratch(codes.values)).astype(np.float64)
        wide = embeddings.astype(np.float64)
        error_bound = codes.error_bound[:, None] + codes.error_bound[None].astype(np.float64)
        assert (np.abs(wide @ wide.T - rough * scale.unit) <= error_bound * scale.unit + 1e-4).all()


def test_distinct_rows():
    embeddings = CORPORA["some copies"]
    first, kind = distinct(embeddings)
    assert len(first) == 2203
    assert np.array_equal(embeddings[first[kind]], embeddings)
    assert (np.diff(first) > 0).all()
    # the first of a kind has no equal before it
    rows = [row.tobytes() for row in embeddings]
    assert all(rows.index(rows[index]) == index for index in first[::50])


def test_embeddings_are_read_and_taken_across_parts(tmp_path):
    whole = CORPORA["random"]
    parts = []
    for i, part in enumerate(np.split(whole, [700, 700, 2500])):
        np.save(tmp_path / f"{i}.npy", part)
        parts.append(np.load(tmp_path / f"{i}.npy", mmap_mode="r"))
    read_across_parts(Embeddings(parts), whole)


def test_arrow_shards_are_read_like_arrays(tmp_path):
    whole = CORPORA["random"]
    parts = np.split(whole, [700, 700, 2500])
    for i, part in enumerate(parts):
        table = embedding_table(pa.array([f"{i}-{row}" for row in range(len(part))], pa.string()), part)
        with pa.ipc.new_stream(tmp_path / f"{i}.arrow", table.schema) as stream:
            stream.write_table(table)
    files = [FileRows.of_shard(str(tmp_path / f"{i}.arrow")) for i in range(len(parts))]
    assert None not in files
    before = len(list(Path("/proc/self/fd").iterdir()))
    read_across_parts(Embeddings(files), whole)
    # a thousand shards hold no thousand descriptors
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def read_across_parts(embeddings, whole):
    assert len(embeddings) == 4500
    assert np.array_equal(embeddings.read(600, 2600), whole[600:2600])
    assert np.array_equal(embeddings.read(700, 2400), whole[700:2400])
    assert len(embeddings.take(np.empty(0, np.int64))) == 0
    indices = np.random.default_rng(0).integers(0, 4500, 300)
    assert np.array_equal(embeddings.take(indices), whole[indices])


def clustered(count, dimension=64, centers=200, width=0.7, seed=3):
    rng = np.random.default_rng(seed)
    middle = rng.standard_normal((centers, dimension))
    return unit(middle[rng.integers(0, centers, count)] + width * rng.standard_normal((count, dimension)))


def test_cells_keep_the_recall_that_they_promise(crew):
    embeddings = clustered(10_000)
    search = IVFSearch(Embeddings([embeddings]), 20, crew, recall=0.95)
    found, scores = search.search(embeddings, np.arange(len(embeddings)))
    indices, _ = brute_force(embeddings, embeddings[:1000], 20)
    real = overlap(found[:1000], indices)
    assert real >= 0.94
    # measured rightly: the standard error of 512 queries is below 0.01
    assert abs(real - search.recall) < 0.02
    assert search.nprobe < search.nlist / 2
    # what is reported is the cosine, not an approximation of it
    cosine = np.einsum("nkd,nd->nk", embeddings[found[:200]].astype(np.float64), embeddings[:200].astype(np.float64))
    assert np.allclose(scores[:200], cosine, atol=1e-13)


def test_all_cells_give_all_neighbors(crew):
    for name in ("clusters", "every vector a copy", "seven", "one"):
        embeddings = CORPORA[name]
        search = IVFSearch(Embeddings([embeddings]), 20, crew, recall=1.0)
        search.nprobe = search.nlist
        found, _ = search.search(embeddings, np.arange(len(embeddings)))
        assert np.array_equal(found, nearest(name)[0][:, :20])


def test_cells_for_queries_of_another_kind(crew):
    targets, queries = clustered(6000, seed=4), clustered(3000, seed=4, width=0.9)
    search = IVFSearch(Embeddings([targets]), 20, crew, recall=0.9, queries=Embeddings([queries]))
    found, _ = search.search(queries)
    assert overlap(found, brute_force(targets, queries, 20)[0]) >= 0.88


def test_a_faiss_index_is_ranked_exactly_and_measured_rightly(crew):
    embeddings = clustered(6000, 32, 100)
    search = FaissSearch(Embeddings([embeddings]), 20, crew, recall=0.9)
    found, scores = search.search(embeddings[:1000])
    real = overlap(found, brute_force(embeddings, embeddings[:1000], 20)[0])
    assert real >= 0.88
    assert abs(real - search.recall) < 0.03
    cosine = np.einsum("nkd,nd->nk", embeddings[found].astype(np.float64), embeddings[:1000].astype(np.float64))
    assert np.allclose(scores, cosine, atol=1e-13)


def test_cells_do_not_depend_on_the_faster_engine(crew, monkeypatch):
    from megapairs_hf.mining.knn import quantize

    embeddings = clustered(6000)
    found = []
    for faster in (True, False):
        monkeypatch.setattr(quantize, "integers_are_faster", lambda dimension, answer=faster: answer)
        search = IVFSearch(Embeddings([embeddings]), 20, crew, recall=0.9)
        found.append((search.nprobe, search.recall, search.search(embeddings, np.arange(len(embeddings)))[0]))
    assert found[0][:2] == found[1][:2]
    assert np.array_equal(found[0][2], found[1][2])


@pytest.mark.parametrize("block", [1000, 1700])
def test_bursts_of_copies_across_blocks_that_are_cut_twice(block, crew, monkeypatch):
    """Seven copies in a row of every vector: each cut separates some, and the second search cuts elsewhere."""
    monkeypatch.setattr(exact, "AGAIN_ROWS", 700)
    embeddings = np.repeat(unit(np.random.default_rng(8).standard_normal((600, 16))), 7, axis=0)
    search = ExactSearch(Embeddings([embeddings]), 20, crew, block_rows=block)
    found, _ = search.search(embeddings)
    assert np.array_equal(found, brute_force(embeddings, embeddings, 20)[0])


def test_cells_that_hold_fewer_than_k(crew):
    embeddings = clustered(2000, 32, 100, width=0.05)
    embeddings[:30] = embeddings[0]
    search = IVFSearch(Embeddings([embeddings]), 101, crew, recall=0.8)
    search.nprobe = 1
    found, scores = search.search(embeddings, np.arange(len(embeddings)))
    missing = found < 0
    assert missing.any()
    assert np.isneginf(scores[missing]).all()
    # what is there stands in front, each once
    assert (np.diff(missing.astype(int), axis=1) >= 0).all()
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in found)
