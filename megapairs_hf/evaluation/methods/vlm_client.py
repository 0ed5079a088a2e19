"""Requests to a vision language model about images of a benchmark, through the annotation's client.

What surprises: an image is decoded and shrunk only when its request is sent, so that thousands of
prompts wait as ids and not as images.
"""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

from megapairs_hf.annotation.client.budget import Usage
from megapairs_hf.annotation.client.client import Client
from megapairs_hf.annotation.client.event_loop import run
from megapairs_hf.annotation.client.messages import Request
from megapairs_hf.annotation.client.transport import reach
from megapairs_hf.images.decode import encode_image, shrink

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from megapairs_hf.annotation.client.messages import Response
    from megapairs_hf.evaluation.config import RequestConfig


def request_all(contents: Sequence[Callable[[], list[dict[str, Any]]]], config: RequestConfig) -> list[Response]:
    """Send requests, many at a time.

    Args:
        contents: functions that make the parts of a message, called when the request is sent.
        config: the model and its servers.

    Returns:
        One response each, in their order; `refused` is set where the server refuses a request.

    Raises:
        ServerUnavailableError: every server refuses or fails everything.
    """
    parameters = {"max_tokens": config.max_new_tokens, "temperature": config.temperature, "seed": config.seed}

    async def work() -> list[Response]:
        slots = asyncio.Semaphore(2 * config.endpoint.concurrency)
        async with Client(config.endpoint, Usage(), config.model) as client:

            async def one(make: Callable[[], list[dict[str, Any]]]) -> Response:
                async with slots:
                    return await client.request(
                        lambda: Request([{"role": "user", "content": make()}], config.model, parameters)
                    )

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(make)) for make in contents]
            return [task.result() for task in tasks]

    return run(work()) if contents else []


def check_reachable(configs: Sequence[RequestConfig]) -> None:
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


def image_part(image: Any, max_side: int) -> dict[str, Any]:
    """An image as a part of a message."""
    content = encode_image(shrink(image, max_side), lossy=True)
    return {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64," + base64.b64encode(content).decode()}}


def usable(response: Response) -> bool:
    """Whether a response was given and is whole."""
    return not response.refused and response.finish_reason != "length" and bool(response.text.strip())
