"""What every encoder is: images or captions in, embeddings out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from megapairs_hf.embedding.config import ModelSettings
    from megapairs_hf.images.transforms import Transform


class Encoder(Protocol):
    """A loaded encoder."""

    batch_size: int
    # loads it in float32, for the inputs that are too much for a narrower number format; None where it is
    in_float32: Callable[[], Encoder] | None

    @property
    def transform(self) -> Transform | None:
        """What to do with an image where it is decoded; None for a model of captions."""

    # with a twin only where `encoders.SHARING` names the library
    def __init__(self, settings: ModelSettings, path: str, device: str, twin: Encoder | None = None) -> None: ...

    def encode_images(self, batch: Any) -> torch.Tensor:
        """Embeddings (Tensor[B, D]) of one batch of what the transform gave, not normalized."""

    def encode_captions(self, captions: Sequence[str]) -> torch.Tensor:
        """Embeddings (Tensor[N, D]) of any number of captions, not normalized."""
