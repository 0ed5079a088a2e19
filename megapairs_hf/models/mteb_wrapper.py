"""An MMRet as a model of mteb, so that its tasks (MIEB among them) run with it.

mteb calls an encoder with a loader of batches whose columns are `text`, `image` or both, some of them empty. What
surprises: a document without words and without an image exists in some of its tasks; it gets the vector of a blank,
because mteb wants one row a document.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.core.dependencies import require

if TYPE_CHECKING:
    from collections.abc import Mapping

    from megapairs_hf.models.model import MMRet

BLANK = " "
COLUMNS = ("text", "image")


def mteb_model(
    model: MMRet, *, name: str = "local/mmret", revision: str = "local", prompts: Mapping[str, str] | None = None
) -> Any:
    """Wrap an MMRet for `mteb.evaluate`.

    Args:
        model: the MMRet.
        name: that the results are filed under, `owner/name`.
        revision: that the results are filed under.
        prompts: instructions by the names that mteb gives (`query`, a task, `task-query`,
            `task-document`, …), none for what is not named; None takes the model's.

    Returns:
        An encoder of mteb.

    Raises:
        MissingDependencyError: mteb is not installed.
    """
    require("mteb", "measuring with mteb")
    from mteb.models.abs_encoder import AbsEncoder, get_prompt_name
    from mteb.models.model_meta import ModelMeta
    from mteb.types import PromptType

    given = {key: prompt for key, prompt in (model.prompts if prompts is None else prompts).items() if prompt}

    class MtebMMRet(AbsEncoder):
        """An MMRet that speaks mteb."""

        def __init__(self) -> None:
            self.model, self.model_prompts = model, given
            width = model.truncate_dim or model.get_embedding_dimension()
            facts = {"name": name, "revision": revision, "modalities": list(COLUMNS), "embed_dim": width}
            self.mteb_model_meta = ModelMeta.create_empty(facts)

        def encode(
            self,
            inputs: Any,
            *,
            task_metadata: Any,
            hf_split: str,
            hf_subset: str,
            prompt_type: PromptType | None = None,
            **settings: Any,
        ) -> Any:
            """Embeddings ([N, D] float32) of everything that the loader gives."""
            import numpy as np

            known = self.model_prompts
            if prompt_type == PromptType.document:
                # a prompt that names no side is the query's
                known = {
                    key: prompt for key, prompt in known.items() if key.rpartition("-")[2] == PromptType.document.value
                }
            prompt = known.get(get_prompt_name(known, task_metadata, prompt_type) or "")
            if prompt is None and prompts is not None:
                prompt = ""  # None would be the model's own
            side = {PromptType.query: model.encode_query, PromptType.document: model.encode_document}
            encode = side.get(prompt_type, model.encode)
            made = [
                encode(_rows(batch), prompt=prompt, **{**settings, "show_progress_bar": False}) for batch in inputs
            ]
            return np.concatenate(made) if made else model.encode([])

    return MtebMMRet()


def _rows(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The inputs of a batch of columns; what is empty becomes a blank."""
    names = [name for name in COLUMNS if name in batch]
    rows = [dict(zip(names, row, strict=True)) for row in zip(*(batch[name] for name in names), strict=True)]
    return [row if row.get("image") is not None or row.get("text") else {"text": BLANK} for row in rows]
