"""What a recipe will take from the Hub: said before its first stage, with the size; or one sentence where it cannot.

What surprises: there is no falling back to other encoders. Which ones a run has is decided by its recipe, and not by
the network of its first minute.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.packaged_weights import is_packaged, package_of
from megapairs_hf.artifacts.storage import HUB_ID, exists, join
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import ModelError
from megapairs_hf.core.progress import note
from megapairs_hf.embedding.config import EmbedConfig
from megapairs_hf.training.align_config import AlignConfig
from megapairs_hf.training.config import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MANIFEST = "manifest.json"
# what transformers and Sentence Transformers read of a repository
FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class HubModel:
    """A model on the Hub.

    Attributes:
        name: its id.
        revision: None for `main`.
    """

    name: str
    revision: str | None = None

    def is_cached(self) -> bool:
        """Whether its configuration and weights are on this machine."""
        from huggingface_hub import try_to_load_from_cache

        cached = {
            file: isinstance(try_to_load_from_cache(self.name, file, revision=self.revision), str)
            for file in ("config.json", *WEIGHTS)
        }
        return cached["config.json"] and any(cached[file] for file in WEIGHTS)

    def download_bytes(self) -> int:
        """The size of what is downloaded of it, in bytes; asks the Hub."""
        from huggingface_hub import HfApi

        files = HfApi().model_info(self.name, revision=self.revision, files_metadata=True).siblings or []
        read = (file for file in files if any(fnmatch(file.rfilename, pattern) for pattern in FILES))
        # folders hold the same weights in other forms; of them, a pooling's settings are small
        return sum(file.size or 0 for file in read if "/" not in file.rfilename)


def announce_downloads(stages: Iterable[tuple[Any, str]]) -> None:
    """Say what the stages of a recipe will download, and how much; nothing where all is here.

    Args:
        stages: settings and output folder of each.

    Raises:
        ModelError: the Hub cannot be reached, and a model is not in the cache; or there is no such model.
        MissingDependencyError: a packaged encoder is not installed.
    """
    lacking = [model for model in dict.fromkeys(_hub_models(stages)) if not model.is_cached()]
    sizes = {model.name: _size(model, [each.name for each in lacking]) for model in lacking}
    if sizes:
        listed = ", ".join(f"{name} ({size / 1e6:,.0f} MB)" for name, size in sizes.items())
        note(
            f"downloads {sum(sizes.values()) / 1e6:,.0f} MB from the Hub, once: {listed}; licenses: their model cards"
        )


def _hub_models(stages: Iterable[tuple[Any, str]]) -> Iterator[HubModel]:
    """The models of the Hub that unfinished stages load by transformers."""
    for config, out in stages:
        if isinstance(config, EmbedConfig):
            for encoder in config.encoders:
                if encoder.library != "open_clip" and not exists(join(out, encoder.name, MANIFEST)):
                    yield from _on_hub(encoder.model, encoder.revision)
        elif not exists(join(out, MANIFEST)):
            if isinstance(config, AlignConfig):
                for tower in (config.image, config.text):
                    yield from _on_hub(tower.model, tower.revision)
            elif isinstance(config, TrainConfig):
                yield from _on_hub(config.model, config.revision)


def _on_hub(name: str, revision: str | None) -> Iterator[HubModel]:
    if is_packaged(name):
        # named before the first stage too, not after hours
        require("offline", f"the encoder {name}", package_of(name).module)
    elif HUB_ID.fullmatch(name) and not Path(name).exists():
        yield HubModel(name, revision)


def _size(model: HubModel, all_names: list[str]) -> int:
    """What is downloaded of a model, in bytes.

    Raises:
        ModelError: the Hub cannot be reached, or there is no such model.
    """
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return model.download_bytes()
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelError(
            f"there is no model {model.name} (revision {model.revision or 'main'}) on the Hub, or it needs a login;"
            " correct the recipe, or set HF_TOKEN"
        ) from error
    except (HTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0][:200].rstrip(".") or type(error).__name__
        raise ModelError(
            f"the Hub cannot be reached ({reason}), and {', '.join(all_names)} of this recipe would come from there;"
            " connect, or take `megapairs run offline`, whose encoders come from the package index"
            " (pip install 'megapairs-hf[offline]')"
        ) from error
