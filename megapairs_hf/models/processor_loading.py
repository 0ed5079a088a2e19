"""A model's processor, whose images are Pillow's everywhere and whose videos need nothing that is not installed.

Processors of Qwen2-VL, Qwen3-VL, LLaVA-OneVision, SmolVLM and many later families have a part for videos. An MMRet
shows no videos, so where torchvision is absent that part is kept as its settings, and saved with the rest.
What surprises: a keyword for `AutoProcessor` goes to each part, so that for images (`backend`, `max_pixels`) would be
written into the tokenizer's settings and be refused by the part for videos; such keywords go to the images alone.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Pillow's and torchvision's pixels differ by up to 0.015 after normalization
BACKEND = {"backend": "pil"}
# what only some families' image processors know, and every tokenizer would swallow
PIXELS = ("min_pixels", "max_pixels")
LOCATING = ("revision", "token", "local_files_only", "trust_remote_code", "cache_dir", "subfolder")
VIDEOS = "video_processor"
_LOCK = threading.RLock()


class VideoSettings(dict):  # type: ignore[type-arg]
    """The part of a processor for videos, where it cannot be built: its settings, which are its attributes too."""

    _auto_class = None
    model_input_names: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        # SmolVLM reads how many frames a video would have before it sees that there is none
        return self.get(name)

    @classmethod
    def from_pretrained(cls, path: str, **keywords: Any) -> VideoSettings:
        """As a processor's parts are loaded.

        Args:
            path: folder or Hub id.
            keywords: of `AutoProcessor.from_pretrained`.
        """
        from transformers.models.auto.video_processing_auto import get_video_processor_config

        return cls(get_video_processor_config(path, **{k: v for k, v in keywords.items() if k in LOCATING}))


def image_processor(path: str, keywords: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The image processor of a folder, and the keywords that are not for it.

    Args:
        path: folder or Hub id.
        keywords: of `AutoProcessor.from_pretrained`, of which those that locate are for all parts.

    Returns:
        (None, all but the backend) where there is none.

    Raises:
        ModelError: `min_pixels` or `max_pixels` is given and the family has no such thing.
    """
    from transformers import AutoImageProcessor

    own = {**BACKEND, **{name: keywords[name] for name in BACKEND if name in keywords}}
    located = {name: value for name, value in keywords.items() if name in LOCATING}
    rest = {name: value for name, value in keywords.items() if name not in BACKEND}
    try:
        images = AutoImageProcessor.from_pretrained(path, **own, **located)
    except (OSError, ValueError):
        return None, rest
    mine = {name: rest.pop(name) for name in [*rest] if name in images.valid_kwargs.__annotations__}
    unknown = [name for name in PIXELS if name in rest]
    if unknown:
        raise ModelError(f"the images of {path} have no `{unknown[0]}` ({type(images).__name__}); leave it out")
    if mine:
        images = AutoImageProcessor.from_pretrained(path, **own, **located, **mine)
    return images, rest


@contextlib.contextmanager
def videos_aside() -> Iterator[None]:
    """Inside, transformers loads processors although what their videos need is not installed."""
    from transformers import ProcessorMixin, processing_utils
    from transformers.models.smolvlm import processing_smolvlm
    from transformers.utils import is_torchvision_available

    stock, check = processing_utils.MODALITY_TO_AUTOPROCESSOR_MAPPING, ProcessorMixin.check_argument_for_proper_class

    def checked(self: Any, name: str, part: Any) -> Any:
        return VideoSettings if isinstance(part, VideoSettings) else check(self, name, part)

    with _LOCK, contextlib.ExitStack() as stack:
        if not is_torchvision_available():
            parts = {name: VideoSettings if name == VIDEOS else stock[name] for name in stock.keys()}
            stack.enter_context(_replaced(processing_utils, "MODALITY_TO_AUTOPROCESSOR_MAPPING", parts))
            stack.enter_context(_replaced(ProcessorMixin, "check_argument_for_proper_class", checked))
        if processing_smolvlm.num2words is None:
            # SmolVLM writes the number of a video's frames as a word
            stack.enter_context(_replaced(processing_smolvlm, "num2words", str))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
