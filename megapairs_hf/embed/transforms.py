"""A model's picture transform, apart from the model: run where the picture is decoded, in a thread or another process.

transformers' Pillow processors turn a picture into arrays and back at every step. Where the processor is one of the
plain ones (CLIP, SigLIP, ViT, BiT as of DINOv2, …), its settings are read and the same resize and crop are done on the
decoded picture at once; the pixels stay bytes until they are on the model's device. What surprises: the result is not
close to the processor's, it is the same bytes, because both are Pillow's resize of the same picture (a JPEG decoded at
a smaller scale differs; how much is in docs/performance.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from megapairs_hf.images import Decoded

# a JPEG is decoded to at least so many times the pixels that the model's resize leaves; measured: docs/performance.md
DRAFT_FACTOR = 2
STEPS = (
    "process_image",
    "convert_to_rgb",
    "preprocess",
    "_preprocess",
    "resize",
    "center_crop",
    "rescale",
    "normalize",
)


class Transform(Protocol):
    """Turns a decoded picture into one model's array; can be pickled."""

    @property
    def draft_side(self) -> int | None:
        """Pixels that a decoded JPEG must keep on its shorter side; None where every pixel is needed."""

    def __call__(self, decoded: Decoded) -> np.ndarray:
        """The array of one picture."""


@dataclass(frozen=True)
class PlainTransform:
    """Resize and crop as transformers' plain processors do; rescaling and normalising are left to the device.

    Attributes:
        shortest: the shorter side after the resize; 0 where `size` is given.
        size: height and width after the resize.
        crop: height and width of the centre crop; None for no crop.
        resample: Pillow's number of the filter.
        scale: what a byte is multiplied by, one number a channel.
        shift: what is then added.
    """

    shortest: int
    size: tuple[int, int] | None
    crop: tuple[int, int] | None
    resample: int
    scale: tuple[float, ...]
    shift: tuple[float, ...]

    @property
    def draft_side(self) -> int:
        """Twice the longer side that is left of the picture."""
        return DRAFT_FACTOR * max(self.shortest, *(self.size or (0,)))

    def __call__(self, decoded: Decoded) -> np.ndarray:
        """Pixels, [H, W, 3] uint8."""
        height, width = self.size or resized(decoded.size, self.shortest)
        box = (0.0, 0.0, *decoded.extent)
        image = decoded.image
        if image.size != (width, height):
            image = image.resize((width, height), self.resample, box=box)
        if self.crop is not None and self.crop != (height, width):
            crop_height, crop_width = self.crop
            # Pillow pads a crop that reaches outside with zeros, as the processor does
            left, top = crop_start(width, crop_width), crop_start(height, crop_height)
            image = image.crop((left, top, left + crop_width, top + crop_height))
        return np.asarray(image)

    def pixels(self, batch: torch.Tensor, device: str, dtype: torch.dtype) -> torch.Tensor:
        """What the model takes (Tensor[B, 3, H, W]) of bytes (Tensor[B, H, W, 3])."""
        import torch

        moved = batch.to(device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32)
        scale, shift = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (self.scale, self.shift))
        return torch.addcmul(shift, moved, scale).to(dtype)


def resized(size: tuple[int, int], shortest: int) -> tuple[int, int]:
    """Height and width of a picture of `size` (width, height) whose shorter side becomes `shortest`."""
    width, height = size
    if width <= height:
        return int(shortest * height / width), shortest
    return shortest, int(shortest * width / height)


def crop_start(length: int, crop: int) -> int:
    """Where transformers begins a centre crop: rounded down inside the picture, padding rounded up outside it."""
    return (length - crop) // 2


@dataclass(frozen=True)
class ProcessorTransform:
    """Any other transformers processor, called as it is.

    Attributes:
        processor: the image processor.
    """

    processor: Any
    draft_side: int | None = None

    def __call__(self, decoded: Decoded) -> np.ndarray:
        """Pixels, [3, H, W] float32."""
        return np.asarray(self.processor(images=decoded.image, return_tensors="np")["pixel_values"][0])

    def pixels(self, batch: torch.Tensor, device: str, dtype: torch.dtype) -> torch.Tensor:
        """What the model takes."""
        return batch.to(device, dtype)


@dataclass(frozen=True)
class FunctionTransform:
    """A function from a picture to a tensor, such as open_clip's.

    Attributes:
        function: the function.
    """

    function: Callable[[Any], torch.Tensor]
    draft_side: int | None = None

    def __call__(self, decoded: Decoded) -> np.ndarray:
        """Pixels, [3, H, W] float32."""
        return self.function(decoded.image).numpy()


@dataclass(frozen=True)
class WholePicture:
    """The picture's own pixels, for models that prepare pictures themselves."""

    draft_side: int | None = None

    def __call__(self, decoded: Decoded) -> np.ndarray:
        """Pixels, [H, W, 3] uint8."""
        return np.asarray(decoded.image)


def read_transform(processor: Any) -> PlainTransform | ProcessorTransform:
    """The transform of a transformers image processor: plain where its class changes no step and its settings fit."""
    from transformers.image_processing_backends import PilBackend

    own = [name for name in STEPS if getattr(type(processor), name, None) is not getattr(PilBackend, name)]
    size, crop = processor.size, processor.crop_size
    simple = processor.do_resize and processor.do_rescale and not getattr(processor, "do_pad", None) and size
    if own or not simple:
        return ProcessorTransform(processor)
    shape = (int(size.height), int(size.width)) if size.height and size.width else None
    shortest = int(size.shortest_edge or 0)
    cropped = (int(crop.height), int(crop.width)) if processor.do_center_crop and crop else None
    if size.longest_edge or bool(shape) == bool(shortest) or not (shape or cropped):
        return ProcessorTransform(processor)
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    return PlainTransform(
        shortest=shortest,
        size=shape,
        crop=cropped,
        resample=int(processor.resample),
        scale=tuple(float(processor.rescale_factor) / float(s) for s in std),
        shift=tuple(-float(m) / float(s) for m, s in zip(mean, std, strict=True)),
    )
