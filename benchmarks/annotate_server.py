"""A chat-completions server of fixed latency and capacity for `benchmarks/annotate.py`, with faults to order.

Written on bare asyncio so that it takes as little CPU time as it can: the client is what is measured. A response
depends on the request's seed only, so that a run with faults must end in the artifact of a run without. What
surprises: it appends every response that it sent whole to a log, so the benchmark knows which request was sent twice.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
from collections import deque
from pathlib import Path

SEED = re.compile(rb'"seed": ?(\d+)')
LENGTH = re.compile(rb"content-length: ?(\d+)", re.IGNORECASE)
WORDS = ("red", "blue", "wide", "round", "striped", "wooden", "tall", "quiet", "golden", "snowy", "small", "bright")
PLACES = ("beach", "street", "kitchen", "garden", "station", "forest", "harbour", "market", "bridge", "meadow")
FAULTS = ("429", "429-after", "500", "502", "503", "hang", "reset", "truncated", "invalid", "empty", "html")


def response_to(seed: int) -> tuple[str, str]:
    """The text of the "model" for this seed, and its finish reason."""
    if seed % 97 == 0:
        return "I would rather not say anything about this.", "stop"
    rng = random.Random(seed)
    word, place = rng.choice(WORDS), rng.choice(PLACES)
    lines = [
        f"make it {word} and number {seed}",
        f"the same one at a {place} with sign {seed}",
        f"show it {word} instead, near the {place} of {seed}",
        f"now with a {word} {place} and {seed % 9 + 2} people behind it",
    ]
    text = "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1))
    # one in 89 always runs into the length limit: its last line is half there
    return (text[:-12], "length") if seed % 89 == 0 else (text, "stop")


def completion(seed: int) -> bytes:
    """The body of a good response."""
    text, finish = response_to(seed)
    return json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 700, "completion_tokens": 60, "total_tokens": 760},
        }
    ).encode()


def http(status: int, body: bytes, kind: str = "application/json", more: str = "", length: int | None = None) -> bytes:
    """A whole HTTP/1.1 response."""
    length = len(body) if length is None else length
    return f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n{more}\r\n".encode() + body


class Server:
    """Latency, capacity, and which requests fail."""

    def __init__(self, latency_s: float, capacity: int, fail: float, log: Path | None) -> None:
        self.latency_s, self.capacity, self.fail = latency_s, capacity, fail
        self.log = log.open("a") if log else None
        self.busy, self.waiting = 0, deque()
        self.faults = random.Random(7)

    def take(self, connection: Connection, body: bytes) -> None:
        """Serve a request now, or when there is room."""
        if self.busy < self.capacity:
            self.busy += 1
            asyncio.get_running_loop().call_later(self.latency_s, self.serve, connection, body)
        else:
            self.waiting.append((connection, body))

    def serve(self, connection: Connection, body: bytes) -> None:
        """Respond, and take the next in the queue."""
        self.busy -= 1
        if self.waiting:
            self.take(*self.waiting.popleft())
        match = SEED.search(body)
        seed = int(match[1]) if match else 0
        if self.faults.random() < self.fail:
            return connection.spoil(self.faults.choice(FAULTS), seed)
        connection.send(http(200, completion(seed)))
        if self.log and match:
            self.log.write(f"{seed}\n")
            self.log.flush()
        return None


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, server: Server) -> None:
        self.server, self.buffer, self.need = server, bytearray(), 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Collect one request."""
        self.buffer += data
        if not self.need:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            match = LENGTH.search(self.buffer[:end])
            self.need = end + 4 + (int(match[1]) if match else 0)
        if len(self.buffer) >= self.need:
            body, self.buffer, self.need = bytes(self.buffer[: self.need]), self.buffer[self.need :], 0
            self.server.take(self, body)

    def send(self, content: bytes) -> None:
        """Write, if the client is still there."""
        if not self.transport.is_closing():
            self.transport.write(content)

    def spoil(self, fault: str, seed: int) -> None:
        """Fail in one of the ways in which servers fail."""
        whole = completion(seed)
        half = whole[: len(whole) // 2]
        if fault == "hang":
            return
        if fault == "reset":
            self.send(http(200, half, length=len(whole)))
            self.transport.close()
            return
        faulty = {
            "429-after": lambda: http(429, b"{}", more="retry-after: 0.2\r\n"),
            "truncated": lambda: http(200, half),
            "invalid": lambda: http(200, b"{'choices': nan"),
            "empty": lambda: http(200, b'{"choices": [], "usage": null}'),
            "html": lambda: http(200, b"<html>a proxy's page</html>", "text/html"),
        }
        self.send(faulty[fault]() if fault in faulty else http(int(fault), b'{"error": "scripted"}'))


async def main(latency_s: float, capacity: int, fail: float, log: str) -> None:
    """Serve until killed; the port is printed on stdout."""
    server = Server(latency_s, capacity, fail, Path(log) if log else None)
    listener = await asyncio.get_running_loop().create_server(lambda: Connection(server), "127.0.0.1", 0, backlog=512)
    print(listener.sockets[0].getsockname()[1], flush=True)
    await listener.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]))
