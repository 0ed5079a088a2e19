"""The prompts (figures 3 and 4 of the paper): load their files and fill them.

The wording is in `prompts/*.jinja` and the few-shot examples in `prompts/few_shot_examples.json`; the paper prints its
own only as images, so the wording is ours. What surprises: a prompt file of one's own may also name the captions
(`{{ query_caption }}`, `{{ target_caption }}`), which ours does not, as the paper's does not.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from megapairs_hf.annotation.prompts.few_shot import read_prompt_file
from megapairs_hf.core.errors import ConfigError

if TYPE_CHECKING:
    from megapairs_hf.annotation.prompts.few_shot import FewShotExample


IMAGE_SLOTS = ("query_image", "target_image")
CAPTION_SLOTS = ("query_caption", "target_caption")
DESCRIBE_SLOTS = frozenset({*IMAGE_SLOTS, *CAPTION_SLOTS, "word_num"})
INSTRUCT_SLOTS = frozenset(
    {
        *("description", "examples", "count", "response_format"),
        *("min_words", "max_words", "language", *CAPTION_SLOTS),
    }
)


@dataclass(frozen=True)
class Prompt:
    """The text of a prompt file, its slots checked, and the slots that it uses."""

    text: str
    # sorted: the order of a set differs between processes, and with it the fingerprint of a row function
    slots: tuple[str, ...] = ()

    @property
    def needs_captions(self) -> bool:
        """Whether it uses a caption."""
        return not set(self.slots).isdisjoint(CAPTION_SLOTS)

    @property
    def digest(self) -> str:
        """A hash of the text: another prompt makes another artifact."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @property
    def fixed(self) -> str:
        """The words of the prompt without slots and control lines."""
        return re.sub(r"\{[{%].*?[%}]\}", " ", self.text, flags=re.DOTALL)

    def render(self, **slots: Any) -> str:
        """Fill the slots."""
        from jinja2 import TemplateError

        try:
            return str(_compiled(self.text).render(**slots)).strip()
        except (TemplateError, TypeError) as error:
            raise ConfigError(f"the prompt file cannot be filled in: {error}; correct it") from error


@lru_cache(maxsize=8)
def _compiled(text: str) -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # a recipe may come from somebody else: its prompt must not be able to run code
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=False, autoescape=False)
    return environment.from_string(text)


def load_prompt(path: str | None, default: str, slots: frozenset[str], needed: tuple[str, ...]) -> Prompt:
    """Read a prompt file and check its slots.

    Args:
        path: the file; None for the package's own.
        default: the package's own.
        slots: the slots that it may use.
        needed: the slots that it must use.

    Raises:
        ConfigError: it cannot be read, is no jinja, or has an unknown slot or lacks a needed one.
    """
    from jinja2 import TemplateSyntaxError, meta
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    text, name = read_prompt_file(path, default)
    try:
        used = meta.find_undeclared_variables(ImmutableSandboxedEnvironment().parse(text))
    except TemplateSyntaxError as error:
        raise ConfigError(f"the prompt {name} is not valid jinja: {error.message} (line {error.lineno})") from error
    for slot in sorted(used - slots):
        raise ConfigError(f"the prompt {name} has an unknown slot {slot!r}; known slots: {', '.join(sorted(slots))}")
    for slot in needed:
        if slot not in used:
            raise ConfigError(f"the prompt {name} lacks the slot {slot!r}; put {{{{ {slot} }}}} where it belongs")
    return Prompt(text, tuple(sorted(used)))


def describe_prompt(path: str | None = None) -> Prompt:
    """The prompt of the first step."""
    return load_prompt(path, "describe.jinja", DESCRIBE_SLOTS, IMAGE_SLOTS)


def instruct_prompt(path: str | None = None) -> Prompt:
    """The prompt of the second step."""
    return load_prompt(path, "instruct.jinja", INSTRUCT_SLOTS, ("description",))


def format_describe(
    prompt: Prompt, query_url: str, target_url: str, word_num: int, captions: tuple[str, str] = ("", "")
) -> list[dict[str, Any]]:
    """The chat messages of the first step.

    Args:
        prompt: of `describe_prompt`.
        query_url: the query image as a data URL.
        target_url: the target image as a data URL.
        word_num: how many words to ask for.
        captions: of both, for a prompt that uses them.

    Returns:
        One user message, its text and its two images in the order of the prompt file.
    """
    urls = dict(zip(IMAGE_SLOTS, (query_url, target_url), strict=True))
    slots = dict(zip(CAPTION_SLOTS, captions, strict=True))
    return format_images(prompt, urls, word_num=word_num, **slots)


def format_images(prompt: Prompt, urls: dict[str, str], **slots: Any) -> list[dict[str, Any]]:
    """One user message with images where the prompt file has their slots.

    Args:
        prompt: the prompt.
        urls: data URL of each image by its slot.
        slots: what goes into the other slots.
    """
    # captions come from the open web: a character that no text holds keeps them from being taken for an image
    marks = {slot: f"\x00{slot}\x00" for slot in urls}
    clean = {name: value.replace("\x00", "") if isinstance(value, str) else value for name, value in slots.items()}
    by_mark = {marks[slot]: url for slot, url in urls.items()}
    parts: list[dict[str, Any]] = []
    for piece in re.split("(\x00\\w+\x00)", prompt.render(**marks, **clean)):
        if piece in by_mark:
            parts.append({"type": "image_url", "image_url": {"url": by_mark[piece]}})
        elif piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return [{"role": "user", "content": parts}]


def format_response(instructions: tuple[str, ...] | list[str], response_format: str) -> str:
    """Instructions in the format that the prompt asks for."""
    if response_format == "json":
        return json.dumps({"instructions": list(instructions)}, ensure_ascii=False)
    return "\n".join(f"{i}. {text}" for i, text in enumerate(instructions, 1))


def format_instruct(
    prompt: Prompt,
    description: str,
    examples: list[FewShotExample],
    *,
    count: int,
    response_format: str,
    words: tuple[int, int] = (2, 60),
    captions: tuple[str, str] = ("", ""),
    language: str = "English",
) -> list[dict[str, Any]]:
    """The chat messages of the second step."""
    formatted = [
        {"description": each.description, "response": format_response(each.instructions, response_format)}
        for each in examples
    ]
    text = prompt.render(
        description=description,
        examples=formatted,
        count=count,
        response_format=response_format,
        min_words=words[0],
        max_words=words[1],
        language=language,
        query_caption=captions[0],
        target_caption=captions[1],
    )
    return [{"role": "user", "content": text}]
