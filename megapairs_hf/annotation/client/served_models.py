"""Which models a server has, for a name that it does not know.

What surprises: a server with one model has no other to offer, so that one is taken, whatever it is called there; the
response then says which it was.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from megapairs_hf.annotation.client.completion import parse_body, shorten
from megapairs_hf.core.progress import note

MOST = 20


class ServedModels:
    """The models of each address.

    Args:
        token: as it is sent; empty for none.
        timeout_s: time limit of one look.

    Attributes:
        instead: the model that is taken in the place of the one that was asked for, by address.
    """

    def __init__(self, token: str, timeout_s: float) -> None:
        self.token, self.timeout_s = token, timeout_s
        self.instead: dict[str, str] = {}
        self.looks: dict[str, asyncio.Task[list[str]]] = {}

    async def names(self, url: str) -> list[str]:
        """The first models of a server, asked until it says; empty where it does not."""
        look = self.looks.get(url)
        if look is None or (look.done() and not look.result()):
            look = self.looks[url] = asyncio.get_running_loop().create_task(self._look(url))
        return await asyncio.shield(look)

    async def only_one(self, url: str) -> str:
        """The model of a server that has just one; empty for any other."""
        names = await self.names(url)
        return names[0] if len(names) == 1 else ""

    def take(self, url: str, served: str, requested: str) -> str:
        """Take the one model of a server from now on, and say so once."""
        if url not in self.instead:
            self.instead[url] = served
            note(f"{url} has no model {requested!r}; taking {served!r}, the only one that it has")
        return served

    async def _look(self, url: str) -> list[str]:
        from megapairs_hf.annotation.client.http_client import connect_http

        try:
            async with asyncio.timeout(self.timeout_s), connect_http() as http:
                headers = {"authorization": f"Bearer {self.token or 'none'}"}
                response = await http.get(models_url(url), headers=headers)
            return model_names(parse_body(response.content))
        except Exception:
            return []


def models_url(url: str) -> str:
    """The address of the list beside that of the chat completions."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return urlunsplit(parts._replace(path=(path if path.endswith("/v1") else path + "/v1") + "/models"))


def model_names(value: Any) -> list[str]:
    """The names in a list of models, as OpenAI's API gives it."""
    data = value.get("data", value.get("models")) if isinstance(value, dict) else value
    entries = data if isinstance(data, list) else []
    names = [entry.get("id") or entry.get("name") if isinstance(entry, dict) else entry for entry in entries]
    return [shorten(name) for name in dict.fromkeys(n for n in names if isinstance(n, str) and n)][:MOST]
