import json

import pytest

from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.dataset.sheet import datasheet, rendered, statistics
from tests.making import make_work


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_work(tmp_path_factory.mktemp("sheet") / "work")


def test_the_statistics_are_those_of_the_rows(work):
    told = statistics(work)
    assert told["triplets"] == {"train": 30, "validation": 8}
    # every third of 38 pairs has both relations
    assert told["relations"] == {"clip_image": 38, "dino_image": 13}
    # "make the ground darker", "the same on another ground", "change what is behind": 4, 5 and 4 words
    assert told["words_per_instruction"]["counts"] == {"4": 76, "5": 38}
    assert told["words_per_instruction"]["mean"] == pytest.approx(13 / 3)
    assert told["similarity"]["clip_image"] == [{"from": 0.9, "to": 0.92, "triplets": 38}]
    assert {"stage": "pairs", "reason": "no_neighbor_in_range", "rows": 32} in told["rejected"]
    json.dumps(told)


def test_what_no_manifest_records_is_said_to_be_unknown_and_no_folder_is_told(work):
    text = datasheet(work)
    assert "Licenses of the images: not recorded." in text
    assert "| descriptions | none (written from the captions) |" in text
    assert str(work) not in text
    assert "None" not in text


def test_a_data_sheet_needs_triplets(tmp_path):
    (tmp_path / "corpus").mkdir()
    with pytest.raises(ArtifactError, match="holds no artifact"):
        datasheet(tmp_path)


def test_a_license_of_the_source_is_a_text_and_no_markdown(tmp_path):
    work = make_work(tmp_path / "work")
    told = statistics(work) | {"relations": {"![x](http://evil/t.png) **b** | `c`": 3}}
    text = rendered(told)
    assert r"| !\[x\](http://evil/t.png) \*\*b\*\* \| \`c\` | 3 |" in text
