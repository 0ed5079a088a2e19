"""A chat-completions server on a real loopback socket that misbehaves to order.

What surprises: a port stays its double's own while nobody listens there, so that a client is refused for certain, and
a second double can take the port over.
"""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from tests.small import reserve


def describe(body):
    """A reply that depends on the question only; it tells the sizes and colors of the images that arrived."""
    images = []
    for part in body["messages"][0]["content"]:
        if part["type"] == "image_url":
            head, content = part["image_url"]["url"].split(",", 1)
            assert head == "data:image/jpeg;base64"
            image = Image.open(io.BytesIO(base64.b64decode(content)))
            image.load()
            assert image.format == "JPEG"
            images.append((image.size, image.convert("RGB").getpixel((0, 0))))
    told = "; ".join(f"{size[0]}x{size[1]} {color}" for size, color in images)
    return f"Both are flat colors: {told}. Seed {body['seed']}."


def instruct(body):
    seed = body["seed"]
    return f"1. make it shade {seed}\n2. the same but in shade {seed}\n3. with shade {seed} all over\n4. blue"


class ChatDouble(ThreadingHTTPServer):
    """`script(body, n)` gives None for a good reply, or a fault; n counts how often this question was asked.

    With `models`, those are what it serves: every other name is a 404, and the list is at /v1/models.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, answer=describe, script=None, token=None, port=0, models=None):
        self.port, self.gone = reserve(port), threading.Event()
        super().__init__(self.port.getsockname(), Handler)
        self.answer, self.script, self.token, self.models, self.looks = answer, script, token, models, 0
        self.own, self.asked, self.answered, self.bodies, self.headers = Counter(), Counter(), Counter(), [], []
        self.times, self.guard, self.sent = [], threading.Lock(), 0
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def stop(self):
        """Stop listening; the port stays reserved until `close`."""
        self.shutdown()
        self.server_close()

    def close(self):
        self.stop()
        self.gone.set()
        self.port.close()

    def handle_error(self, request, client_address):
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, status, content, kind="application/json", **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(headers.pop("length", len(content))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        self.server.looks += 1
        if self.path != "/v1/models" or self.server.models is None:
            return self.send(404, {"error": "no such page"})
        if not isinstance(self.server.models, list):
            return self.send(200, self.server.models)
        return self.send(200, {"object": "list", "data": [{"id": name} for name in self.server.models]})

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = json.dumps(body, sort_keys=True)
        # what the client sends on its own account (is the server up?) has no seed
        own = "seed" not in body
        body.setdefault("seed", 0)
        with server.guard:
            asked = server.own if own else server.asked
            asked[question] += 1
            count = asked[question]
            if not own:
                server.bodies.append(body)
                server.times.append(time.monotonic())
            server.headers.append(dict(self.headers))
        if server.token and self.headers.get("Authorization") != f"Bearer {server.token}":
            return self.send(401, {"error": f"bad token {self.headers.get('Authorization')}"})
        if self.path != "/v1/chat/completions":
            return self.send(404, {"error": "no such page"})
        if isinstance(server.models, list) and body["model"] not in server.models:
            return self.send(404, {"error": {"message": f"The model `{body['model']}` does not exist.", "code": 404}})
        fault = server.script(body, count) if server.script else None
        if fault:
            return self.fail(fault, server.answer(body))
        if own:
            return self.send(200, completion("yes"))
        with server.guard:
            server.answered[question] += 1
        return self.send(200, completion(server.answer(body)))

    def fail(self, fault, text):
        kind, *details = fault
        whole = json.dumps(completion(text)).encode()
        if kind == "status":
            return self.send(details[0], {"error": "scripted"}, **(details[1] if len(details) > 1 else {}))
        if kind == "refuse":
            return self.send(400, {"error": details[0]})
        if kind == "hang":
            self.close_connection = True
            self.server.gone.wait()
            return None
        if kind == "truncated":
            # told, or the client might send the next question into a connection that is about to be closed
            self.close_connection = True
            return self.send(200, whole[: len(whole) // 2], Connection="close")
        if kind == "reset":
            self.close_connection = True
            return self.send(200, whole[: len(whole) // 2], length=len(whole))
        if kind == "endless":
            return self.endless(*details)
        bodies = {
            "html": lambda: b"<html>a proxy's page</html>",
            "empty": lambda: {"choices": [], "usage": None},
            "body": lambda body: body,
            "reply": completion,
        }
        return self.send(200, bodies[kind](*details), "text/html" if kind == "html" else "application/json")

    def endless(self, piece):
        """A body in pieces without an end, until the client has had enough of it."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while not self.server.gone.is_set():
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.server.sent += len(piece)


def completion(text, finish_reason="stop", usage=..., **message):
    message = {"role": "assistant", "content": text, **message}
    counts = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18} if usage is ... else usage
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "double",
        "choices": [{"index": 0, "finish_reason": finish_reason, "message": message}],
        "usage": counts,
    }
