"""mteb runs one of its own retrieval tasks, image and text to image, with an MMRet."""

from types import SimpleNamespace

import mteb
import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from PIL import Image as Pillow

from megapairs_hf.models import load_mmret
from megapairs_hf.models.mteb_wrapper import mteb_model
from tests.models import tiny

ROWS = 12


def make_images():
    rng = np.random.default_rng(0)
    return [Pillow.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)) for _ in range(ROWS)]


class LocalRetrieval(AbsTaskRetrieval):
    """The reference image with a word, to a gallery of which one is the same image."""

    metadata = TaskMetadata(
        name="LocalIT2IRetrieval",
        description="Composed queries over a gallery of noise.",
        reference=None,
        dataset={"path": "local/none", "revision": "1"},
        type="Any2AnyRetrieval",
        category="it2i",
        modalities=["text", "image"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        date=("2024-01-01", "2024-12-31"),
        domains=["Encyclopaedic"],
        task_subtypes=["Image Text Retrieval"],
        license="not specified",
        annotations_creators="derived",
        dialect=[],
        sample_creation="found",
        bibtex_citation="",
    )

    def load_data(self, **_):
        seen = make_images()
        ids = [str(i) for i in range(ROWS)]
        modality = {"modality": Value("string"), "id": Value("string"), "image": Image()}
        corpus = {"id": [f"d{i}" for i in ids], "image": seen, "modality": ["image"] * ROWS}
        queries = {
            "id": [f"q{i}" for i in ids],
            "image": seen,
            "modality": ["image,text"] * ROWS,
            "text": ["a"] * ROWS,
        }
        self.dataset = {
            "default": {
                "test": {
                    "corpus": Dataset.from_dict(corpus, Features(modality)),
                    "queries": Dataset.from_dict(queries, Features({**modality, "text": Value("string")})),
                    "relevant_docs": {f"q{i}": {f"d{i}": 1} for i in ids},
                    "top_ranked": None,
                }
            }
        }
        self.data_loaded = True


@pytest.fixture(scope="module", params=["siglip", "llava"])
def model(request, tmp_path_factory):
    return load_mmret(getattr(tiny, request.param)(tmp_path_factory.mktemp("mteb") / "backbone"), device="cpu")


def test_mteb_measures_what_we_compute(model, tmp_path):
    wrapped = mteb_model(model, name="local/tiny")
    result = mteb.evaluate(
        wrapped, LocalRetrieval(), cache=mteb.ResultCache(tmp_path), encode_kwargs={"batch_size": 5}, co2_tracker=False
    )
    scores = result.task_results[0].scores["test"][0]
    queries = model.encode_query([{"image": image, "text": "a"} for image in make_images()])
    ranks = np.argsort(-(queries @ model.encode_document(make_images()).T), axis=1)
    wanted = (ranks[:, :1] == np.arange(ROWS)[:, None]).any(1).mean()
    assert scores["hit_rate_at_1" if "hit_rate_at_1" in scores else "recall_at_1"] == pytest.approx(wanted, abs=1e-4)
    places = np.argmax(ranks == np.arange(ROWS)[:, None], axis=1)
    ndcg = np.where(places < 10, 1 / np.log2(places + 2), 0).mean()
    assert scores["ndcg_at_10"] == pytest.approx(ndcg, abs=1e-4)


def test_an_empty_document_gets_a_vector(model):
    task = LocalRetrieval.metadata

    class Loader(list):
        dataset = SimpleNamespace(features=["text", "image"])

    batch = {"text": ["", "words"], "image": [None, None]}
    made = mteb_model(model).encode(Loader([batch]), task_metadata=task, hf_split="test", hf_subset="default")
    assert made.shape == (2, model.get_embedding_dimension())
    assert np.isfinite(made).all()
