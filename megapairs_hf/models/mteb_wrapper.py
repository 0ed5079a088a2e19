"""An MMRet as a model of mteb, so that its tasks (MIEB among them) run with it.

mteb's own wrapper of Sentence Transformers does the work. What surprises: some of its documents have neither words nor
image; they get the embedding of a blank, because mteb wants one row per document.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.core.dependencies import require

if TYPE_CHECKING:
    from megapairs_hf.models.model import MMRet

BLANK = {"text": " "}


def mteb_model(model: MMRet, *, name: str = "local/mmret", revision: str = "local") -> Any:
    """Wrap an MMRet for `mteb.evaluate`; prompts are those of `model.prompts`, by mteb's names.

    Args:
        model: the MMRet.
        name: that the results are filed under, `owner/name`.
        revision: that the results are filed under.

    Returns:
        An encoder of mteb.

    Raises:
        MissingDependencyError: mteb is not installed.
    """
    require("mteb", "measuring with mteb")
    from mteb.models.model_meta import ModelMeta
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper

    wrapper: Any = SentenceTransformerEncoderWrapper(model)
    width = model.truncate_dim or model.get_embedding_dimension()
    wrapper.mteb_model_meta = ModelMeta.create_empty(
        {"name": name, "revision": revision, "modalities": ["text", "image"], "embed_dim": width}
    )
    wrapper.model = BlankFilled(model)
    return wrapper


class BlankFilled:
    """An MMRet that embeds an empty row as a blank."""

    def __init__(self, model: MMRet) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self.model, name)
        if not name.startswith("encode"):
            return attribute
        return lambda rows, **settings: attribute([row if _has_content(row) else BLANK for row in rows], **settings)


def _has_content(row: Any) -> bool:
    return bool(row.get("text")) or row.get("image") is not None if isinstance(row, dict) else bool(row)
