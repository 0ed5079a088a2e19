"""A server of embeddings on loopback, with a small real model, that differs from the model in one thing at a time.

What surprises: it is a second implementation, of transformers' parts alone, so what it gives without a difference is
not what the code under test computed.
"""

from __future__ import annotations

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch
from PIL import Image

# what a model takes of an image
PIXELS = ("pixel_values", "image_sizes", "image_grid_thw", "mm_token_type_ids")


class Engine:
    """One model as a server runs it.

    Args:
        model: of transformers, without a head.
        tokenizer: its tokenizer.
        processor: of a model with a chat template; None for others.
        pooling: `last`, `mean`, `first` or `max`.
        normalize: whether embeddings are scaled.
        template: another chat template, or `""` to embed the bare text.
        special: whether the tokenizer adds its special tokens; `twice` adds them to what has them.
        suffix: tokens after all.
        system: whether a system message is read.
        prefix: text before every text.
        width: how many numbers are kept.
        shrink: side to which images are made smaller first.
        cut: tokens of a text; `side` is the one that is cut off, `keep_end` whether the end token stays.
        longest: tokens of a text that is not refused.
    """

    def __init__(self, model, tokenizer, processor=None, pooling="last", normalize=True, **options):
        self.model, self.tokenizer, self.processor = model.eval(), tokenizer, processor
        self.pooling, self.normalize = pooling, normalize
        self.options = {"template": None, "special": True, "suffix": [], "system": True, "prefix": ""} | options

    def of_text(self, text):
        return self.embed(self.options["prefix"] + text)

    def of_messages(self, messages, generation):
        images = [decoded(p["image_url"]["url"]) for m in messages for p in m["content"] if p["type"] == "image_url"]
        if self.options.get("shrink"):
            images = [image.resize((self.options["shrink"],) * 2).resize(image.size) for image in images]
        shown = [
            {
                "role": m["role"],
                "content": [{"type": "image"} if p["type"] == "image_url" else p for p in m["content"]],
            }
            for m in messages
            if self.options["system"] or m["role"] != "system"
        ]
        template = self.options["template"]
        if template == "":
            text = "".join(part.get("text", "<image>") for part in shown[-1]["content"])
        else:
            text = self.processor.apply_chat_template(
                shown, chat_template=template, tokenize=False, add_generation_prompt=generation
            )
        return self.embed(text, images)

    def embed(self, text, images=()):
        if images:
            features = dict(self.processor(text=[text], images=list(images), return_tensors="pt"))
        else:
            features = {"input_ids": torch.tensor([self.tokenizer(text)["input_ids"]])}
        ids = features["input_ids"]
        cut = self.options.get("cut") or 10**9
        if ids.shape[1] > cut and not images:
            ends = ids[:, -1:] if self.options.get("keep_end") else ids[:, :0]
            left = self.options.get("side") == "left"
            ids = ids[:, -cut:] if left else torch.cat([ids[:, : cut - ends.shape[1]], ends], 1)
        if ids.shape[1] > self.options.get("longest", 10**9):
            raise TooLongError
        if self.options["special"] is False:
            ids = ids[:, 1:]
        if self.options["special"] == "twice":
            ids = torch.cat([ids[:, :1], ids], 1)
        ids = torch.cat([ids, torch.tensor([self.options["suffix"]], dtype=ids.dtype)], 1)
        features = {name: features[name] for name in PIXELS if name in features}
        if "pixel_values" in features:
            features["pixel_values"] = features["pixel_values"].to(self.model.dtype)
        with torch.no_grad():
            states = self.model(input_ids=ids, attention_mask=torch.ones_like(ids), **features).last_hidden_state[0]
        pooled = {"last": states[-1], "first": states[0], "mean": states.mean(0), "max": states.max(0).values}
        row = pooled[self.pooling].float().numpy().astype(np.float64)[: self.options.get("width")]
        return (row / np.linalg.norm(row) if self.normalize else row), ids.shape[1]


class TooLongError(Exception):
    """A text of more tokens than the server takes."""


def decoded(url):
    return Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))).convert("RGB")


class EmbeddingDouble(ThreadingHTTPServer):
    """`api` is `openai` or `tei`; `usage` tells how many tokens there were; `answer` replaces every answer."""

    daemon_threads = True

    def __init__(self, engine, api="openai", *, usage=True, answer=None, models=("served",)):
        super().__init__(("127.0.0.1", 0), Handler)
        self.engine, self.api, self.usage, self.answer, self.models, self.bodies = (
            engine,
            api,
            usage,
            answer,
            models,
            [],
        )
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def send(self, status, content):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        if self.path == "/v1/models" and self.server.api == "openai":
            return self.send(200, {"data": [{"id": name} for name in self.server.models]})
        return self.send(404, {"error": "no such page"})

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.bodies.append((self.path, dict(self.headers), body))
        if self.path != {"openai": "/v1/embeddings", "tei": "/embed"}[server.api]:
            return self.send(404, {"error": "no such page"})
        if server.answer is not None:
            return self.send(*server.answer)
        try:
            return self.embed(body)
        except TooLongError:
            return self.send(413, {"error": "Input validation error: inputs must have less tokens"})

    def embed(self, body):
        server = self.server
        if server.api == "tei":
            return self.send(200, [server.engine.of_text(text)[0].tolist() for text in body["inputs"]])
        if "messages" in body:
            row, tokens = server.engine.of_messages(body["messages"], body.get("add_generation_prompt", False))
        else:
            row, tokens = server.engine.of_text(body["input"])
        usage = {"usage": {"prompt_tokens": tokens}} if server.usage else {}
        return self.send(200, {"object": "list", "data": [{"index": 0, "embedding": row.tolist()}], **usage})
