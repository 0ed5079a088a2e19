"""Requests and responses as files in OpenAI's batch form, which `vllm run-batch` and paid batch services read.

A line of the requests holds the whole body, images included, and the key of the request as its `custom_id`. Responses
may come in any order, over several files, with some missing and some broken: what a line holds goes into the journal
and through the same checks as a server's response. What surprises: the artifact is written only when every row has an
outcome; until then another file of requests holds what is left, second requests after useless responses among it.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from megapairs_hf.annotation.client.completion import FaultError, read_completion
from megapairs_hf.annotation.client.messages import Response
from megapairs_hf.annotation.client.transport import RETRIED
from megapairs_hf.annotation.engines.async_runner import NoResponseError
from megapairs_hf.annotation.engines.journal import Journal
from megapairs_hf.annotation.engines.row_batch import RowBatch
from megapairs_hf.annotation.runner import annotate
from megapairs_hf.annotation.shard_io import journal_folder
from megapairs_hf.artifacts import storage
from megapairs_hf.core.errors import ConfigError, ImageRejectedError
from megapairs_hf.core.progress import note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from megapairs_hf.annotation.client.messages import Request
    from megapairs_hf.annotation.shard_io import Step
    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.storage import PathLike

CHAT = "/v1/chat/completions"
GROUP = 500
TAKEN = "taken"
FIRST_ERROR, FIRST_FAULT = 400, 500


def write_requests(step: Step, path: PathLike) -> int:
    """Write every request that has no response yet.

    Args:
        step: of `describe_step` and its like.
        path: the file of JSON lines; one that is there is replaced.

    Returns:
        How many there are.

    Raises:
        ConfigError: the engine is not `openai`.
        ArtifactError: the file cannot be written.
    """
    _require_servers(step)
    target = Path(path)
    part = target.with_name(f"{target.name}.part")
    count = 0
    with storage.explained(path):
        with Journal(journal_folder(step.out)) as journal, part.open("wb") as file:
            for key, request in _open_requests(step, journal, with_images=True):
                body = {"messages": request.messages, "model": request.model} | request.parameters
                body = {name: value for name, value in body.items() if value is not None}
                line = {"custom_id": key, "method": "POST", "url": CHAT, "body": body}
                file.write(json.dumps(line).encode() + b"\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    return count


def annotate_from_file(step: Step, path: PathLike) -> Artifact:
    """Take responses from a file, and make the artifact if every row then has an outcome.

    Args:
        step: of `describe_step` and its like.
        path: JSON lines as batch services write them, in any order.

    Raises:
        AnnotationError: some rows have no response that is any use yet; those that came are kept.
        ConfigError: the engine is not `openai`, or there is no such file.
    """
    _require_servers(step)
    if not Path(path).is_file():
        raise ConfigError(f"there is no file {path}; check the path")
    with Journal(journal_folder(step.out)) as journal:
        expected = {key for key, _ in _open_requests(step, journal, with_images=False)}
        refusals, counts = _take(Path(path), journal, expected)
    others = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common() if reason != TAKEN)
    note(f"{path}: {counts[TAKEN]:,} responses taken{f'; left out: {others}' if others else ''}")

    async def ask(request: Request, address: Callable[[str], str]) -> Response:
        if request.key in refusals:
            return refusals[request.key]
        # a row whose image is missing has its outcome; one whose response is missing has none
        request.filled(address)
        raise NoResponseError

    return annotate(step, ask)


def _require_servers(step: Step) -> None:
    if step.config.engine != "openai":
        raise ConfigError(f"batch files are for `engine: openai`, not {step.config.engine!r}; choose that engine")


def _open_requests(step: Step, journal: Journal, *, with_images: bool) -> Iterator[tuple[str, Request]]:
    """The requests without a response, with their keys; equal ones once.

    Args:
        step: the rows.
        journal: the responses.
        with_images: whether the requests hold their images; rows whose image cannot be read are then left out.
    """
    seen: set[str] = set()
    for index in range(len(step.source.manifest.shards)):
        table = step.rows(index)
        batch = RowBatch(table, step.function.make_task(table), index)
        batch.resume(journal, load=with_images)
        for number, row in batch.rows(batch.pending):
            for attempt in batch.task.open_attempts(row, batch.responses.get(number, {})):
                request = batch.task.request(row, attempt)
                key = request.key
                if key in seen or journal.get(key) is not None:
                    continue
                try:
                    request = request.filled(batch.task.address) if with_images else request
                except ImageRejectedError:
                    continue
                seen.add(key)
                yield key, request
        batch.task.close()


def _take(path: Path, journal: Journal, expected: set[str]) -> tuple[dict[str, Response], Counter[str]]:
    """Put the responses of a file into the journal.

    Returns:
        The refusals by key, which no journal keeps; and counts of the lines, by what became of them.
    """
    refusals: dict[str, Response] = {}
    counts: Counter[str] = Counter()
    group: dict[str, Response] = {}
    for line in _lines(path):
        key, response, outcome = _parse(line)
        if outcome == TAKEN and key not in expected:
            outcome = "to other requests (of other settings or data, or answered before)"
        counts[outcome] += 1
        if outcome != TAKEN:
            continue
        expected.discard(key)
        if response.refused:
            refusals[key] = response
        else:
            group[key] = response
        if len(group) == GROUP:
            journal.add_all(list(group.items()))
            group = {}
    journal.add_all(list(group.items()))
    return refusals, counts


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, a last one without a line break too."""
    with path.open("rb") as file:
        yield from (line for line in file if line.strip())


def _parse(line: bytes) -> tuple[str, Response, str]:
    """Key, response, and what becomes of a line."""
    nothing = Response("", "error")
    try:
        record = json.loads(line)
        key, response = str(record["custom_id"]), record.get("response") or {}
        status = int(response.get("status_code", 200))
        if record.get("error") or status >= FIRST_ERROR:
            words = " ".join(json.dumps(record.get("error") or response.get("body")).split())[:300]
            # what else a service could not do may work the next time
            refused = FIRST_ERROR <= status < FIRST_FAULT and status not in RETRIED
            return key, Response(words, "error", refused="refused"), TAKEN if refused else "failed"
        return key, read_completion(response["body"]), TAKEN
    except FaultError:
        return key, nothing, "failed"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "", nothing, "broken"
