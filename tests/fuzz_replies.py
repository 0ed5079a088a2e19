"""Seeded mutations of response bodies: `python tests/fuzz_replies.py [COUNT]`, 500 without a number.

Each body goes through a real socket to the client, and what comes out through the parsers of both steps. A mutation
may cost its own response and nothing else: no exception but those that are meant, no wait, as many outcomes as
requests. Mutations of what nobody reads (the order of keys, metadata, what follows the value) cost nothing.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from megapairs_hf.annotation.client.budget import Usage
from megapairs_hf.annotation.client.client import Client
from megapairs_hf.annotation.client.endpoint import Endpoint
from megapairs_hf.annotation.client.messages import Request
from megapairs_hf.annotation.filters import filter_instructions
from megapairs_hf.annotation.prompts.parsing import parse_describe, parse_instruct
from megapairs_hf.core.errors import ResponseRejectedError
from tests.annotation.double import ChatDouble, completion

DESCRIPTION = "Both images show a dog on a lawn. In the target image the dog is wet, and it rains on a red ball."
LIST = "1. make the dog wet\n2. the same lawn in the rain\n3. add a red ball\n4. show it soaked, with a ball"
TEXTS = [
    DESCRIPTION,
    LIST,
    f"<think>First 1. wrong\n2. wrong</think>{DESCRIPTION}",
    f"[THINK]hm[/THINK]\n{LIST}",
    f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>{DESCRIPTION}<|return|>",
    f"{DESCRIPTION}<|im_end|>",
    json.dumps({"instructions": [line[3:] for line in LIST.splitlines()]}),
    "```json\n"
    + json.dumps([{"type": "x", "instruction": line[3:]} for line in LIST.splitlines()], indent=1)
    + "\n```",
    "| # | instruction |\n|---|---|\n"
    + "\n".join(f"| {n} | {line[3:]} |" for n, line in enumerate(LIST.splitlines())),
    "### Instruction 1\nmake the dog wet\n\n### Instruction 2\nin the rain\n\n### Instruction 3\na red ball",
]
ODD = [
    None,
    True,
    False,
    0,
    -1,
    1e999,
    10**30,
    "",
    "x",
    "\ud83d",
    [],
    [None],
    {},
    {"a": 1},
    [[[[]]]],
    "error",
    "length",
]
PIECES = [
    *("<think>", "</think>", "<|im_end|>", "</s>", "[INST]", "<answer>", "```", "\n1. "),
    *("\\u00", "\\ud83d", "{", "[", '"', "]}", "|"),
    *("\x00", "\u202e", "\ufeff", "<" * 500, "[" * 2000, "( " * 1000, "<think>" * 3000, "1. " * 3000, "| " * 3000),
    *("*" * 5000, "a " * 5000, "😀" * 500, "①" * 500, "&amp;" * 500, "no images " * 500, "i cannot " * 500),
    *("\n" * 5000, "{'" * 3000),
]  # fmt: skip
SLOW_S = 2.0


def texts_of_seeds() -> list[dict]:
    """The bodies that are mutated: each text as it is, in parts, with logprobs, and beside thoughts."""
    bodies = []
    for text in TEXTS:
        bodies += [
            completion(text),
            completion([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": text}]),
            completion(text, usage={"prompt_tokens": "11", "completion_tokens": 7.0}, reasoning_content="hm"),
        ]
        bodies[-1]["choices"][0]["logprobs"] = {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": []}]}
    return bodies


def nodes(value, path=()):
    """The paths of all values inside a value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from nodes(item, (*path, key))


def replaced(value, path, new):
    """A value with another one at a path; without that one where it is `...`."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(path) > 1:
        copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    elif new is ...:
        del copy[path[0]]
    else:
        copy[path[0]] = new
    return copy


def at(value, path):
    for key in path:
        value = value[key]
    return value


def mutate_json(body, draw):
    """Another value somewhere, or none, or a text with something in it."""
    path = draw.choice([path for path in nodes(body) if path])
    old = at(body, path)
    kind = draw.randrange(5)
    if kind == 0:
        return replaced(body, path, ...)
    if kind == 1:
        return replaced(body, path, [old])
    if kind == 2:
        return replaced(body, path, at(body, draw.choice(list(nodes(body)))))
    if kind == 3 and isinstance(old, str):
        cut = draw.randrange(len(old) + 1)
        return replaced(body, path, old[:cut] + draw.choice(PIECES) + old[cut:])
    return replaced(body, path, draw.choice(ODD))


def mutate_text(body, draw):
    """The text alone, with something in it or cut off."""
    paths = [p for p in nodes(body) if p and p[-1] in ("content", "text") and isinstance(at(body, p), str)]
    path = draw.choice(paths)
    text = at(body, path)
    for _ in range(draw.randrange(1, 4)):
        cut = draw.randrange(len(text) + 1)
        text = draw.choice((text[:cut], text[cut:], text[:cut] + draw.choice(PIECES) + text[cut:]))
    return replaced(replaced(body, path, text), ("choices", 0, "finish_reason"), draw.choice(["stop", "length", 3]))


def mutate_bytes(content, draw):
    """Bytes that are flipped, cut out, doubled or put in."""
    for _ in range(draw.randrange(1, 5)):
        start = draw.randrange(len(content) + 1)
        end = min(len(content), start + draw.randrange(1, 40))
        some = draw.randbytes(draw.randrange(1, 8))
        new = draw.choice((b"", some, content[start:end] * 2, b'"', b"\xff", b"9" * 50, b"[" * 100_000))
        content = content[:start] + new + content[end:]
    return content


def mutate_ignored(body, draw):
    """What nobody reads: the order of keys, blanks, metadata, what stands around the value."""
    path = draw.choice(
        [("id",), ("created",), ("model",), ("system_fingerprint",), ("choices", 0, "logprobs"), ("x",)]
    )
    body = replaced(body, path, draw.choice(ODD) if path != ("x",) else {"y": [1, {"z": None}]})
    shuffle = lambda value: (  # noqa: E731 - one line, used here alone
        {key: shuffle(value[key]) for key in draw.sample(list(value), len(value))}
        if isinstance(value, dict)
        else value
    )
    content = json.dumps(shuffle(body), indent=draw.choice([None, 0, 3])).encode()
    return (
        draw.choice([b"", b"\n\n", b"\xef\xbb\xbf"])
        + content
        + draw.choice([b"", b"\r\n", b"\x00\x00", b" trailing", b"}"])
    )


def mutations(count: int, seed: int) -> list[tuple[str, bytes, str]]:
    """Bodies with the kind of their mutation and their text before it."""
    draw, seeds = random.Random(seed), texts_of_seeds()
    bodies = []
    for n in range(count):
        body = draw.choice(seeds)
        text = TEXTS[seeds.index(body) // 3]
        kind = ("none", "json", "text", "bytes", "ignored")[n % 5]
        if kind in ("json", "text"):
            content = json.dumps((mutate_json if kind == "json" else mutate_text)(body, draw)).encode()
        elif kind == "bytes":
            content = mutate_bytes(json.dumps(body).encode(), draw)
        else:
            content = mutate_ignored(body, draw) if kind == "ignored" else json.dumps(body).encode()
        bodies.append((kind, content, text))
    return bodies


def outcome_of(response) -> str:
    """What becomes of a response in both steps: `good` where one of them takes it, else the reasons."""
    if response.refused:
        return response.refused
    reasons = []
    try:
        parse_describe(response.text, response.finish_reason)
    except ResponseRejectedError as error:
        reasons.append(error.reason)
    try:
        items = parse_instruct(response.text, response.finish_reason)
        if len(filter_instructions(items, min_words=2, max_words=60, prompt="x", language="en")[0]) < 3:
            reasons.append("too_few_instructions")
    except ResponseRejectedError as error:
        reasons.append(error.reason)
    return "good" if len(reasons) < 2 else "/".join(reasons)


def exchange(bodies) -> list:
    """The responses to one request per body, from a server that sends that body each time."""
    server = ChatDouble(
        answer=lambda _: "yes", script=lambda body, _: ("body", bodies[body["seed"]][1]) if body["seed"] else None
    )
    bodies = [("none", b"", ""), *bodies]

    async def work():
        settings = {"backoff_s": 0.001, "max_backoff_s": 0.001, "max_retries": 1, "concurrency": 16}
        async with Client(Endpoint(urls=(server.url,), **settings), Usage(), "double") as client:
            # the first is good: a server that refuses everything from the start would stop the run
            await client.request(lambda: Request([], "double", {"seed": 0}))
            return await asyncio.gather(
                *(client.request(lambda n=n: Request([], "double", {"seed": n})) for n in range(1, len(bodies)))
            )

    try:
        return asyncio.run(work())
    finally:
        server.close()


def run(count: int = 500, seed: int = 0) -> Counter:
    """Send mutated bodies and count what becomes of them, by kind.

    Raises:
        AssertionError: a body cost more than its own response.
    """
    bodies = mutations(count, seed)
    responses = exchange(bodies)
    assert len(responses) == count
    counts: Counter = Counter()
    for (kind, content, text), response in zip(bodies, responses, strict=True):
        start = time.perf_counter()
        outcome = outcome_of(response)
        assert time.perf_counter() - start < SLOW_S, content[:200]
        if kind in ("none", "ignored"):
            assert outcome == "good", (kind, outcome, text, content[:500], response)
        counts[kind, "good" if outcome == "good" else "rejected"] += 1
    assert counts.total() == count
    return counts


if __name__ == "__main__":
    for (kind, outcome), number in sorted(run(int(sys.argv[1]) if len(sys.argv) > 1 else 500).items()):
        print(f"{kind:8} {outcome:9} {number:,}")
