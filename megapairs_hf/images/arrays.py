"""Arrays and tensors as images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import ImageRejectedError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

EIGHT_BITS = 255
CHANNELS = {1, 3, 4}


def image_of_array(source: Any) -> Image.Image:
    """An array or tensor of any of the usual layouts: [H, W], [H, W, C] or [C, H, W]; bytes, 16 bits, or floats 0…1.

    Raises:
        ImageRejectedError: with the reason `not_an_image` or `unsupported_mode`.
    """
    import numpy as np
    from PIL import Image

    # a tensor may be on a device, and in a type that numpy does not have
    values = source.detach().cpu() if "torch" in type(source).__module__ else source
    values = np.asarray(values.float() if str(getattr(values, "dtype", "")) == "torch.bfloat16" else values)
    if values.ndim == 3 and values.shape[0] in CHANNELS and values.shape[-1] not in CHANNELS:
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim not in {2, 3} or (values.ndim == 3 and values.shape[-1] not in CHANNELS) or not values.size:
        raise ImageRejectedError("not_an_image", f"an array of the shape {list(values.shape)}")
    return Image.fromarray(_bytes(values))


def _bytes(values: np.ndarray) -> np.ndarray:
    import numpy as np

    if values.dtype == np.uint16:
        values = np.round(values / 65535.0 * EIGHT_BITS)
    elif values.dtype == np.bool_:
        values = values * EIGHT_BITS
    elif values.dtype.kind == "f":
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise ImageRejectedError("unsupported_mode", "floats that are not all from 0 to 1; scale them")
        values = np.round(values.astype(np.float64) * EIGHT_BITS)
    elif values.dtype.kind not in "ui" or values.min() < 0 or values.max() > EIGHT_BITS:
        raise ImageRejectedError("unsupported_mode", f"{values.dtype} values that are not all from 0 to 255")
    return values.astype(np.uint8)


def eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit integers and floats to 0…255; Pillow's own conversion would clip everything above 255 to white.

    Raises:
        ImageRejectedError: with the reason `unsupported_mode`.
    """
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all() or values.min() < 0:
        raise ImageRejectedError("unsupported_mode", f"mode {image.mode} with negative or non-finite values")
    if image.mode == "F":
        top = 1.0 if values.max() <= 1.0 else float(EIGHT_BITS)
    else:
        top = 65535.0 if image.mode.startswith("I;16") or values.max() > EIGHT_BITS else float(EIGHT_BITS)
    if values.max() > top:
        raise ImageRejectedError("unsupported_mode", f"mode {image.mode} with values up to {values.max():g}")
    return Image.fromarray(np.round(values / top * EIGHT_BITS).astype(np.uint8), "L")
