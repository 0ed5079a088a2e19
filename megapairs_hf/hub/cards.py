"""Dataset and model cards from templates: the claims are the template's, the numbers are slots.

A card is refused rather than half filled: a slot without a value is a `CardError` that names it. What surprises: the
metadata of a card is a slot too (`card_data`), made by huggingface_hub, so that another template cannot spoil it.
Another template (`PushConfig.card`) starts with `{% extends "megapairs_hf/dataset.md.jinja" %}` and fills its blocks.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.errors import CardError
from megapairs_hf.hub.facts import (
    common_slots,
    dataset_slots,
    model_name,
    model_slots,
    needed,
    size_category,
    splits_of,
)

if TYPE_CHECKING:
    from megapairs_hf.hub.config import PushConfig
    from megapairs_hf.storage import PathLike

PREFIX = "megapairs_hf"
TAGS = ["megapairs", "composed-image-retrieval", "multimodal"]
LIBRARY = "sentence-transformers"


def dataset_card(work: PathLike, config: PushConfig) -> str:
    """The card of a `triplets` artifact.

    Args:
        work: the work folder.
        config: repository, licence, template.

    Returns:
        Markdown with YAML metadata, by which `load_dataset` knows the configs.

    Raises:
        CardError: there are no triplets, the licence is not given, or a slot of the template has no value.
    """
    opened, triplets = needed(work, "triplets", "build")
    slots = common_slots(opened, config) | dataset_slots(opened, triplets)
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        license=config.licence,
        pretty_name=slots["name"],
        task_categories=["image-feature-extraction"],
        size_categories=[size_category(slots["triplets"])],
        tags=[*TAGS, LIBRARY],
        configs=[
            {
                "config_name": part,
                **({"default": True} if part == "triplets" else {}),
                "data_files": [{"split": split, "path": f"{part}/{split}-*"} for split in splits],
            }
            for part, splits in splits_of(triplets).items()
        ],
    )
    return _render("dataset.md.jinja", slots | {"card_data": data.to_yaml()}, config)


def model_card(work: PathLike, config: PushConfig) -> str:
    """The card of a `model` artifact.

    Args:
        work: the work folder.
        config: repository, licence, template.

    Returns:
        Markdown with YAML metadata; what was measured stands in its `model-index`.

    Raises:
        CardError: there is no model, the licence is not given, or a slot of the template has no value.
    """
    opened, model = needed(work, "model", "train")
    slots = common_slots(opened, config) | model_slots(opened, model)
    from huggingface_hub import ModelCardData

    results = _eval_results(opened.results())
    data = ModelCardData(
        license=config.licence,
        library_name=LIBRARY,
        pipeline_tag="feature-extraction",
        base_model=slots["base_model"] or None,
        tags=[*TAGS, LIBRARY],
        model_name=slots["name"] if results else None,
        eval_results=results or None,
    )
    return _render("model.md.jinja", slots | {"card_data": data.to_yaml()}, config)


def _eval_results(records: list[dict[str, Any]]) -> list[Any]:
    """The pushed model's own records, whatever the strategy; the untrained model's are in the table only."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="information-retrieval",
            task_name="Composed image retrieval",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", str(record["benchmark"]).lower()).strip("-"),
            dataset_name=str(record["benchmark"]),
            dataset_split=record.get("split") or None,
            metric_type=str(record["metric"]),
            metric_name=f"{record['metric']} ({record['strategy']})",
            metric_value=record["value"],
            metric_args={key: record[key] for key in ("queries", "gallery", "options") if record.get(key)} or None,
        )
        for record in records
        if record["model"] == model_name(records)
    ]


def _render(own: str, slots: dict[str, Any], config: PushConfig) -> str:
    from jinja2 import Environment, PackageLoader, PrefixLoader, StrictUndefined, TemplateError

    # Markdown, not HTML: what is escaped here would be read with its entities
    environment = Environment(  # noqa: S701
        loader=PrefixLoader({PREFIX: PackageLoader("megapairs_hf", "hub/templates")}),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    told = config.card or own
    try:
        if config.card is None:
            template = environment.get_template(f"{PREFIX}/{own}")
        else:
            template = environment.from_string(Path(config.card).read_text(encoding="utf-8"))
        return template.render(slots)
    except TemplateError as error:
        raise CardError(
            f"the card template {told} cannot be filled: {error.message}; correct it or its slots"
        ) from error
    except OSError as error:
        raise CardError(f"cannot read the card template {told}: {error.strerror}; check --card") from error
