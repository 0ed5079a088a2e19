"""Result records as cards tell them: percent, one spelling, the right model; and what is no record, named."""

import json

import pytest
import yaml

from megapairs_hf.core.errors import ArtifactError, HubError, IncompleteArtifactError
from megapairs_hf.hub.config import PushConfig
from megapairs_hf.hub.eval_results import eval_results, public_records, read_records, records_of_model
from megapairs_hf.hub.push_results import eval_files

SHARE = {"benchmark": "circo", "split": "val", "metric": "map@5", "value": 0.343, "model": "m", "strategy": "fused"}
SHARE |= {"unit": "fraction"}
RECORD = SHARE | {
    "ci95": [0.301, 0.385],
    "queries": 220,
    "ties": 0,
    "options": {"queries": "edits", "max_queries": None},
    "version": "0.1.0",
    "date": "2026-11-21",
    "revision": None,
    "something": "new",
}


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("unit", [None, "percent"])
def test_a_record_that_holds_no_fraction_is_refused(tmp_path, unit):
    with pytest.raises(HubError, match=f"line 1 has the unit {unit!r}, not 'fraction'; run the evaluation again"):
        read_records(write(tmp_path / "results.jsonl", [SHARE | {"unit": unit, "value": 34.3}]))


def test_no_option_hides_the_number_of_queries():
    told = public_records([RECORD])[0]
    assert told["queries"] == 220 and told["options"] == {"queries by": "edits"}


def test_an_entry_of_the_hub_reads_back_with_huggingface_hub():
    from huggingface_hub import parse_eval_result_entries

    recall = {**RECORD, "metric": "recall@1", "value": 0.2}
    records = [r | {"dataset": "org/circo"} for r in (RECORD, recall)]
    files = eval_files([*records, {**RECORD, "benchmark": "mine"}])
    assert list(files) == [".eval_results/circo-val-fused.yaml"]
    entries = parse_eval_result_entries(yaml.safe_load(files[".eval_results/circo-val-fused.yaml"]))
    assert [(e.dataset_id, e.task_id, e.value, e.date) for e in entries] == [
        ("org/circo", "val_map-5", 34.3, "2026-11-21"),
        ("org/circo", "val_recall-1", 20.0, "2026-11-21"),
    ]
    assert "95 % interval 30.1 to 38.5" in entries[0].notes and "220 queries" in entries[0].notes


def test_an_entry_of_the_card_survives_its_metadata():
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(model_name="m", eval_results=eval_results([RECORD]))
    back = ModelCard(f"---\n{data.to_yaml()}\n---\n# M\n").data.eval_results[0]
    assert (back.metric_name, back.metric_type, back.metric_value) == ("mAP@5 (fused)", "map_at_5", 34.3)
    assert back.metric_args["ci95"] == [30.1, 38.5]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r"results\.jsonl line 1 is not JSON"),
        ("[]", "is no JSON object"),
        ("{}", "has no `benchmark`"),
        (json.dumps({**SHARE, "model": ""}), "has no `model`"),
        (json.dumps({**SHARE, "metric": ["a"]}), "has no `metric`"),
        (json.dumps({**SHARE, "value": "high"}), "has the value 'high', which is no number"),
        (json.dumps({**SHARE, "value": float("nan")}), "has the value nan"),
        ("", "is empty; run `megapairs eval` first"),
    ],
)
def test_what_is_no_record_is_named(tmp_path, line, said):
    (tmp_path / "results.jsonl").write_text(line + "\n")
    with pytest.raises((ArtifactError, HubError), match=said):
        read_records(tmp_path)


def test_no_results_and_unfinished_results_are_told(tmp_path):
    with pytest.raises(ArtifactError, match=r"holds no results\.jsonl"):
        read_records(tmp_path)
    (tmp_path / ".plan.json").write_text("{}")
    with pytest.raises(IncompleteArtifactError, match="not finished"):
        read_records(write(tmp_path / "results.jsonl", [SHARE]).parent)


def test_which_model_is_asked_for_where_several_were_measured():
    records = [SHARE | {"model": name} for name in ("one", "two", "base")]
    with pytest.raises(HubError, match=r"called 'trained'; name one of base, one, two with --model"):
        records_of_model(records, PushConfig("org/m"))
    assert records_of_model(records, PushConfig("org/m", model="two")) == [records[1]]
    assert records_of_model(records[1:], PushConfig("org/m")) == [records[1]]
