"""The exceptions of the package, one tree, so that a caller can catch as much or as little as it wants.

    MegaPairsError
      ├─ ConfigError              a setting that is unknown, missing or out of range
      ├─ ArtifactError            a folder of results that cannot be read or written
      │    ├─ SchemaMismatchError     it holds another kind of thing, or other columns
      │    ├─ StaleArtifactError      it was made with other settings or inputs
      │    └─ IncompleteArtifactError it was begun and not finished
      ├─ CorpusError              a source of images that cannot be used
      │    └─ ImageRejectedError      one image that cannot be used, with its reason
      ├─ AnnotationError          descriptions and instructions
      │    ├─ ServerUnavailableError  the endpoint does not respond, or responds with a failure
      │    ├─ BudgetSpentError        the run may ask no more; responses so far are kept
      │    ├─ UselessResponsesError   most of the first responses are of no use; they are kept
      │    └─ ResponseRejectedError   a response that was understood and is no use
      │         └─ ResponseParseError     a response that was not understood
      ├─ ModelError               a model that cannot be loaded, built or given this input
      ├─ TrainingError            a run that cannot start or continue
      ├─ EvaluationError          a measurement that would not mean what its name says
      ├─ CardError                a model or dataset card with an empty slot
      ├─ HubError                 a push that cannot be made
      ├─ RejectedError            base of the errors about one image or one response, with reason and detail
      └─ MissingDependencyError   an extra that is not installed (also an ImportError)

Every message is one sentence that says what to do next; the command line prints it and exits with status 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class MegaPairsError(Exception):
    """Base of every error that the package raises on purpose."""


class ConfigError(MegaPairsError):
    """A setting is unknown, missing or out of range."""


class ArtifactError(MegaPairsError):
    """An artifact folder cannot be read or written."""


class SchemaMismatchError(ArtifactError):
    """An artifact is of another kind, or lacks a column."""


class StaleArtifactError(ArtifactError):
    """An artifact was made with other settings or inputs than those asked for now.

    Attributes:
        difference: the dotted name of the first difference, such as `inputs.corpus` or `config.seed`.
    """

    def __init__(self, message: str, difference: str = "") -> None:
        super().__init__(message)
        self.difference = difference


class IncompleteArtifactError(ArtifactError):
    """An artifact was begun and not finished."""


class CorpusError(MegaPairsError):
    """A source of images cannot be used."""


class RejectedError(MegaPairsError):
    """One item cannot be used.

    Attributes:
        reason: a short word for counting (`truncated`, `too_many_pixels`, …).
        detail: what exactly was wrong.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class ImageRejectedError(CorpusError, RejectedError):
    """One image cannot be used."""


class AnnotationError(MegaPairsError):
    """Descriptions or instructions cannot be made."""


class ServerUnavailableError(AnnotationError):
    """The endpoint does not respond, or refuses every request."""


class BudgetSpentError(AnnotationError):
    """The requests, tokens, money or hours that a run may use are used up."""


class UselessResponsesError(AnnotationError):
    """Most of the first responses of a run are of no use, so that the others would be too."""


class ResponseRejectedError(AnnotationError, RejectedError):
    """A response was understood but cannot be used."""


class ResponseParseError(ResponseRejectedError):
    """A response does not have the requested form."""


class ModelError(MegaPairsError):
    """A model cannot be loaded, built, or given this input."""


class TrainingError(MegaPairsError):
    """A training run cannot start or continue."""


class EvaluationError(MegaPairsError):
    """A measurement would not mean what its name says."""


class CardError(MegaPairsError):
    """A card has a slot without a value."""


class HubError(MegaPairsError):
    """Something cannot be pushed to the Hub."""


class MissingDependencyError(MegaPairsError, ImportError):
    """An optional dependency is not installed.

    Attributes:
        extra: the extra that brings it.
    """

    def __init__(self, purpose: str, packages: Sequence[str], extra: str) -> None:
        *first, last = packages
        named = f"{', '.join(first)} and {last}, which are" if first else f"{last}, which is"
        super().__init__(f"{purpose} needs {named} not installed; pip install 'megapairs-hf[{extra}]'")
        self.extra = extra
