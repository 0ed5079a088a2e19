"""Instructions, pairs and images joined to triplets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import ArtifactError, ConfigError
from megapairs_hf.core.progress import note
from megapairs_hf.dataset.split import divide, validation_side

if TYPE_CHECKING:
    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.writer import Rejection
    from megapairs_hf.dataset.config import BuildConfig


def join_rows(
    instructions: Artifact, pairs: Artifact, config: BuildConfig
) -> tuple[dict[str, list[dict[str, Any]]], list[Rejection], dict[str, Any]]:
    """Triplets of both sides, rejections, and counts."""
    texts = fitting_texts(instructions, config.min_fit)
    known = set(zip(*(pairs.table(["query_id", "target_id"])[name].to_pylist() for name in ("query_id", "target_id")),
                    strict=True))  # fmt: skip
    if texts.keys() - known:
        raise ArtifactError("the instructions were made of other pairs; run `megapairs describe` and `instruct` again")
    mined = [row for row in pairs.table().to_pylist() if (row["query_id"], row["target_id"]) in texts]
    validation = validation_side(
        [row["query_id"] for row in mined], [row["target_id"] for row in mined], config.validation, config.seed
    )
    sides, rejected, stats = divide(mined, texts, validation, config)
    if validation and not sides["validation"]:
        note(
            f"build: no triplet lies among the {len(validation):,} images that `validation` {config.validation:g}"
            " asks for, so all are for training; raise it, or make more pairs"
        )
        sides, rejected, stats = divide(mined, texts, set(), config)
    return sides, rejected, stats


def fitting_texts(instructions: Artifact, min_fit: float) -> dict[tuple[str, str], list[str]]:
    """The instructions of each pair whose verdict is good enough; those without a verdict stay.

    Raises:
        ConfigError: there is a threshold but no verdict.
    """
    columns = ["query_id", "target_id", "instructions"]
    if min_fit == 0:
        rows = instructions.table(columns).to_pylist()
        return {(row["query_id"], row["target_id"]): row["instructions"] for row in rows}
    if instructions.manifest.shards and "fits" not in instructions.shard(0).column_names:
        raise ConfigError(f"`min_fit` is {min_fit:g}, but the instructions have no verdicts; run `megapairs verify`")
    kept = {}
    for row in instructions.table([*columns, "fits"]).to_pylist():
        both = zip(row["instructions"], row["fits"], strict=True)
        kept[row["query_id"], row["target_id"]] = [text for text, fit in both if fit is None or fit >= min_fit]
    return kept


def text_bytes(row: dict[str, Any]) -> int:
    """About how large a triplet is, uncompressed and in bytes."""
    words = [row["q_img"], row["t_img"], *row["q_text"], *row["hns"], *row["relation"]]
    return sum(len(word.encode()) + 4 for word in words) + 24 * len(row["scores"])
