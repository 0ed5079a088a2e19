"""Every block of docs/mining.md runs."""

import re

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from tests.small import ROOT


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """The folders that the page names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((20, 32))

    def embeddings():
        rows = centers[np.arange(300) % 20] + 0.5 * rng.standard_normal((300, 32))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)

    image, text, dino = embeddings(), embeddings(), embeddings()
    ids = [f"{n:05d}" for n in range(300)]
    columns = {"image_id": ids, "dino_image": dino, "clip_image": image, "clip_text": text}
    features = {name: datasets.List(datasets.Value("float16"), length=32) for name in columns if name != "image_id"}
    rows = Dataset.from_dict(columns, features=datasets.Features({"image_id": datasets.Value("string"), **features}))
    rows.save_to_disk("images")
    for name in ("img_emb", "text_emb", "metadata"):
        (tmp_path / "clip-retrieval/output" / name).mkdir(parents=True)
    np.save("clip-retrieval/output/img_emb/img_emb_0.npy", image)
    np.save("clip-retrieval/output/text_emb/text_emb_0.npy", text)
    pq.write_table(pa.table({"image_path": ids}), "clip-retrieval/output/metadata/metadata_0.parquet")
    (tmp_path / "curator/embeddings").mkdir(parents=True)
    lists = pa.array(dino.astype(float).tolist(), pa.list_(pa.float32()))
    pq.write_table(pa.table({"image_id": ids, "embedding": lists}), "curator/embeddings/0.parquet")


def test_every_block_of_the_page_runs(workplace, capsys):
    page = (ROOT / "docs" / "mining.md").read_text(encoding="utf-8")
    # random embeddings have no cosine of 0.8: where the page takes the paper's range, take quantiles
    blocks = [
        re.sub(
            r'mine\("([^"]+)"\)', r'mine("\1", range_kind="quantile", similarity_range=(0.2, 0.98))', block
        ).replace('"dino_image", {**across', '{"name": "dino_image", "range_kind": "quantile"}, {**across')
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    ]
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "mining.md", "exec"), names)
        if "split_pairs(" in block:
            pairs = names["pairs"]
            assert set(pairs["split"]) == {"train", "validation"}
        assert len(names["pairs"]) > 100
    assert len(blocks) == 4
    assert len(names["found"]) == 100 and not any(names["found"]["error"])
    named = set(re.findall(r"`(\w+_(?:id|ids|row|rows|cluster|clusters))`", page))
    assert set(pairs.column_names) - {"split", "relation", "scores"} <= named
