from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from megapairs_hf import load_triplets
from megapairs_hf.artifacts import lookup
from megapairs_hf.artifacts.lookup import IdIndex, hashed
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.dataset import Triplets
from tests.making import make_work


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_work(tmp_path_factory.mktemp("load") / "work") / "triplets"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


def test_every_id_is_found_and_no_other():
    names = [f"image {i * 7919 % 5000}" for i in range(5000)]
    rows = IdIndex(Dataset.from_dict({"image_id": names, "caption": names})).rows([*names, "gone", ""])
    assert rows.tolist() == [*range(5000), -1, -1]


def test_ids_of_equal_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr(lookup, "hashed", lambda names: np.zeros(len(names), np.uint64))
    rows = IdIndex(Dataset.from_dict({"image_id": ["a", "b", "c"]})).rows(["c", "a", "d", "b"])
    assert rows.tolist() == [2, 0, -1, 1]


def test_hashes_of_lists_and_arrow_arrays_agree():
    names = ["a", "ü", "x" * 300]
    assert hashed(names).tolist() == hashed(pa.array(names)).tolist()
    assert len(set(hashed([str(i) for i in range(10_000)]).tolist())) == 10_000


def test_the_index_is_mapped_from_the_cache_and_a_torn_one_is_made_again(folder):
    first = load_triplets(str(folder))
    assert first.by_id.path.is_file()
    assert isinstance(load_triplets(str(folder)).by_id.table, np.memmap)
    first.by_id.path.write_bytes(b"torn")
    again = load_triplets(str(folder))
    assert again.missing() == []
    assert np.load(again.by_id.path).shape == (2, 72)


def test_a_cache_that_cannot_be_written_is_done_without(folder, monkeypatch):
    def refuse(path, content):
        raise ArtifactError("read-only")

    monkeypatch.setattr(lookup.storage, "write_bytes", refuse)
    triplets = load_triplets(str(folder))
    assert triplets.by_id.path is None
    assert triplets[0]["q_img"].mode == "RGB"


def test_rows_come_one_at_a_time_or_many(folder):
    triplets = load_triplets(str(folder), columns=["q_img", "t_img"])
    assert triplets.ids([3, 1, 3]) == [triplets.ids(3), triplets.ids(1), triplets.ids(3)]
    assert triplets.ids([]) == []
    assert triplets.ids(-1) == triplets.ids(len(triplets) - 1)
    assert list(triplets[0]) == ["q_img", "t_img"]
    with pytest.raises(IndexError):
        triplets[len(triplets)]


def test_images_missing_from_the_join_are_named(folder):
    whole = load_triplets(str(folder))
    wanted = sorted(whole.ids(0)["hns"])
    kept = [i for i, name in enumerate(whole.images["image_id"]) if name not in wanted]
    lacking = Triplets(whole.dataset, whole.images.select(kept))
    assert lacking.missing() == wanted
    with pytest.raises(ArtifactError, match=r"6 images are missing from the images \('c000', .*and 1 more\)"):
        lacking[0]
    with pytest.raises(ArtifactError, match="6 images are missing"):
        lacking.check()
    with pytest.raises(ArtifactError, match="image 'c000' is missing"):
        lacking.image("c000")


def test_a_data_set_that_keeps_only_places_reads_the_images_there(folder, tmp_path):
    whole = load_triplets(str(folder))
    rows = []
    for row in whole.images:
        (tmp_path / f"{row['image_id']}.png").write_bytes(row["image"]["bytes"])
        rows.append({**row, "image": {"bytes": None, "path": f"{row['image_id']}.png"}})
    images = Dataset.from_list(rows).cast(whole.images.features)
    placed = Triplets(whole.dataset, images, root=str(tmp_path))
    assert placed[0]["t_img"].tobytes() == whole[0]["t_img"].tobytes()


def test_the_index_of_a_saved_data_set_is_not_put_into_its_folder(tmp_path):
    Dataset.from_dict({"image_id": ["a", "b"]}).save_to_disk(tmp_path / "mine")
    before = sorted(tmp_path.rglob("*"))
    index = IdIndex(Dataset.load_from_disk(tmp_path / "mine"))
    assert index.rows(["b", "a"]).tolist() == [1, 0]
    assert sorted(tmp_path.rglob("*")) == before
    assert index.path.parent == Path(datasets.config.HF_DATASETS_CACHE) / "megapairs-ids" and index.path.is_file()
