"""`push results`: what was measured goes into a model's repository that exists already.

It goes into the `model-index` of the card's metadata, the table between two marks of a card that we rendered, and
`.eval_results/*.yaml`, which the Hub shows on the page of the benchmark's data set. What surprises: a number that is
there with another value is replaced only with `overwrite`; the same number twice is one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from megapairs_hf.artifacts.storage import HUB_ID
from megapairs_hf.core.errors import HubError
from megapairs_hf.core.progress import note
from megapairs_hf.core.yaml_values import check_front_matter
from megapairs_hf.evaluation.comparability import caveats
from megapairs_hf.evaluation.metrics import metric_label
from megapairs_hf.evaluation.results_table import results_tables
from megapairs_hf.hub.cards import render_part
from megapairs_hf.hub.eval_results import (
    eval_results,
    of_wholes,
    percent,
    public_records,
    read_records,
    records_of_model,
    slug,
)
from megapairs_hf.hub.prepare import write_folder
from megapairs_hf.hub.retries import patient
from megapairs_hf.hub.upload_files import CARD

if TYPE_CHECKING:
    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.hub.config import PushConfig

FOLDER = ".eval_results"
BETWEEN = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def prepare_results(api: Any, path: PathLike, config: PushConfig, out: PathLike) -> list[str]:
    """Write the files that change in a model's repository.

    Args:
        api: of the Hub, to read the card that is there.
        path: folder or file of the records.
        config: repository, which model, the benchmarks' data sets on the Hub.
        out: the folder to prepare.

    Returns:
        Its files: the card and one file per benchmark, split and strategy.

    Raises:
        HubError: there are no records of the model, the repository has no card, or it has another value.
    """
    everything = read_records(path)
    records = [_with_dataset(record, config) for record in of_wholes(records_of_model(everything, config))]
    not_comparable = sorted({f"{r['benchmark']} ({'; '.join(caveats(r))})" for r in records if caveats(r)})
    if not_comparable:
        note(f"in the card only, since the Hub would rank them beside whole ones: {', '.join(not_comparable)}")
    unknown = sorted({str(record["benchmark"]) for record in records if "dataset" not in record})
    if unknown:
        note(
            f"{', '.join(unknown)}: in the card only; for the Hub's own results, name the benchmark's data set with"
            f" --benchmarks '{{{slug(unknown[0])}: ORGANIZATION/NAME}}'"
        )
    before, card = _card(api, config, records, everything)
    return write_folder({CARD: card.encode()} | eval_files(records), {}, out, {CARD: set(before.split("\n"))})


def _with_dataset(record: dict[str, Any], config: PushConfig) -> dict[str, Any]:
    """The record with the Hub id of its benchmark's data set, where it is known."""
    name = str(record["benchmark"])
    dataset = config.benchmarks.get(name) or config.benchmarks.get(slug(name)) or record.get("dataset")
    others = {key: value for key, value in record.items() if key != "dataset"}
    return {**others, "dataset": dataset} if isinstance(dataset, str) and HUB_ID.fullmatch(dataset) else others


def eval_files(records: list[dict[str, Any]]) -> dict[str, bytes]:
    """`.eval_results/*.yaml`: one file per benchmark, split and strategy, one entry per metric of the whole benchmark.

    The Hub ranks these values beside those of others, so a partial one, or one by another rule, is not among them.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    groups: dict[str, list[EvalResultEntry]] = {}
    for record in records:
        if "dataset" not in record or record.get("group") or caveats(record):
            continue
        split = str(record.get("split") or "")
        name = "-".join(filter(None, map(slug, (str(record["benchmark"]), split, str(record["strategy"])))))
        groups.setdefault(f"{FOLDER}/{name}.yaml", []).append(
            EvalResultEntry(
                dataset_id=record["dataset"],
                task_id="_".join(filter(None, [slug(split), slug(str(record["metric"]))])),
                value=percent(record["value"]),
                dataset_revision=record.get("dataset_revision") or None,
                date=str(record["date"]) if record.get("date") else None,
                notes=_notes(record),
            )
        )
    return {
        name: yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True).encode()
        for name, entries in groups.items()
    }


def _notes(record: dict[str, Any]) -> str:
    notes = [f"{metric_label(str(record['metric']))}, query made of {record['strategy']}"]
    if record.get("queries"):
        notes.append(f"{record['queries']} queries")
    if record.get("ci95"):
        low, high = record["ci95"]
        notes.append(f"95 % interval {100 * low:.1f} to {100 * high:.1f}")
    notes.append(f"megapairs-hf {record['version']}" if record.get("version") else "megapairs-hf")
    return "; ".join(notes)


def _card(
    api: Any, config: PushConfig, records: list[dict[str, Any]], everything: list[dict[str, Any]]
) -> tuple[str, str]:
    """The card as it is there, and with the results."""
    from huggingface_hub import ModelCard
    from huggingface_hub.errors import EntryNotFoundError

    revision = None if config.create_pr else config.revision
    try:
        path = patient(lambda: api.hf_hub_download(config.repo_id, CARD, revision=revision))
    except EntryNotFoundError as error:
        raise HubError(f"{config.repo_id} has no card to add results to; push the model first") from error
    try:
        # whoever wrote that card: ten lines of aliases that stand for billions of values are refused here
        check_front_matter(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise HubError(
            f"the card of {config.repo_id} cannot be read: {error}; correct it on its page first"
        ) from error
    card = ModelCard.load(path, ignore_metadata_errors=False)
    merged = {_key(one): one for one in card.data.eval_results or []}
    for new in eval_results(records):
        old = merged.get(_key(new))
        if old is not None and old.metric_value != new.metric_value and not config.overwrite:
            raise HubError(
                f"the card of {config.repo_id} has {new.metric_name} on {new.dataset_name} as {old.metric_value},"
                f" not {new.metric_value}; pass --overwrite to replace it"
            )
        merged[_key(new)] = new
    card.data.eval_results = list(merged.values())
    card.data.model_name = card.data.model_name or config.repo_id.rsplit("/", 1)[-1]
    tables = render_part("results.md.jinja", {"tables": results_tables(public_records(everything))})
    card.text = BETWEEN.sub(lambda match: f"{match[1]}{tables}{match[2]}", card.text)
    return Path(path).read_text(encoding="utf-8"), str(card.content)


def _key(one: Any) -> tuple[Any, ...]:
    return one.dataset_name, one.dataset_config, one.dataset_split, one.metric_type, one.metric_name
