"""What a server is compared on: twenty inputs of the kinds that a model takes, half of them queries, one of them long.

What surprises: the long text is what shows where a server cuts, which is rarely where the model does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

COUNT = 20
SIZE = (320, 224)
THINGS = ("bicycle", "harbor", "chair", "dog", "bridge", "mountain", "cup", "train", "garden", "clock")
# some 700 tokens of a usual tokenizer: more than the 512 at which many servers cut
LONG = " ".join(f"Photograph {i} shows a {thing} beside number {i * i}." for i, thing in enumerate(THINGS * 7))
TEXTS = (
    "a red bicycle leaning against a brick wall",
    "the same room at night",
    "Ein Hund läuft am Strand entlang.",
    "make it blue, and turn it to the left",
    "two people playing chess in a park; one of them is laughing",
    "x",
    LONG,
    "A photograph of a harbor at dawn. Small boats lie at the pier, and the water is calm. In the distance are hills.",
    "no trees",
    "  leading and trailing blanks  ",
    "What is the name of the bird?",
    "価格は 1,280 円です",
    "line one\nline two",
    "the moon over a city, seen from above, in black and white",
    "100% cotton T-shirt with a small logo (front)",
    "cat",
    "🙂 an emoji of a smiling face",
    "replace the car by a bus and keep the street",
    "élan vital",
    "an old map of the world with sea monsters",
)


@dataclass(frozen=True)
class ParityInput:
    """One of the twenty.

    Attributes:
        text: None for an image alone.
        image: a Pillow image; None for a text alone.
        query: whether it is embedded as a query, with the model's instruction.
    """

    text: str | None
    image: Any
    query: bool

    @property
    def long(self) -> bool:
        """Whether it is there to show where texts are cut."""
        return self.text == LONG

    @property
    def kind(self) -> str:
        """`text`, `image` or `joint`."""
        return "text" if self.image is None else "image" if self.text is None else "joint"

    @property
    def value(self) -> Any:
        """As `encode` takes it."""
        parts = {"image": self.image, "text": self.text}
        return self.image if self.text is None else {name: part for name, part in parts.items() if part is not None}


def parity_inputs(model: Any, text_only: bool) -> list[ParityInput]:
    """Twenty inputs of the kinds that the model takes and a server could."""
    modalities = set(getattr(model[0], "modalities", ("text",)))
    kinds = ["text"]
    if not text_only and "image" in modalities:
        # a server of two towers has no sum of them
        kinds += ["image", "joint"] if has_template(model) else ["image"]
    queries = bool((model.prompts or {}).get("query"))
    side = getattr(getattr(model, "preparer", None), "side", None)
    inputs = []
    for i in range(COUNT):
        kind = kinds[i % len(kinds)]
        image = None if kind == "text" else _image(i, (side, side) if side else SIZE)
        text = None if kind == "image" else TEXTS[i]
        inputs.append(ParityInput(text, image, queries and i // len(kinds) % 2 == 1))
    return inputs


def _image(seed: int, size: tuple[int, int]) -> Any:
    """A few colored rectangles."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(rng.integers(0, 256, 3).tolist()))
    for _ in range(5):
        (left, right), (top, bottom) = (sorted(rng.integers(0, side, 2).tolist()) for side in size)
        ImageDraw.Draw(image).rectangle((left, top, right, bottom), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def has_template(model: Any) -> bool:
    """Whether it is asked with messages."""
    return bool(getattr(model[0].processor, "chat_template", None)) and "message" in set(model[0].modalities)


def prompt_of(model: Any, one: ParityInput) -> str | None:
    """What the model puts before an input of its role."""
    return ((model.prompts or {}).get("query" if one.query else "document")) or None
