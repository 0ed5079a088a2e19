"""MMRet on a multimodal language model: last-token pooling over a prompt (paper, section 3.2, eq. 3).

The model is `Transformer` + `Pooling` (last token) + `Normalize`, all stock, and the prompt is a chat template, so the
folder needs neither custom code nor a flag. Nothing is tied to LLaVA: the family's own image token is put into the
template. What surprises: the released model's prompt has its own blanks and no end token, although the paper writes
[EOS]; both are templates here and the released one is the default. Images are made 512 pixels square before the
family's own processor sees them, which stock Sentence Transformers cannot do; give it square images. Whoever sets
`min_pixels` or `max_pixels` leaves the size to that processor instead.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from megapairs_hf.core.errors import ModelError
from megapairs_hf.models.inputs import load_image
from megapairs_hf.models.processor import Prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from PIL import Image

    from megapairs_hf.core.inputs import Input

TEMPLATES = Path(__file__).with_name("templates")
IMAGE_SIDE = 512  # section 4.1: "512 × 512"
SIDE_KEY = "mmret_image_side"
MARK = "The prompt of MMRet's multimodal models"  # how both templates begin
ANY_SIZE = "Images keep their proportions"
# keywords of a processor by which its family decides on the size of images
SIZES = ("min_pixels", "max_pixels", "size")
CIR_INSTRUCTION = (
    "Retrieve the target image that best meets the combined criteria by using both the provided image and the image"
    " retrieval instructions: "
)
# an empty prompt is none, so a document gets the candidate's form
PROMPTS = {"query": CIR_INSTRUCTION, "document": ""}
AROUND = {"<|image_pad|>": ("<|vision_start|>", "<|vision_end|>")}
LOG = logging.getLogger(__name__)
Style = Literal["released", "paper"]
STYLES: tuple[Style, ...] = get_args(Style)


def is_mllm(config: Any) -> bool:
    """Whether a configuration is that of a language model that reads images."""
    keys = ("image_token_id", "image_token_index")
    return any(getattr(config, key, None) is not None for key in keys) and hasattr(config, "text_config")


def chat_template(processor: Any, style: Style, square: bool = True) -> str:
    """The prompt as a chat template with the image token of the model's family.

    Args:
        processor: of the model.
        style: `released` or `paper`.
        square: whether images are made square; written into the template's comment, which adapters alone keep too.

    Raises:
        ModelError: the family marks no image by a token.
    """
    token = str(getattr(processor, "image_token", None) or "")
    if not token:
        raise ModelError(f"a {type(processor).__name__} has no token for an image, so no prompt can hold one")
    before, after = AROUND.get(token, ("", ""))
    template = (TEMPLATES / f"{style}.jinja").read_text(encoding="utf-8")
    words = {"@IMAGE@": before + token + after, "@TOKEN@": token, "@BROKEN@": f"{token[0]} {token[1:]}"}
    # a processor without videos has no such token, and replacing what is no text changes nothing
    video = str(getattr(processor, "video_token", None) or token)
    words |= {"@VIDEO@": video, "@BROKEN_VIDEO@": f"{video[0]} {video[1:]}"}
    for mark, word in words.items():
        template = template.replace(mark, word)
    return template if square else template.replace(MARK, f"{ANY_SIZE}. {MARK}", 1)


def prepare(transformer: Any, style: Style, square: bool = True) -> None:
    """Set prompt, padding and image size of a freshly loaded model.

    Args:
        transformer: the Sentence Transformers `Transformer` module.
        style: of the prompt.
        square: whether images are made `IMAGE_SIDE` pixels square, or the family's processor alone sizes them.
    """
    processor, config = transformer.processor, transformer.model.config
    processor.chat_template = chat_template(processor, style, square)
    # the last position is the embedding, so it must be a token of the input in every row
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    if config.model_type in {"llava", "llava_next"}:
        # processors from before transformers 4.45 leave these to the model
        processor.patch_size = processor.patch_size or config.vision_config.patch_size
        strategy = processor.vision_feature_select_strategy or config.vision_feature_select_strategy
        processor.vision_feature_select_strategy = strategy
        processor.num_additional_image_tokens = processor.num_additional_image_tokens or 1
    if square:
        setattr(config, SIDE_KEY, IMAGE_SIDE)


def modality_config() -> dict[Any, dict[str, Any]]:
    """Every kind of input goes through the chat template."""
    forward = {"method": "forward", "method_output_name": "last_hidden_state"}
    kinds: list[Any] = ["text", "image", ("image", "text")]
    return {**{kind: dict(forward) for kind in kinds}, "message": {**forward, "format": "structured"}}


# A cut behind the image's tokens would leave fewer than the image has; texts are cut before they meet the template.
# The side is said here because a saved tokenizer forgets it.
PROCESSING = {
    "text": {"truncation": False, "padding_side": "left"},
}


def reduced(image: Image.Image, processor: Any, index: int) -> Image.Image:
    """The image no larger than a processor of Qwen's families makes it, with the pixels that it gives.

    A step or a window of `encode` holds many images at a time, and a photograph is 40 times what the model sees.

    Args:
        image: of any size.
        processor: for images; one of another family leaves the image as it is.
        index: of the input in its list, for errors.

    Raises:
        ModelError: the image is too narrow for the processor.
    """
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

    if not isinstance(processor, Qwen2VLImageProcessorPil) or not processor.do_resize:
        return image
    unit = processor.patch_size * processor.merge_size
    bounds = (unit, processor.size["shortest_edge"], processor.size["longest_edge"])
    try:
        height, width = smart_resize(image.height, image.width, *bounds)
    except ValueError as error:
        raise ModelError(f"the image of input {index} cannot be used ({error}); leave it out or replace it") from error
    # the processor must leave that size as it is, which for an image narrower than a patch it does not
    fixed = smart_resize(height, width, *bounds) == (height, width)
    smaller = height * width < image.height * image.width
    return image.resize((width, height), processor.resample) if smaller and fixed else image


class MllmProcessor:
    """For multimodal language models.

    Args:
        transformer: the Sentence Transformers `Transformer` module.
    """

    def __init__(self, transformer: Any) -> None:
        config, self.tokenizer = transformer.model.config, transformer.processor.tokenizer
        # a folder that we did not save shows its model images of any size; one of adapters alone has no config.json,
        # so there the prompt shows it
        adapted = getattr(transformer.model, "_hf_peft_config_loaded", False)
        template = str(transformer.processor.chat_template)
        ours = adapted and MARK in template and ANY_SIZE not in template
        self.side: int | None = getattr(config, SIDE_KEY, IMAGE_SIDE if ours else None)
        positions = getattr(config.text_config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        self.limit = min(int(positions), int(self.tokenizer.model_max_length))
        self.images = transformer.processor.image_processor
        self.warned = False
        self.frames: dict[tuple[Any, ...], int] = {}

    def one(self, value: Input, index: int) -> Prepared:
        """Text, and the image made square or as large as its family's processor will make it.

        Raises:
            ModelError: the image cannot be used.
        """
        ready = Prepared()
        if value.text is not None:
            ready["text"] = value.text
        if value.image is not None:
            image = load_image(value.image, index)
            if self.side is None:
                ready["image"] = reduced(image, self.images, index)
            else:
                size = (self.side, self.side)
                ready["image"] = image if image.size == size else image.resize(size)
        return ready

    def features(
        self, ready: Sequence[Prepared], prompt: str | None, stock: Callable[..., Any], settings: dict[str, Any]
    ) -> dict[str, Any]:
        """Tokens and pixels of any mix; the prompt is the instruction, and texts that are too long are cut."""
        # templates that take a message's parts in their order were trained with images first (Qwen3-VL-Embedding)
        cut = [{part: one[part] for part in ("image", "text") if part in one} for one in ready]
        for one in cut:
            # a token has a byte at least, so short texts need not be counted
            if len((prompt or "").encode()) + len(one.get("text", "").encode()) > self.limit // 4:
                frame = self._frame(one, prompt, stock, settings)
                if "text" in one:
                    one["text"] = self._cut(one["text"], frame)
        features: dict[str, Any] = stock(cut, prompt=prompt, **settings)
        return features

    def tokens(
        self, one: dict[str, Any], prompt: str | None, stock: Callable[..., Any], settings: dict[str, Any]
    ) -> int:
        """Tokens of an input with its prompt, or one more; those of images are counted once for each size."""
        text = self.tokenizer(one.get("text", ""), add_special_tokens=False, verbose=False)["input_ids"]
        return min(self.limit, self._frame(one, prompt, stock, settings) + len(text))

    def _frame(
        self, one: dict[str, Any], prompt: str | None, stock: Callable[..., Any], settings: dict[str, Any]
    ) -> int:
        """Tokens of an input besides those of its text.

        Raises:
            ModelError: they leave no room.
        """
        size = one["image"].size if "image" in one else None
        key = (prompt, settings.get("task"), size)
        if key not in self.frames:
            blank = {"text": "."} if size is None else {"text": ".", "image": one["image"]}
            self.frames[key] = int(stock([blank], prompt=prompt, **settings)["input_ids"].shape[1])
        if self.frames[key] >= self.limit:
            raise ModelError(f"prompt and image take {self.frames[key]} of {self.limit} tokens; shorten the prompt")
        return self.frames[key]

    def _cut(self, text: str, frame: int) -> str:
        room = self.limit - frame
        tokens = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        if len(tokens["input_ids"]) <= room:
            return text
        if not self.warned:
            LOG.warning(
                "text truncated from %d to %d tokens, all that the model takes; others are, without a note",
                len(tokens[0]),
                room,
            )
            self.warned = True
        return text[: tokens["offset_mapping"][room - 1][1]]

    def finish(self, folder: str) -> None:
        """A released model's folder names code that is not saved, so its name goes too."""
        file = Path(folder) / "config.json"
        if file.is_file():
            config = json.loads(file.read_text(encoding="utf-8"))
            config.pop("auto_map", None)
            file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
