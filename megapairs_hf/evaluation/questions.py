"""Asking a vision language model about pictures of a benchmark, through the annotation's client.

What surprises: a picture is decoded and shrunk only when there is a place for its request, so that thousands of
questions wait as numbers and not as pictures.
"""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from megapairs_hf.annotate.asking import run
from megapairs_hf.annotate.client import Client
from megapairs_hf.annotate.endpoint import Endpoint
from megapairs_hf.annotate.tally import Tally
from megapairs_hf.annotate.transport import Question, reach
from megapairs_hf.config import HOW, require
from megapairs_hf.images import encode_image, shrink

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from megapairs_hf.annotate.journal import Reply


@dataclass(frozen=True)
class AskConfig:
    """Whom to ask, and how. All defaults are ours.

    Attributes:
        model: what the endpoint calls the model.
        max_tokens: longest reply.
        temperature: of the sampling; 0 for the likeliest words.
        seed: of the sampling.
        max_image_side: pictures are shrunk to it.
        endpoint: where the servers are.
    """

    model: str
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    max_image_side: int = 448
    endpoint: Endpoint = field(default=Endpoint(), metadata=HOW)

    def __post_init__(self) -> None:
        require(bool(self.model.strip()), "model", self.model, "the name by which the endpoint knows the model")
        require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        require(self.temperature >= 0, "temperature", self.temperature, "0 or more")
        require(self.max_image_side >= 28, "max_image_side", self.max_image_side, "at least 28 pixels")


def ask_all(contents: Sequence[Callable[[], list[dict[str, Any]]]], config: AskConfig) -> list[Reply]:
    """Ask questions, many at a time.

    Args:
        contents: functions that make the parts of a message, called when there is a place.
        config: whom to ask.

    Returns:
        One reply each, in their order; `refused` is set where the server will not answer one.

    Raises:
        ServerUnavailableError: every server refuses or fails everything.
    """
    parameters = {"max_tokens": config.max_tokens, "temperature": config.temperature, "seed": config.seed}

    async def work() -> list[Reply]:
        places = asyncio.Semaphore(2 * config.endpoint.concurrency)
        async with Client(config.endpoint, Tally(), config.model) as client:

            async def one(make: Callable[[], list[dict[str, Any]]]) -> Reply:
                async with places:
                    return await client.ask(
                        lambda: Question([{"role": "user", "content": make()}], config.model, parameters)
                    )

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(make)) for make in contents]
            return [task.result() for task in tasks]

    return run(work()) if contents else []


def check_reachable(configs: Sequence[AskConfig]) -> None:
    """Fail where nobody listens, before hours of encoding.

    Raises:
        ServerUnavailableError: an address does not answer.
    """

    async def all_of_them() -> None:
        for config in configs:
            await asyncio.gather(*(reach(url, config.endpoint.connect_timeout_s) for url in config.endpoint.urls))

    run(all_of_them())


def text_part(text: str) -> dict[str, Any]:
    """A text as a part of a message."""
    return {"type": "text", "text": text}


def picture_part(image: Any, max_side: int) -> dict[str, Any]:
    """A picture as a part of a message."""
    content = encode_image(shrink(image, max_side), lossy=True)
    return {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64," + base64.b64encode(content).decode()}}


def usable(reply: Reply) -> bool:
    """Whether a reply was given and is whole."""
    return not reply.refused and reply.finish_reason != "length" and bool(reply.text.strip())
