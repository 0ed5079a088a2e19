"""Which servers answer at the usual addresses of this machine, and how to use them.

Loopback only, by one request each (`GET /v1/models`) that carries no token, takes no proxy, follows no redirect, and
reads a limited answer in limited time. What surprises: a list of models says nothing of whether they see images.
"""

from __future__ import annotations

import asyncio
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megapairs_hf.annotation.client.completion import FaultError, parse_body
from megapairs_hf.annotation.client.served_models import model_names, models_url

if TYPE_CHECKING:
    from collections.abc import Sequence

# the ports of each program's own documentation
ADDRESSES = (
    ("llama.cpp or TGI", "http://127.0.0.1:8080/v1"),
    ("vLLM", "http://127.0.0.1:8000/v1"),
    ("TGI", "http://127.0.0.1:3000/v1"),
    ("Ollama", "http://127.0.0.1:11434/v1"),
    ("SGLang", "http://127.0.0.1:30000/v1"),
    ("LM Studio", "http://127.0.0.1:1234/v1"),
)
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
TIMEOUT_S = 2.0
ANNOTATE_FLAGS = "--model {model} --endpoint.urls {url}"
SHOWN = 5


@dataclass(frozen=True)
class LocalServer:
    """What answered at an address.

    Attributes:
        program: that usually has this address.
        url: the address.
        models: that it serves.
        problem: why it cannot be used; empty if it can.
    """

    program: str
    url: str
    models: tuple[str, ...] = ()
    problem: str = ""

    def flags(self, template: str = ANNOTATE_FLAGS) -> str:
        """What to write on the command line to use it, quoted for a shell."""
        return template.format(model=shlex.quote(self.models[0]), url=self.url)

    def __str__(self) -> str:
        if self.problem:
            return f"{self.url} (usually {self.program}): {self.problem}"
        more = f", and {len(self.models) - SHOWN} more" if len(self.models) > SHOWN else ""
        return f"{self.url} (usually {self.program}): {', '.join(self.models[:SHOWN])}{more}"


async def find_local_servers(timeout_s: float = TIMEOUT_S) -> list[LocalServer]:
    """Look at all usual addresses at once.

    Args:
        timeout_s: time limit of all.

    Returns:
        Those where anything answers, in their order.
    """
    servers = await asyncio.gather(*(_look(program, url, timeout_s) for program, url in ADDRESSES))
    return [server for server in servers if server is not None]


async def _look(program: str, url: str, timeout_s: float) -> LocalServer | None:
    import httpx2

    from megapairs_hf.annotation.client.http_client import BoundedClient, StatusError, certificates

    try:
        client = BoundedClient(follow_redirects=False, trust_env=False, timeout=None, verify=certificates())
        async with asyncio.timeout(timeout_s), client as http:
            response = await http.get(models_url(url))
        if response.status_code != 200:
            return LocalServer(program, url, (), f"answers HTTP {response.status_code}, which is not followed")
        models = tuple(model_names(parse_body(response.content)))
        return LocalServer(program, url, models, "" if models else "serves no model yet")
    except StatusError as error:
        wants = "wants a token; put it into a variable and name that with --endpoint.token_env"
        other = f"is no server for models (HTTP {error.status})"
        return LocalServer(program, url, (), wants if error.status in {401, 403} else other)
    except FaultError:
        return LocalServer(program, url, (), "is no server for models")
    except TimeoutError:
        return LocalServer(program, url, (), f"gives no answer within {timeout_s:g} s")
    except (httpx2.HTTPError, OSError):
        return None


def usage(servers: Sequence[LocalServer], template: str = ANNOTATE_FLAGS) -> str:
    """How to use those that serve a model; empty where none does."""
    ready = [server for server in servers if not server.problem]
    return " or ".join(server.flags(template) for server in ready)
