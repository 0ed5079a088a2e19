"""How much a model of the Hub downloads, and under which license, before anything is fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megapairs_hf.artifacts.fingerprints import check_model_path
from megapairs_hf.core.errors import ModelError

WEIGHTS = (".safetensors", ".json", ".txt", ".model", ".jinja", ".py")
UNIT = 1_000_000


def describe_download(name: str, revision: str | None = None) -> str:
    """Size and license of a model, as a sentence; empty for a folder and for what lies in the cache.

    Args:
        name: a folder or a Hub id.
        revision: on the Hub.

    Raises:
        ModelError: the Hub cannot be reached and the model is not in the cache, or there is no such model or folder.
    """
    check_model_path(name)
    if Path(name).exists():
        return ""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        return ""
    try:
        facts = HfApi().model_info(name, revision=revision, files_metadata=True)
    except RepositoryNotFoundError as error:
        raise ModelError(f"there is no folder and no model {name!r} on the Hub; check the name") from error
    except (HfHubHTTPError, HTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise ModelError(
            f"cannot reach the Hub for {name} ({type(error).__name__}); go online once, or name a folder with a model"
        ) from error
    return f"{name}: {_size(facts.siblings or []) / UNIT:,.0f} MB to download, license {_license(facts)}"


def _size(files: list[Any]) -> int:
    """Bytes of what a library loads: other formats of the same weights are left where they are."""
    return sum(file.size or 0 for file in files if file.rfilename.endswith(WEIGHTS))


def _license(facts: Any) -> str:
    card = facts.card_data
    name = card.get("license") if card is not None else None
    return str(name) if name else "not stated"
