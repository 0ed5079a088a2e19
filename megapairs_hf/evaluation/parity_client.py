"""What a server of embeddings answers: `/v1/embeddings` of OpenAI's form, vLLM's `messages`, and TEI's `/embed`.

What surprises: `input` of vLLM passes the model's chat template by, so whatever has a template is sent as `messages`,
texts too; TEI takes no messages, so a text is put into the template here before it is sent.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from megapairs_hf.annotation.client.completion import FaultError
from megapairs_hf.annotation.client.event_loop import run
from megapairs_hf.core.config import require
from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.formatting import printable
from megapairs_hf.images.decode import encode_image

if TYPE_CHECKING:
    from collections.abc import Sequence

# statuses of a path that a server does not have
ABSENT = {404, 405}
DENIED = {401, 403}
# of an input that has too many tokens
TOO_LONG = {400, 413, 422}


@dataclass(frozen=True)
class ParityConfig:
    """How embeddings of a server are held against those of a model. All defaults are ours.

    Attributes:
        endpoint: address of the server, such as `http://gpu-1:8000`; with `/v1` or without.
        served_model: name of the model there; the first of its list where empty.
        api: what it speaks; auto tries `/v1/embeddings` and then TEI's `/embed`.
        inputs: what is sent; auto is every kind that model and server can have in common.
        tolerance: an embedding is the same where its cosine with ours is at least 1 minus this; half precision is
            within 0.001.
        token_env: the environment variable that holds the token; a token saved on disk is never sent.
        timeout_s: time limit of one request.
    """

    endpoint: str
    served_model: str = ""
    api: Literal["auto", "openai", "tei"] = "auto"
    inputs: Literal["auto", "text"] = "auto"
    tolerance: float = 1e-3
    token_env: str = "HF_TOKEN"  # noqa: S105 - the name of a variable, not a secret
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        good = self.endpoint.startswith(("http://", "https://")) and "@" not in self.endpoint
        require(good, "endpoint", self.endpoint.rpartition("@")[2], "an address that begins with http:// or https://")
        require(0 < self.tolerance < 1, "tolerance", self.tolerance, "between 0 and 1")
        require(self.timeout_s > 0, "timeout_s", self.timeout_s, "above 0")


@dataclass(frozen=True)
class Sent:
    """One input as it is sent.

    Attributes:
        text: of a plain model, its prompt before it; of one with a chat template, put into it.
        messages: of a model with a chat template.
        options: of the request, such as `add_generation_prompt`.
        long: whether the server may refuse it for its length, and the others are compared all the same.
    """

    text: str | None
    messages: list[dict[str, Any]] | None
    options: dict[str, Any]
    long: bool = False


@dataclass(frozen=True)
class Received:
    """What the server answered to one input.

    Attributes:
        embedding: [D] float32.
        tokens: how many it counted; None where it does not say.
    """

    embedding: np.ndarray
    tokens: int | None


def image_url(image: Any) -> dict[str, Any]:
    """A part of a message: the image, exactly."""
    content = base64.b64encode(encode_image(image)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{content}"}}


class InputRefusedError(EvaluationError):
    """The server takes inputs, and not this one."""


def request_embeddings(inputs: Sequence[Sent], config: ParityConfig, name: str) -> list[Received | None]:
    """The server's embeddings, a request for each input, so no order is mistaken; None for a long refused one.

    Args:
        inputs: what to send.
        config: where to, and how.
        name: of the model, where the server lists none.

    Raises:
        EvaluationError: it cannot be reached, refuses an input, or answers with something else.
    """

    async def work() -> list[Received | None]:
        from megapairs_hf.annotation.client.http_client import connect_http

        async with connect_http() as http:
            server = EmbeddingServer(http, config)
            await server.begin(name)
            return [await server.embed_or_none(one) for one in inputs]

    return run(work())


class EmbeddingServer:
    """One server, for the time of a check."""

    def __init__(self, http: Any, config: ParityConfig) -> None:
        self.http, self.config, self.model = http, config, config.served_model
        self.root = config.endpoint.rstrip("/").removesuffix("/v1")
        self.tei = config.api == "tei"
        self.absent = ""
        token = os.environ.get(config.token_env, "").strip()
        self.headers = {"authorization": f"Bearer {token}"} if token else {}

    async def begin(self, name: str) -> None:
        """Find the name of the model, and what the server speaks."""
        if not self.model:
            listed = await self._call("GET", "/v1/models", None, absent={})
            models = listed.get("data") if isinstance(listed, dict) else None
            first = models[0] if isinstance(models, list) and models and isinstance(models[0], dict) else {}
            self.model = str(first.get("id") or name)

    async def embed_or_none(self, one: Sent) -> Received | None:
        """Its embedding of one input; None where it refuses a long one."""
        try:
            return await self.embed(one)
        except InputRefusedError:
            if not one.long:
                raise
            return None

    async def embed(self, one: Sent) -> Received:
        """Its embedding of one input."""
        if not self.tei:
            form = {"input": one.text} if one.messages is None else {"messages": one.messages, **one.options}
            body = {"model": self.model, "encoding_format": "float", **form}
            answer = await self._call("POST", "/v1/embeddings", body, absent=None if self._fixed() else {})
            if answer != {}:
                return self._openai(answer)
            self.tei = True
        if one.text is None:
            raise EvaluationError(
                f"{self.root} has no /v1/embeddings, and TEI's /embed takes texts alone; compare with `--inputs text`,"
                " or serve the model by vLLM (--runner pooling)"
            )
        return self._tei(await self._call("POST", "/embed", {"inputs": [one.text]}, absent=None))

    def _fixed(self) -> bool:
        return self.config.api == "openai"

    async def _call(self, method: str, path: str, body: Any, absent: Any) -> Any:
        """The JSON of an answer; `absent` where there is no such path, or an error where that is None."""
        import httpx2

        from megapairs_hf.annotation.client.http_client import StatusError

        url = self.root + path
        try:
            response = await self.http.request(
                method, url, json=body, headers=self.headers, timeout=self.config.timeout_s
            )
            return json.loads(response.content)
        except StatusError as error:
            if error.status in ABSENT and absent is not None:
                self.absent = f"; {path} says {printable(error.content[:300].decode('utf-8', 'replace'))}"
                return absent
            raise self._refusal(url, error.status, error.content[:300].decode("utf-8", "replace")) from error
        except ValueError as error:
            raise EvaluationError(f"{url} answers with something that is no JSON; check the address") from error
        except (httpx2.HTTPError, FaultError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise EvaluationError(f"{url} cannot be reached ({printable(reason)}); start the server first") from error

    def _refusal(self, url: str, status: int, message: str) -> EvaluationError:
        refusal = f"{url} refuses an input with HTTP {status}: {printable(message)}"
        if status in DENIED:
            return EvaluationError(f"{refusal}; put its token into ${self.config.token_env} (`--token-env`)")
        if status in ABSENT:
            why = "check the address, `--served-model`, and that it serves embeddings (vLLM: `--runner pooling`)"
            return EvaluationError(f"{refusal}{self.absent}; {why}")
        return (InputRefusedError if status in TOO_LONG else EvaluationError)(refusal)

    def _openai(self, answer: Any) -> Received:
        try:
            usage = answer.get("usage") or {}
            tokens = usage.get("prompt_tokens")
            self._only(answer["data"], "/v1/embeddings")
            values = np.asarray(answer["data"][0]["embedding"], np.float32)
        except (AttributeError, TypeError, KeyError, IndexError, ValueError) as error:
            raise self._odd("/v1/embeddings") from error
        return self._received(values, tokens if isinstance(tokens, int) else None, "/v1/embeddings")

    def _tei(self, answer: Any) -> Received:
        try:
            self._only(answer, "/embed")
            values = np.asarray(answer[0], np.float32)
        except (TypeError, KeyError, IndexError, ValueError) as error:
            raise self._odd("/embed") from error
        return self._received(values, None, "/embed")

    def _received(self, values: np.ndarray, tokens: int | None, path: str) -> Received:
        if values.ndim != 1 or not values.size:
            raise self._odd(path)
        if not np.isfinite(values).all():
            raise EvaluationError(
                f"{self.root}{path} answers with numbers that are not finite; serve the model in bfloat16 or float32"
            )
        return Received(values, tokens)

    def _only(self, rows: Any, path: str) -> None:
        if len(rows) > 1:
            raise EvaluationError(
                f"{self.root}{path} answers one input with {len(rows)} embeddings; let it pool the tokens into one"
            )

    def _odd(self, path: str) -> EvaluationError:
        return EvaluationError(f"{self.root}{path} answers, but with no list of numbers; does it serve embeddings?")
