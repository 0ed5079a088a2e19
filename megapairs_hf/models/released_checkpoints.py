"""The authors' released checkpoints: recognized by their layout, loaded through transformers' own classes.

BGE-VL-base and -large (once MMRet-base and -large) are plain CLIPs whose config names a copy of CLIP's code from
transformers 4.45; BGE-VL-MLLM-S1 and -S2 are LLaVA-NeXT with code that returns hidden states. Their code is never
executed: the weights are all that is needed. What surprises: newer revisions carry a Sentence Transformers
`modules.json` that names a class of its own, which would need trust; it is passed over in favor of the weights.
"""

from __future__ import annotations

import json
from pathlib import Path

from megapairs_hf.core.errors import ModelError

STOCK = "sentence_transformers."
# what the authors' weights are called on the Hub
PUBLISHED = ("BAAI/BGE-VL-base", "BAAI/BGE-VL-large", "BAAI/BGE-VL-MLLM-S1", "BAAI/BGE-VL-MLLM-S2")
# from the checkpoints' names (LLaVA-NeXT of transformers 4.45) to those of the model without its head
LLAVA_KEYS = {
    r"^language_model\.model\.": "language_model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^vision_tower\.vision_model\.": "vision_tower.",
}


def key_mapping(model_type: str) -> dict[str, str]:
    """How the names of a checkpoint's weights become the model's; empty where they are the same."""
    return dict(LLAVA_KEYS) if model_type == "llava_next" else {}


def check_name(name: str) -> None:
    """Refuse a bare name that is no folder here, since no repository of the Hub can have it.

    Raises:
        ModelError: it is one.
    """
    if "/" not in name and not Path(name).exists():
        raise ModelError(
            f"there is no folder {name!r} here, and on the Hub a model has its owner's name before its own"
            f" (you/{name}); the weights published today are {', '.join(PUBLISHED)}"
        )


def has_stock_modules(path: str, revision: str | None) -> bool:
    """Whether a folder or repository is a Sentence Transformers model made of stock modules alone.

    Args:
        path: folder or Hub id.
        revision: revision on the Hub.

    Raises:
        ModelError: its list of modules is none.
    """
    file = find_file(path, "modules.json", revision)
    if file is None:
        return False
    modules = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(modules, list) or not modules or not all(isinstance(m, dict) and "type" in m for m in modules):
        raise ModelError(f"modules.json of {path} is no list of modules with a `type` each; save the model again")
    return all(str(module["type"]).startswith(STOCK) for module in modules)


def find_file(path: str, name: str, revision: str | None) -> Path | None:
    """A file of a folder or of a repository on the Hub; None where it has none of this name."""
    if Path(path).is_dir():
        file = Path(path) / name
        return file if file.is_file() else None
    from transformers.utils import cached_file

    cached = cached_file(path, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return None if cached is None else Path(cached)
