"""Cards: what they claim is in the manifests, and what is missing is asked for by name."""

import ast
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megapairs_hf.artifacts.artifact import open_artifact
from megapairs_hf.artifacts.workspace import Work
from megapairs_hf.core.errors import CardError, ConfigError
from megapairs_hf.core.formatting import plain_words
from megapairs_hf.dataset import import_megapairs
from megapairs_hf.hub.cards import dataset_card, model_card
from megapairs_hf.hub.config import PushConfig
from megapairs_hf.hub.secret_scan import public
from tests.making import draw, make_corpus, make_work, result_records

CARDS = Path(__file__).parents[2] / "model_cards"
GOOD = PushConfig("org/scenes", license="cc-by-4.0")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_work(tmp_path_factory.mktemp("cards") / "work")


def template(tmp_path, text):
    (tmp_path / "other.md.jinja").write_text(text)
    return PushConfig("org/scenes", license="cc-by-4.0", card=str(tmp_path / "other.md.jinja"))


def test_dataset_metadata_is_what_the_hub_reads(work):
    from huggingface_hub import DatasetCard

    data = DatasetCard(dataset_card(work, GOOD)).data
    assert data.license == "cc-by-4.0" and data.size_categories is None
    assert "composed-image-retrieval" in data.tags
    configs = data.to_dict()["configs"]
    assert [c["config_name"] for c in configs] == ["triplets", "images"] and configs[0]["default"] is True


def test_what_the_stages_warned_of_is_in_both_cards(work, tmp_path):
    from megapairs_hf.report.config import ReportConfig
    from megapairs_hf.report.page import render

    sentence = "the metadata columns <b>color</b> are used by nothing"
    assert all("Warnings of the stages" not in card(work, GOOD) for card in (dataset_card, model_card))
    shutil.copytree(work, tmp_path / "work")
    manifest = tmp_path / "work" / "triplets" / "manifest.json"
    record = json.loads(manifest.read_text())
    # twice the same is said once
    record["stats"]["warnings"] = [sentence, sentence]
    manifest.write_text(json.dumps(record))
    assert Work(str(tmp_path / "work")).warnings() == [sentence]
    card = dataset_card(tmp_path / "work", GOOD)
    assert "> **Warnings of the stages**" in card and card.count(f"> - {plain_words(sentence)}") == 1
    page = render(Work(str(tmp_path / "work")), ReportConfig())
    assert "the metadata columns &lt;b&gt;color&lt;/b&gt; are used by nothing" in page and "<b>color</b>" not in page


def test_the_facts_of_a_data_set_are_those_of_its_rows_and_stages(work, tmp_path):
    card = dataset_card(work, GOOD)
    # "make the ground darker", "the same on another ground", "change what is behind": 4, 5 and 4 words
    assert "An instruction has 4.3 words on average, a triplet 6.0 hard negatives" in card
    assert "| descriptions | none (rule-based, from the captions) | – | 0 | 0 | not recorded |" in card
    assert "license stated by the source" not in card
    shutil.copytree(work, tmp_path / "work")
    manifest = tmp_path / "work" / "instructions" / "manifest.json"
    record = json.loads(manifest.read_text())
    record["config"] |= {"engine": "tgi", "model": "/srv/models/llava-1.6"}
    record["stats"] |= {"tokens": {"prompt": 1200, "completion": 34}, "spend": 0.5}
    record["inputs"]["prompt"] = "0123456789abcdef"
    manifest.write_text(json.dumps(record))
    triplets = tmp_path / "work" / "triplets" / "manifest.json"
    record = json.loads(triplets.read_text())
    record["inputs"]["instructions"] = open_artifact(manifest.parent).fingerprint
    triplets.write_text(json.dumps(record))
    card = dataset_card(tmp_path / "work", GOOD)
    assert "| instructions | llava-1.6 | 0123456789abcdef | 1,200 | 34 | 0.5 |" in card


def test_licenses_are_those_of_the_sources_column_and_no_markdown(tmp_path):
    from megapairs_hf.hub.dataset_facts import dataset_facts

    work = make_work(tmp_path / "work")
    corpus = open_artifact(work / "corpus")
    name = "![x](http://evil/t.png) **b**"
    table = corpus.shard(0).append_column("meta", pa.array([{"License": name}] * corpus.rows))
    pq.write_table(table, corpus.shard_paths()[0])
    manifest = work / "corpus" / "manifest.json"
    record = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(record))
    assert dataset_facts(Work(str(work)), open_artifact(work / "triplets"))["licenses"] == {name: corpus.rows}
    assert rf"| !\[x\](http://evil/t.png) \*\*b\*\* | {corpus.rows} |" in dataset_card(work, GOOD)


def test_dataset_numbers_are_the_manifests(work):
    card = dataset_card(work, GOOD)
    assert "38 triplets of query image" in card and "| `triplets` (default) | validation | 8 |" in card
    assert "40 pairs were mined: 40 by clip_image, 14 by dino_image" in card
    assert "| pairs | no_neighbor_in_range | 32 |" in card
    assert "The descriptions and the instructions were written by rules from the captions" in card
    assert "The encoder dino_image takes the place of DINOv2." in card


def test_model_results_are_the_records(work):
    from huggingface_hub import ModelCard

    card = model_card(work, GOOD)
    data = ModelCard(card).data
    assert data.library_name == "sentence-transformers" and data.model_name == "scenes"
    told = {(r.metric_name, r.metric_value) for r in data.eval_results}
    shown = {"recall@1": "R@1", "recall@5": "R@5", "recall@10": "R@10", "map@5": "mAP@5"}
    assert told == {
        (f"{shown[r['metric']]} ({r['strategy']})", round(100 * r["value"], 4))
        for r in result_records()
        if r["model"] == "trained"
    }
    assert "| fused | base | 11.4 | 26.0 | 38.0 | 16.0 |" in card
    assert "| fused | trained | **25.7** | **45.0** | **56.0** | **33.0** |" in card


def test_a_model_without_results_says_so(work, tmp_path):
    shutil.copytree(work, tmp_path / "work")
    shutil.rmtree(tmp_path / "work" / "results")
    card = model_card(tmp_path / "work", GOOD)
    assert "This model was not evaluated" in card and "model-index" not in card


@pytest.mark.parametrize("make", [dataset_card, model_card])
def test_python_in_cards_is_python_and_names_the_repository(work, make):
    snippets = [part.split("```")[0] for part in make(work, GOOD).split("```python\n")[1:]]
    assert snippets and all(ast.parse(snippet) and "org/scenes" in snippet for snippet in snippets)


def test_the_flag_for_own_code_is_told_only_where_it_is_needed(work, tmp_path):
    shutil.copytree(work, tmp_path / "work")
    assert "trust_remote_code" not in model_card(work, GOOD)
    (tmp_path / "work" / "model" / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "m.M"}}))
    assert "trust_remote_code=True" in model_card(tmp_path / "work", GOOD)


@pytest.mark.parametrize("make", [dataset_card, model_card])
def test_the_license_is_never_guessed(work, make):
    with pytest.raises(CardError, match="--license"):
        make(work, PushConfig("org/scenes"))


def test_a_slot_without_a_value_is_named(work, tmp_path):
    with pytest.raises(CardError, match=r"other\.md\.jinja.*'accuracy' is undefined"):
        dataset_card(work, template(tmp_path, "---\n{{ card_data }}\n---\n{{ accuracy }}"))


@pytest.mark.parametrize("use", ["{{ base_model }}", "{% for x in datasets %}{% endfor %}", "{{ '%s' % base_model }}"])
def test_a_slot_that_is_empty_is_named(work, tmp_path, use):
    with pytest.raises(CardError, match=r"other\.md\.jinja.*'(base_model|datasets)' is undefined"):
        model_card(work, template(tmp_path, use))


def test_an_empty_slot_may_be_asked_for(work, tmp_path):
    assert model_card(work, template(tmp_path, "{% if base_model %}x{% else %}none{% endif %}")) == "none"


def test_a_value_inside_a_slot_that_is_empty_is_told(work, tmp_path):
    with pytest.raises(CardError, match="a slot holds None"):
        dataset_card(work, template(tmp_path, "{{ rejections[0][0] and none }}"))


def test_a_number_that_was_not_measured_is_named(work, tmp_path):
    own = '{% extends "megapairs_hf/model.md.jinja" %}{% block claims %}{{ value("CIRCO", "map@5") }}{% endblock %}'
    with pytest.raises(CardError, match="no result record has mAP@5 of 'trained', fused, on CIRCO"):
        model_card(work, template(tmp_path, own))


def test_a_number_that_was_measured_is_told(work, tmp_path):
    own = '{% extends "megapairs_hf/model.md.jinja" %}{% block claims %}<{{ value("Held-out scenes", "recall@1") }}>'
    assert "<25.7>" in model_card(work, template(tmp_path, own + "{% endblock %}"))


@pytest.mark.parametrize("text", ["{% extends 'nowhere' %}", "{% if %}"])
def test_a_broken_template_is_told(work, tmp_path, text):
    with pytest.raises(CardError, match="cannot be filled"):
        dataset_card(work, template(tmp_path, text))


def test_the_released_cards_can_be_filled(work, tmp_path):
    shutil.copytree(work, tmp_path / "work")
    records = [r | {"benchmark": "CIRCO", "split": "val"} for r in result_records()]
    (tmp_path / "work" / "results" / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    made = {"megapairs.md.jinja": dataset_card, "mmret-base.md.jinja": model_card}
    assert set(made) == {path.name for path in CARDS.glob("*.jinja")}
    for name, make in made.items():
        card = make(tmp_path / "work", PushConfig("org/scenes", license="mit", card=str(CARDS / name)))
        assert card.startswith("---\nl") and "Known limits" in card
    assert "on CIRCO (val) it reaches a mAP@5 of 33.0" in card


def test_what_is_not_made_yet_is_asked_for(tmp_path):
    make_corpus(tmp_path / "work", "corpus")
    with pytest.raises(CardError, match=r"triplets is not made yet in .*megapairs build"):
        dataset_card(tmp_path / "work", GOOD)
    with pytest.raises(CardError, match="holds no artifact"):
        model_card(tmp_path, GOOD)


def test_no_folder_or_server_of_this_machine_reaches_a_card(work, tmp_path):
    shutil.copytree(work, tmp_path / "work")
    secret = {"folder": "/srv/me/data/set", "base_url": "http://10.0.0.7:8000/v1", "nested": {"home": "~/x/y"}}
    manifest = tmp_path / "work" / "pairs" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"config": secret}))
    card = dataset_card(tmp_path / "work", GOOD)
    assert "/srv" not in card and "10.0.0.7" not in card and "~/" not in card and "folder: set" in card


def test_a_card_tells_the_given_artifact_and_only_what_it_was_made_of(work, tmp_path):
    shutil.copytree(work, tmp_path / "work")
    image = tmp_path / "images" / "a.png"
    image.parent.mkdir()
    draw("teal", "star", "white").save(image)
    draw("teal", "circle", "white").save(image.with_name("b.png"))
    (tmp_path / "lines.jsonl").write_text('{"q_img": "a.png", "q_text": "x", "t_img": "b.png", "hns": ["a.png"]}\n')
    for out, overwrite in ((tmp_path / "work" / "mine", False), (tmp_path / "work" / "triplets", True)):
        theirs = import_megapairs(tmp_path / "lines.jsonl", image.parent, out=out, overwrite=overwrite)
        card = dataset_card(tmp_path / "work", GOOD, triplets=theirs)
        assert "1 triplets of query image" in card and "validation" not in card
        for invented in (
            "mined from",
            "were mined",
            "got instructions",
            "The images were drawn",
            "similarity_range",
            "takes the place of",
        ):
            assert invented not in card
        assert "| descriptions |" not in card
    # the model of this folder was trained on the triplets that are no longer there
    assert "trained on 38" not in model_card(tmp_path / "work", GOOD)


def test_a_card_tells_its_artifact_to_the_cache_of_datasets(work):
    from huggingface_hub import DatasetCard

    configs = DatasetCard(dataset_card(work, GOOD)).data.to_dict()["configs"]
    assert {one["description"] for one in configs} == {open_artifact(work / "triplets").fingerprint}


def test_public_keeps_what_is_no_path():
    assert public({"model": "org/name", "lr": 5e-6, "list": ["./a/b", "c/d"]}) == {
        "model": "org/name",
        "lr": 5e-6,
        "list": ["b", "c/d"],
    }


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"repo_id": " "}, "repo_id"),
        ({"repo_id": "scenes"}, "repo_id"),
        ({"repo_id": 'bad name/a"); import os #'}, "repo_id"),
        ({"repo_id": "org/a/b"}, "repo_id"),
        ({"license": "My License"}, "license"),
        ({"create_pr": True, "revision": "v2"}, "revision"),
        ({"datasets": ("here",)}, "datasets"),
        ({"benchmarks": {"CIRCO": "/data/circo"}}, "benchmarks"),
    ],
)
def test_settings_that_the_hub_would_refuse_name_the_field(wrong, field):
    with pytest.raises(ConfigError, match=f"`{field}`"):
        PushConfig(**({"repo_id": "org/scenes"} | wrong))
