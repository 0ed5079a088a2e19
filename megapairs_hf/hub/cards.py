"""Dataset and model cards from templates: the claims are the template's, the numbers are slots.

A card is refused rather than half filled: a slot without a value is a `CardError` that names it. What surprises: the
metadata of a card is a slot too (`card_data`), made by huggingface_hub, so that another template cannot spoil it.
Another template (`PushConfig.card`) starts with `{% extends "megapairs_hf/dataset.md.jinja" %}` and fills its blocks.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import CardError, MegaPairsError
from megapairs_hf.core.formatting import code_block, code_span, one_line, plain_words, printable_lines, table_cell
from megapairs_hf.core.shipped import card_templates
from megapairs_hf.dataset.layout import configs
from megapairs_hf.hub.card_context import common_slots, dataset_slots, model_slots, needed
from megapairs_hf.hub.eval_results import eval_results, model_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.artifacts.workspace import Work
    from megapairs_hf.hub.config import PushConfig

PREFIX = "megapairs_hf"
TAGS = ["megapairs", "composed-image-retrieval", "multimodal"]
LIBRARY = "sentence-transformers"


def dataset_card(work: PathLike, config: PushConfig, triplets: Artifact | None = None) -> str:
    """The card of a `triplets` artifact.

    Args:
        work: the work folder.
        config: repository, license, template.
        triplets: the artifact; None for the one of the work folder. Only what its manifest leads to is in the card.

    Returns:
        Markdown with YAML metadata, by which `load_dataset` knows the configs.

    Raises:
        CardError: there are no triplets, the license is not given, or a slot of the template has no value.
    """
    traced, triplets = needed(work, "triplets", "build", triplets)
    with _reading_manifests(traced.path):
        return _dataset_card(traced, config, triplets)


def _dataset_card(traced: Work, config: PushConfig, triplets: Artifact) -> str:
    slots = common_slots(traced, config) | dataset_slots(traced, triplets)
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        license=config.license,
        license_name=config.license_name,
        license_link=config.license_link,
        language=slots["languages"] or None,
        pretty_name=slots["name"],
        task_categories=["image-feature-extraction"],
        tags=[*TAGS, LIBRARY],
        # `datasets` keys its cache by this text, and rows that changed must not be read from it
        configs=configs({part: list(splits) for part, splits in slots["splits"].items()}, triplets.fingerprint),
    )
    return _render("dataset.md.jinja", slots | {"card_data": data.to_yaml()}, config)


def model_card(work: PathLike, config: PushConfig, model: Artifact | None = None) -> str:
    """The card of a `model` artifact.

    Args:
        work: the work folder.
        config: repository, license, template.
        model: the artifact; None for the one of the work folder. Only what its manifest leads to is in the card.

    Returns:
        Markdown with YAML metadata; results are in its `model-index`.

    Raises:
        CardError: there is no model, the license is not given, or a slot of the template has no value.
    """
    traced, model = needed(work, "model", "train", model)
    with _reading_manifests(traced.path):
        return _model_card(traced, config, model)


def _model_card(traced: Work, config: PushConfig, model: Artifact) -> str:
    slots = common_slots(traced, config) | model_slots(traced, model, config)
    from huggingface_hub import ModelCardData

    records = traced.results()
    results = eval_results([record for record in records if record["model"] == model_name(records)])
    data = ModelCardData(
        license=config.license,
        license_name=config.license_name,
        license_link=config.license_link,
        library_name=LIBRARY,
        pipeline_tag="feature-extraction",
        base_model=slots["base_model"] or None,
        datasets=list(config.datasets) or None,
        tags=[*TAGS, LIBRARY],
        model_name=slots["name"] if results else None,
        eval_results=results or None,
    )
    return _render("model.md.jinja", slots | {"card_data": data.to_yaml()}, config)


@contextmanager
def _reading_manifests(path: str) -> Iterator[None]:
    """Turn what fails on counts that are no numbers, in the manifest of a stranger, into one sentence."""
    try:
        yield
    except (MegaPairsError, MemoryError):
        raise
    except Exception as error:
        raise CardError(
            f"the card of {path} cannot be written ({type(error).__name__}: {one_line(error)}); a manifest holds"
            " another kind of value than this version writes: make the artifact again"
        ) from error


def render_part(name: str, slots: Mapping[str, Any]) -> str:
    """One of the package's own parts of a card, filled.

    Raises:
        CardError: a slot has no value.
    """
    return _filled(name, slots, None)


def _render(own: str, slots: dict[str, Any], config: PushConfig) -> str:
    return _filled(own, slots, config.card)


def _filled(own: str, slots: Mapping[str, Any], other: str | None) -> str:
    from jinja2 import (
        Environment,
        PackageLoader,
        PrefixLoader,
        StrictUndefined,
        TemplateError,
        UndefinedError,
    )

    class Slot(StrictUndefined):
        """One without a value: `if slot` may test it; printing it or walking through it is an error that names it."""

        def __bool__(self) -> bool:  # type: ignore[override]
            return False

    def filled(value: Any) -> Any:
        if _is_empty(value) and value != "":
            raise UndefinedError(f"a slot holds {value!r}, which is no value")
        return printable_lines(value) if isinstance(value, str) else value

    # Markdown, not HTML: what is escaped here would be read with its entities
    environment = Environment(  # noqa: S701
        loader=PrefixLoader({PREFIX: PackageLoader("megapairs_hf", "hub/templates")}),
        undefined=Slot,
        finalize=filled,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": table_cell, "words": plain_words, "code": code_span, "block": code_block}
    name = other or own
    try:
        if other is None:
            template = environment.get_template(f"{PREFIX}/{own}")
        else:
            path = card_templates().get(other, Path(other))
            template = environment.from_string(path.read_text(encoding="utf-8"))
        return template.render({slot: value for slot, value in slots.items() if not _is_empty(value)})
    except TemplateError as error:
        raise CardError(
            f"the card template {name} cannot be filled: {error.message}; correct it or its slots"
        ) from error
    except OSError as error:
        raise CardError(f"cannot read the card template {name}: {error.strerror}; check --card") from error


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple | dict) and not value)
