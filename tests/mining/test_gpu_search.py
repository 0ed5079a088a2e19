"""Search on a GPU, with the processor or stand-ins of its libraries in its place."""

import sys
import types

import numpy as np
import pytest

from megapairs_hf.mining.config import MineConfig
from megapairs_hf.mining.knn import gpu_search
from megapairs_hf.mining.knn.embeddings import Embeddings, SelectedRows
from megapairs_hf.mining.knn.faiss_search import FaissSearch, build_index
from megapairs_hf.mining.knn.gpu_search import DeviceSearch
from megapairs_hf.mining.knn.thread_pool import workers
from megapairs_hf.mining.neighbors import Neighbors, find_neighbors
from megapairs_hf.mining.relations import Relation
from tests.mining.test_search import CORPORA, brute_force, clustered, nearest, unit


def close_together(rows, seed=0):
    """Different embeddings whose scores float32 cannot tell apart: one, with single bits of it turned over."""
    rng = np.random.default_rng(seed)
    bits = np.repeat(unit(rng.standard_normal((1, 64))), rows, axis=0).view(np.uint16)
    bits[np.arange(rows), rng.integers(0, 64, rows)] ^= 1
    bits[np.arange(rows), rng.integers(0, 64, rows)] ^= 1
    return bits.view(np.float16)


def check(embeddings, queries, k, **options):
    indices, scores = DeviceSearch(Embeddings([embeddings]), k, "cpu", **options).search(queries)
    expected = brute_force(embeddings, queries, min(k, len(embeddings)))
    assert np.array_equal(indices, expected[0])
    assert np.array_equal(scores, expected[1])


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("k", [1, 30, 100])
def test_device_search_equals_brute_force_to_the_last_id(name, k):
    embeddings = CORPORA[name]
    k = min(k, len(embeddings))
    indices, scores = DeviceSearch(Embeddings([embeddings]), k, "cpu", block_rows=1300).search(embeddings[:300])
    assert np.array_equal(indices, nearest(name)[0][:300, :k])
    assert np.array_equal(scores, nearest(name)[1][:300, :k])


@pytest.mark.parametrize("block", [700, 5000])
def test_embeddings_that_float32_cannot_tell_apart(block, monkeypatch):
    monkeypatch.setattr(gpu_search, "DOUBLE_ROWS", block)
    embeddings = np.concatenate([close_together(2600), CORPORA["random"][:300]])
    check(embeddings, embeddings[::9], 20, block_rows=block)


def test_some_rows_are_searched_and_no_query_is_none():
    embeddings = CORPORA["some copies"]
    rows = np.flatnonzero(np.arange(len(embeddings)) % 3)
    search = DeviceSearch(SelectedRows(Embeddings([embeddings]), rows), 20, "cpu")
    assert np.array_equal(search.search(embeddings)[0], brute_force(embeddings[rows], embeddings, 20)[0])
    assert [part.shape for part in search.search(embeddings[:0])] == [(0, 20), (0, 20)]


def counted(monkeypatch):
    """How many products and how many candidates at a time a search takes."""
    counts = {"products": 0, "candidates": 0}
    products, candidates = gpu_search._products, DeviceSearch._candidates

    def count_products(queries, targets):
        counts["products"] += len(queries) * len(targets)
        return products(queries, targets)

    def count_candidates(self, queries, count):
        counts["candidates"] = max(counts["candidates"], len(queries) * count)
        return candidates(self, queries, count)

    monkeypatch.setattr(gpu_search, "_products", count_products)
    monkeypatch.setattr(DeviceSearch, "_candidates", count_candidates)
    return counts


def test_copies_cost_no_more_than_what_is_distinct(monkeypatch):
    """4,000 copies among 8,000 rows were multiplied six times, with ever more candidates."""
    counts = counted(monkeypatch)
    distinct = unit(np.random.default_rng(3).standard_normal((4001, 32)))
    embeddings = np.concatenate([np.repeat(distinct[:1], 4000, axis=0), distinct[1:]])
    search = DeviceSearch(Embeddings([embeddings]), 50, "cpu")
    indices, _ = search.search(embeddings)
    assert counts["products"] <= 1.3 * 4001**2
    assert np.array_equal(indices[::80], brute_force(embeddings, embeddings[::80], 50)[0])


def test_one_caption_a_hundred_thousand_times(monkeypatch):
    counts = counted(monkeypatch)
    embeddings = np.repeat(unit(np.random.default_rng(4).standard_normal((3, 16))), [100_000, 1, 5], axis=0)
    indices, scores = DeviceSearch(Embeddings([embeddings]), 100, "cpu").search(embeddings)
    assert counts["candidates"] <= 9
    assert np.array_equal(indices[:100_000], np.tile(np.arange(100), (100_000, 1)))
    assert np.array_equal(indices[-6:], brute_force(embeddings, embeddings[-6:], 100)[0])
    assert np.array_equal(scores[0], np.full(100, scores[0, 0]))


def test_no_more_candidates_at_a_time_than_in_the_first_round(monkeypatch):
    counts = counted(monkeypatch)
    monkeypatch.setattr(gpu_search, "QUERY_BLOCK", 64)
    embeddings = close_together(4000, seed=5)
    distinct = len(np.unique(embeddings, axis=0))
    with workers(3) as crew:
        check(embeddings, embeddings[:800], 10, crew=crew)
    assert counts["candidates"] <= max(800 * 26, 64 * 16 * 26)
    assert distinct > 1000


def test_a_device_that_rounds_more_than_it_should_is_not_believed(monkeypatch):
    """As one would that sums in float16."""
    monkeypatch.setattr(gpu_search, "_products", lambda queries, targets: (queries @ targets.T).half().float())
    check(CORPORA["clusters"], CORPORA["clusters"][:200], 30)


@pytest.fixture
def cuvs(monkeypatch):
    """A stand-in for cuVS's brute force, which counts its calls."""
    calls = []

    def build(dataset, metric):
        assert metric == "inner_product"
        return dataset

    def search(index, queries, k):
        assert index.dtype == queries.dtype
        calls.append(len(queries))
        return (queries.float() @ index.float().T).topk(k)

    brute_force = types.SimpleNamespace(build=build, search=search)
    neighbors = types.ModuleType("cuvs.neighbors")
    neighbors.brute_force = brute_force
    monkeypatch.setitem(sys.modules, "cuvs", types.ModuleType("cuvs"))
    monkeypatch.setitem(sys.modules, "cuvs.neighbors", neighbors)
    return calls


def test_cuvs_names_the_candidates_where_it_is_installed(cuvs, monkeypatch):
    embeddings = CORPORA["some copies"]
    check(embeddings, embeddings[:300], 30, block_rows=1300, engine="cuVS")
    assert cuvs
    installed = {"cuvs": True}
    monkeypatch.setattr(gpu_search, "find_spec", installed.get)
    some = Embeddings([embeddings])
    assert [DeviceSearch(some, 5, device).engine for device in ("cuda:1", "mps", "cpu")] == ["cuVS", "torch", "torch"]
    installed.clear()
    assert DeviceSearch(some, 5, "cuda").engine == "torch"


class OnGPU:
    """An index on a GPU, which faiss's Python wrapper neither serializes nor searches for us here."""

    def __init__(self, index):
        self.index, self.added = index, 0

    def add(self, embeddings):
        self.added += len(embeddings)
        self.index.add(embeddings)


@pytest.fixture
def faiss_gpu(monkeypatch):
    """What faiss-gpu has beside faiss-cpu, over an index of the CPU; as strict where it matters."""
    import faiss

    state = {"options": "OPTIMIZE GPU ", "refuses": False, "moved": []}

    def to_gpu(resources, device, index, options):
        assert options.useFloat16
        assert index.is_trained
        if state["refuses"]:
            raise RuntimeError("Error in verifyPQSettings_: Number of sub-quantizers 80 is not supported\nat GpuIndex")
        state["moved"].append(OnGPU(index))
        return state["moved"][-1]

    serialize = faiss.serialize_index

    def serialize_cpu(index):
        assert not isinstance(index, OnGPU), "don't know how to serialize this type of index"
        return serialize(index)

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
    monkeypatch.setattr(faiss, "GpuClonerOptions", types.SimpleNamespace, raising=False)
    monkeypatch.setattr(faiss, "index_cpu_to_gpu", to_gpu, raising=False)
    monkeypatch.setattr(faiss, "index_gpu_to_cpu", lambda index: index.index, raising=False)
    monkeypatch.setattr(faiss, "serialize_index", serialize_cpu)
    monkeypatch.setattr(faiss, "get_compile_options", lambda: state["options"])
    return state


@pytest.mark.parametrize(("options", "package"), [("GPU NVIDIA_CUVS ", "faiss-gpu-cuvs"), ("GPU ", "faiss-gpu")])
def test_mining_with_faiss_on_a_gpu(options, package, faiss_gpu, tmp_path, capfd):
    faiss_gpu["options"] = options
    embeddings = clustered(3000)
    rows = Embeddings([embeddings])
    relation = Relation("near", rows, rows, visual=True)
    files = Neighbors(str(tmp_path), np.array([0, 1500, 3000]))
    facts = find_neighbors([relation], MineConfig(neighbors=20, search="ivf_pq", threads=1), files)["near"]
    assert faiss_gpu["moved"][0].added == 3000
    assert facts["engine"] == package
    assert f"ivf_pq search of near by {package}" in capfd.readouterr().err
    indices = np.concatenate([files.read("near", shard)[0] for shard in (0, 1)])
    expected = brute_force(embeddings, embeddings, 21)[0]
    hits = np.mean([len(np.intersect1d(*each)) for each in zip(indices, expected, strict=True)]) / 21
    assert abs(hits - facts["recall"]) < 0.05


def test_an_index_that_a_gpu_cannot_hold_is_filled_on_the_processor(faiss_gpu, capfd):
    faiss_gpu["refuses"] = True
    embeddings = Embeddings([clustered(3000)])
    with workers(1) as crew:
        index, package = build_index(embeddings, crew)
        assert (index.ntotal, package, faiss_gpu["moved"]) == (3000, "faiss-cpu", [])
        assert "80 is not supported" in capfd.readouterr().err
        assert FaissSearch(embeddings, 20, crew, recall=0.9, index=index).recall > 0.85


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["random", "some copies"])
@pytest.mark.parametrize("engine", ["torch", "cuVS"])
def test_device_search_on_a_gpu(name, engine):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    if engine == "cuVS":
        pytest.importorskip("cuvs")
    embeddings = CORPORA[name]
    indices, _ = DeviceSearch(Embeddings([embeddings]), 30, "cuda", engine=engine).search(embeddings)
    assert np.array_equal(indices, nearest(name)[0][:, :30])
