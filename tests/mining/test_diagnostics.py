"""`agreement` and the share of images in range, against the slow and obvious way, and what they warn of."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, List, Value

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.cli import main
from megapairs_hf.mining import mine
from megapairs_hf.mining.diagnostics import agreement_of

COUNT, TOPICS, D = 400, 16, 32


def captions():
    """Sixteen topics of three words, among words that every caption has and words of its own."""
    return [f"a photo of a topic{n % TOPICS} thing{n % TOPICS} in place{n % TOPICS} number{n}" for n in range(COUNT)]


def seeing(noise=0.5):
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((TOPICS, D))
    return centers[np.arange(COUNT) % TOPICS] + noise * rng.standard_normal((COUNT, D))


def blind():
    return np.random.default_rng(1).standard_normal((COUNT, 3))


def unit(array):
    return (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float16)


def rows(**embeddings):
    features = {name: List(Value("float16"), length=array.shape[1]) for name, array in embeddings.items()}
    columns = {"image_id": [f"i{n:04d}" for n in range(COUNT)], "caption": captions()}
    columns |= {name: list(unit(array)) for name, array in embeddings.items()}
    return Dataset.from_dict(
        columns, features=Features({"image_id": Value("string"), "caption": Value("string"), **features})
    )


def mined(tmp_path, capsys, data, **settings):
    settings = {"neighbors": 20, "similarity_range": (0.05, 0.995), "range_kind": "quantile", **settings}
    mine(data, cache_dir=tmp_path / "cache", near_duplicate=0.9999, **settings)
    (folder,) = (tmp_path / "cache").iterdir()
    return open_artifact(folder, "pairs").manifest.stats, capsys.readouterr().err


def test_relations_that_see_agree_and_blind_ones_warn(tmp_path, capsys):
    stats, message = mined(tmp_path, capsys, rows(good_image=seeing(), flat_image=blind(), flat_text=blind()))
    assert stats["agreement"]["good_image"] > 4
    assert stats["agreement"]["flat_image"] == pytest.approx(1, abs=0.3)
    # the agreement of an encoder of texts is not judged: it sees the captions themselves
    *ranks, sentence = stats["warnings"]
    assert [text.split()[2] for text in ranks] == ["flat_image", "flat_text"]
    assert stats["effective_rank"]["flat_image"] == pytest.approx(3, abs=0.1)
    assert stats["effective_rank"]["good_image"] > 10
    assert sentence.startswith(
        f"neighbors under flat_image share {stats['agreement']['flat_image']:.1f} times as many"
    )
    assert f"warning: {sentence}" in message


def test_agreement_is_its_definition():
    """Five neighbors each, all queries used: the mean weighted overlap by hand, over that of all other pairs."""
    rng = np.random.default_rng(0)
    texts = captions()[:100]
    queries = np.arange(100)
    indices = (queries[:, None] + rng.integers(1, 96, (100, 5))) % 100
    indices[:, :2] = (queries[:, None] + [TOPICS, 2 * TOPICS]) % 100
    words = [set(re.findall(r"\w+", text)) for text in texts]
    idf = {w: np.log(100 / sum(w in one for one in words)) for one in words for w in one}

    def shared(left, right):
        both = sum(idf[w] for w in words[left] & words[right])
        return both / sum(idf[w] for w in words[left] | words[right])

    near = np.mean([shared(n, other) for n in range(100) for other in indices[n]])
    chance = np.mean([shared(a, b) for a in range(100) for b in range(100) if a != b])
    inside = indices != queries[:, None]
    assert inside.all()
    made = [agreement_of(queries, indices, inside, lambda some: [texts[n] for n in some], seed) for seed in range(40)]
    # images at random are a sample, whose mean is that of all pairs
    assert 1 / np.mean([1 / one for one in made]) == pytest.approx(near / chance, rel=0.1)


@pytest.mark.parametrize("texts", ["", "the same caption", "!!"])
def test_captions_that_say_nothing_have_no_agreement(tmp_path, capsys, texts):
    data = rows(v_image=blind()).remove_columns("caption").add_column("caption", [texts] * COUNT)
    stats, _ = mined(tmp_path, capsys, data)
    assert "agreement" not in stats
    assert [text.split()[:3] for text in stats["warnings"]] == [["the", "embeddings", "v_image"]]


def test_without_captions_there_is_no_agreement(tmp_path, capsys):
    stats, _ = mined(tmp_path, capsys, rows(v_image=seeing()).remove_columns("caption"))
    assert "agreement" not in stats and stats["share_in_range"]["v_image"] > 0.9


@pytest.mark.parametrize("kind", ["few", "all"])
def test_a_range_that_selects_nothing_or_everything_names_the_quantiles(tmp_path, capsys, kind):
    data = rows(v_image=seeing(0.4))
    similarity = unit(seeing(0.4)).astype(np.float64)
    similarity = similarity @ similarity.T
    np.fill_diagonal(similarity, -2)
    nearest = -np.sort(-similarity, axis=1)[:, :20]
    ends = (float(np.quantile(nearest[:, 0], 0.93)), 0.9999) if kind == "few" else (-1.0, 0.9999)
    share = ((nearest > ends[0]) & (nearest < ends[1])).any(axis=1).mean()
    assert share < 0.2 if kind == "few" else share == 1
    stats, message = mined(tmp_path, capsys, data, similarity_range=ends, range_kind="absolute")
    assert stats["share_in_range"]["v_image"] == pytest.approx(share, abs=5e-3)
    sentence = next(text for text in stats["warnings"] if "range" in text)
    shown = f"only {stats['share_in_range']['v_image']:.0%} of" if kind == "few" else "100% of"
    assert sentence.startswith(f"{shown} images have a neighbor under v_image") and f"warning: {sentence}" in message
    low, high = np.quantile(nearest, (0.05, 0.995))
    assert "`similarity_range: [0.05, 0.995]` with `range_kind: quantile`" in sentence
    here = [float(end) for end in re.search(r"here (\S+) to (\S+)\)", sentence).groups()]
    assert here == pytest.approx([low, high], abs=2e-3)


def test_a_range_that_fits_does_not_warn(tmp_path, capsys):
    data = rows(v_image=seeing(0.4))
    similarity = unit(seeing(0.4)).astype(np.float64)
    similarity = similarity @ similarity.T
    np.fill_diagonal(similarity, -2)
    low = float(np.quantile(similarity.max(axis=1), 0.4))
    stats, _ = mined(tmp_path, capsys, data, similarity_range=(low, 0.9999), range_kind="absolute")
    assert 0.2 < stats["share_in_range"]["v_image"] < 0.95
    assert "warnings" not in stats


def test_the_command_says_it_with_a_corpus(tmp_path, capsys):
    names = [f"i{n:04d}" for n in range(COUNT)]
    table = pa.table({"image_id": names, "image": [b""] * COUNT, "caption": captions()})
    pq.write_table(table, tmp_path / "corpus.parquet")
    lists = pa.array(list(unit(blind())), pa.list_(pa.float16()))
    pq.write_table(pa.table({"image_id": names, "embedding": lists}), tmp_path / "flat_image.parquet")
    words = ["mine", "--corpus", str(tmp_path / "corpus.parquet")]
    words += ["--embeddings", str(tmp_path / "flat_image.parquet")]
    words += ["--out", str(tmp_path / "pairs"), "--neighbors", "20", "--similarity_range", "[0.05, 0.995]"]
    assert main([*words, "--range_kind", "quantile", "--near_duplicate", "0.9999"]) == 0
    stats = open_artifact(tmp_path / "pairs").manifest.stats
    assert stats["agreement"]["flat_image"] == pytest.approx(1, abs=0.3)
    assert "warning: neighbors under flat_image share" in capsys.readouterr().err
