"""A model's image transform, apart from the model: run where the image is decoded, in a thread or another process.

transformers' Pillow processors turn an image into arrays and back at every step. Where the processor is one of the
plain ones (CLIP, SigLIP, ViT, BiT as of DINOv2, …), its settings are read and the same resize and crop are done on the
decoded image at once; the pixels stay bytes until they are on the model's device. What surprises: the resize is
torch's and not Pillow's. It is three times as fast, and its bytes differ by one here and there; what that does to the
embeddings is in docs/performance.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from megapairs_hf.images.decode import Decoded

# a JPEG keeps at least so many times the pixels, side by side, that the model's resize leaves: docs/performance.md
DRAFT_FACTOR = 1.5
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


# Pillow's numbers of the filters that torch has for bytes
FILTERS = {2: "_upsample_bilinear2d_aa", 3: "_upsample_bicubic2d_aa"}


class Transform(Protocol):
    """Turns a decoded image into one model's array; can be pickled."""

    @property
    def draft_side(self) -> int | None:
        """Pixels that a decoded JPEG must keep on its shorter side; None where every pixel is needed."""

    def __call__(self, decoded: Decoded) -> np.ndarray:
        """The array of one image."""


@dataclass(frozen=True)
class PlainTransform:
    """Resize and crop as transformers' plain processors do; rescaling and normalizing are left to the device.

    Attributes:
        shortest: the shorter side after the resize; 0 where `size` is given.
        size: height and width after the resize.
        crop: height and width of the center crop; None for no crop.
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
        """What the draft must keep of the shorter side."""
        return math.ceil(DRAFT_FACTOR * max(self.shortest, *(self.size or (0,))))

    def __call__(self, decoded: Decoded) -> np.ndarray:
        """Pixels, [H, W, 3] uint8."""
        height, width = self.size or resized(decoded.size, self.shortest)
        pixels = resize(decoded, height, width, self.resample)
        return pixels if self.crop is None else center_crop(pixels, *self.crop)

    def pixels(self, batch: torch.Tensor, device: str, dtype: torch.dtype) -> torch.Tensor:
        """What the model takes (Tensor[B, 3, H, W]) of bytes (Tensor[B, H, W, 3])."""
        import torch

        moved = batch.to(device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32)
        scale, shift = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (self.scale, self.shift))
        return torch.addcmul(shift, moved, scale).to(dtype)


def resized(size: tuple[int, int], shortest: int) -> tuple[int, int]:
    """Height and width of an image of `size` (width, height) whose shorter side becomes `shortest`."""
    width, height = size
    if width <= height:
        return int(shortest * height / width), shortest
    return shortest, int(shortest * width / height)


def resize(decoded: Decoded, height: int, width: int, resample: int) -> np.ndarray:
    """The image at another size, [height, width, 3] uint8.

    torch's antialiased resize of bytes is Pillow's algorithm with 16-bit weights, three times as fast. On smooth
    images its pixels differ from Pillow's by a level here and there, in noise by more. Both take the fraction of a
    pixel into account that a JPEG's size divided by 2, 4 or 8 leaves over.
    """
    import torch

    if decoded.image.size == (width, height):
        return np.asarray(decoded.image)
    if resample not in FILTERS:
        return np.asarray(decoded.image.resize((width, height), resample, box=(0.0, 0.0, *decoded.extent)))
    # a copy, because torch wants an array that may be written to
    image = torch.from_numpy(np.array(decoded.image)).permute(2, 0, 1)[None]
    across, down = decoded.extent
    operator = getattr(torch.ops.aten, FILTERS[resample])
    resized = operator(image, [height, width], False, height / down, width / across)
    array: np.ndarray = resized[0].permute(1, 2, 0).numpy()
    return array


def center_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of an image, [height, width, 3]; zeros around it where it is smaller, as transformers does it."""
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    inside = pixels[max(top, 0) : max(top, 0) + height, max(left, 0) : max(left, 0) + width]
    if inside.shape[:2] == (height, width):
        return inside
    padded = np.zeros((height, width, 3), np.uint8)
    down, right = max(-top, 0), max(-left, 0)
    padded[down : down + inside.shape[0], right : right + inside.shape[1]] = inside
    return padded


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
    """A function from an image to a tensor, such as open_clip's.

    Attributes:
        function: the function.
    """

    function: Callable[[Any], torch.Tensor]
    draft_side: int | None = None

    def __call__(self, decoded: Decoded) -> np.ndarray:
        """Pixels, [3, H, W] float32."""
        return self.function(decoded.image).numpy()


@dataclass(frozen=True)
class WholeImage:
    """The image's own pixels, for models that prepare images themselves."""

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
