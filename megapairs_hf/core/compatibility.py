"""Pairs of packages that are known to break each other, found before a model is loaded instead of in the middle.

The next such pair is one more line of `BROKEN`. What surprises: pip cannot prevent this one, since neither package
depends on the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.specifiers import SpecifierSet

from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import ModelError

ADAPTERS = "adapters"


@dataclass(frozen=True)
class Pair:
    """Two packages that do not work together.

    Attributes:
        purpose: what fails with them.
        first: package and the versions of it that fail.
        second: package and the versions of it that fail with those.
        needs: what would work in place of the second.
        install: what to give to pip, of that which exists.
    """

    purpose: str
    first: tuple[str, str]
    second: tuple[str, str]
    needs: str
    install: str

    def sentence(self) -> str | None:
        """What is wrong with the versions that are installed; None where nothing is."""
        versions = [installed_version(name) for name, _ in (self.first, self.second)]
        for installed, (_, failing) in zip(versions, (self.first, self.second), strict=True):
            if installed is None or not SpecifierSet(failing).contains(installed, prereleases=True):
                return None
        return (
            f"{self.first[0]} {versions[0]} does not work with {self.second[0]} {versions[1]}"
            f" ({self.purpose} need {self.needs}); pip install '{self.install}'"
        )


BROKEN = (
    # "The version of PEFT you are using is not compatible"; 0.21.2 is the newest peft there is
    Pair(ADAPTERS, ("transformers", ">=5.24"), ("peft", "<0.22"), "peft >= 0.22", "transformers<5.24"),
)


def installed_version(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def broken(purpose: str) -> str | None:
    """The first sentence about installed packages that break something; None where none do."""
    sentences = (pair.sentence() for pair in BROKEN if pair.purpose == purpose)
    return next((sentence for sentence in sentences if sentence), None)


def require_adapters(purpose: str) -> None:
    """Refuse adapters that could not be put on a model, before it is loaded.

    Args:
        purpose: what needs them, as the sentence begins.

    Raises:
        MissingDependencyError: peft is not installed.
        ModelError: the installed peft and transformers break each other.
    """
    require("models", purpose, "peft")
    sentence = broken(ADAPTERS)
    if sentence:
        raise ModelError(sentence)


def check_adapter_of(path: str, revision: str | None = None) -> None:
    """Refuse a model that is an adapter on another, where adapters do not work.

    Args:
        path: folder or Hub id.
        revision: on the Hub.

    Raises:
        ModelError: it is one, and the installed peft and transformers break each other.
    """
    # where adapters work nothing is looked up, on the Hub least of all
    sentence = broken(ADAPTERS)
    if sentence is None:
        return
    from transformers.utils.peft_utils import find_adapter_config_file

    if find_adapter_config_file(path, revision=revision) is not None:
        raise ModelError(sentence)


def pad_with_end_token(tokenizer: Any, path: str) -> None:
    """Let a tokenizer without a pad token pad with its end token, which the attention mask hides.

    Without one the first batch of two texts of different length would end in the tokenizer's own error.

    Args:
        tokenizer: of transformers; None, or of another library, which pads by itself or not at all.
        path: folder or Hub id of the model, for the error.

    Raises:
        ModelError: it has neither.
    """
    from transformers import PreTrainedTokenizerBase

    if not isinstance(tokenizer, PreTrainedTokenizerBase) or tokenizer.pad_token_id is not None:
        return
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {path} has neither a pad token nor an end token, so texts of different length make no"
            " batch; set pad_token in its tokenizer_config.json"
        )
    tokenizer.pad_token = tokenizer.eos_token


def forget_last_batch(tokenizer: Any) -> None:
    """Let a tokenizer forget how its last batch was padded and cut, which it would write into its file.

    A run that was killed when all was done but the saving has had no batch, and must write the same file.

    Args:
        tokenizer: of transformers; one without a backend in Rust remembers nothing.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_padding()
        backend.no_truncation()
