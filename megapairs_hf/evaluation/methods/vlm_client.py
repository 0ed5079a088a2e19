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
from megapairs_hf.annotation.client.transport import reach_any
from megapairs_hf.images.decode import encode_image, shrink

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

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


def check_reachable(configs: Mapping[str, RequestConfig | None]) -> None:
    """Fail where nobody listens, before hours of encoding.

    Args:
        configs: by setting, `vlm` and `llm`.

    Raises:
        ServerUnavailableError: no address of a model answers.
    """

    async def all_of_them() -> None:
        for name, config in configs.items():
            if config is not None:
                await reach_any(config.endpoint.urls, config.endpoint.connect_timeout_s, local_flags(name))

    run(all_of_them())


def local_flags(name: str) -> str:
    """How `megapairs eval` names a model and an address of the setting `vlm` or `llm`."""
    return f"--{name} {{model}} --{name}-urls {{url}}"


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
