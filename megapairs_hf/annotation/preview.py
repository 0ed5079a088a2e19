"""Look before you pay: the first prompts and responses as text, and what all of them would cost.

What surprises: nothing is written but the journal, so what was asked for a look is not asked again by the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.annotation.engines.row_batch import RowBatch, priced
from megapairs_hf.annotation.shard_io import journal_folder
from megapairs_hf.annotation.tasks import decided
from megapairs_hf.core.errors import ConfigError
from megapairs_hf.core.formatting import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.annotation.client.messages import Request, Response
    from megapairs_hf.annotation.shard_io import Step
    from megapairs_hf.annotation.tasks import Outcome, Row


@dataclass(frozen=True)
class Preview:
    """What was asked about one row, and what became of it.

    Attributes:
        key: of the row.
        exchanges: requests with their responses; none for an engine without prompts.
        outcome: what became of it.
    """

    key: str
    exchanges: list[tuple[Request, Response]]
    outcome: Outcome


def preview(step: Step, limit: int) -> list[Preview]:
    """Annotate the first rows of a stage's source, and write nothing but the journal.

    Args:
        step: of `describe_step` and its like.
        limit: how many rows.

    Raises:
        ServerUnavailableError: the servers refuse or fail every request.
        BudgetSpentError: the budget is exhausted.
    """
    function, table = step.function, first_rows(step, limit)
    if not function.asks:
        rows = table.to_pylist()
        outcomes = function.by_function(rows, lambda: None)
        return [Preview(function.key_of(row), [], outcome) for row, outcome in zip(rows, outcomes, strict=True)]
    function.journal = str(journal_folder(step.out))
    session, batch = function.session(), RowBatch(table, function.make_task(table))
    try:
        batch.resume(session.journal)
        session.complete(batch)
        previews = []
        for number, row in batch.rows():
            exchanges, outcome = _exchanges(batch, row, session.journal)
            decided = batch.outcomes.get(number, outcome)
            assert decided is not None
            previews.append(Preview(function.key_of(row), exchanges, decided))
        return previews
    finally:
        batch.task.close()
        function.close()


def first_rows(step: Step, limit: int) -> pa.Table:
    """The first rows of a stage's source."""
    tables, missing = [], limit
    for index in range(len(step.source.manifest.shards)):
        if missing > 0:
            tables.append(step.rows(index).slice(0, missing))
            missing -= len(tables[-1])
    if not tables:
        raise ConfigError(f"{step.source.path} has no rows to look at")
    return pa.concat_tables(tables)


def _exchanges(batch: RowBatch, row: Row, journal: Any) -> tuple[list[tuple[Request, Response]], Outcome | None]:
    """The requests about a row with their responses in the journal, and what these amount to if they are all there."""
    exchanges: list[tuple[Request, Response]] = []
    responses: dict[int, Response] = {}
    while isinstance(outcome := decided(batch.task, row, responses), int):
        request = batch.task.request(row, outcome)
        response = journal.get(request.key)
        if response is None:
            return exchanges, None
        responses[outcome] = response
        exchanges.append((request, response))
    return exchanges, priced(outcome, responses)


def preview_text(previews: Sequence[Preview]) -> str:
    """The prompts, the responses and what was made of them, safe for a terminal; images as `<image id>`."""
    lines = []
    for number, each in enumerate(previews, 1):
        lines.append(f"--- {number} of {len(previews)}: {printable(each.key)}")
        for request, response in each.exchanges:
            lines += ["prompt:", _indented(prompt_text(request))]
            tokens = f"{response.prompt_tokens or 0:,} + {response.completion_tokens or 0:,} tokens"
            lines += [f"response ({printable(response.finish_reason)}, {tokens}):", _indented(response.text)]
        outcome = each.outcome
        if outcome.row is None:
            lines.append(f"rejected: {outcome.reason}: {printable(outcome.detail)}")
        else:
            names = [
                name
                for name in ("caption", "description", "instructions", "verified", "candidate_scores")
                if name in outcome.row
            ]
            lines += [f"{name}: {_value(outcome.row[name])}" for name in names]
    return "\n".join(lines)


def prompt_text(request: Request) -> str:
    """The text of a request, images as `<image id>`."""
    parts: list[str] = []
    for message in request.messages:
        content = message["content"]
        if isinstance(content, str):
            parts.append(content)
            continue
        for part in content:
            is_image = part["type"] == "image_url"
            parts.append(f"<image {request.images[part['image_url']['url']]}>" if is_image else part["text"])
    return "\n".join(parts)


def _indented(text: str) -> str:
    return "\n".join(f"  {printable(line)}" for line in text.split("\n"))


def _value(value: Any) -> str:
    return "".join(f"\n  - {printable(str(each))}" for each in value) if isinstance(value, list) else printable(value)


def estimate_text(step: Step, previews: Sequence[Preview]) -> str:
    """What all rows would cost, by the tokens and latencies of a few: tokens, money and hours.

    Raises:
        ConfigError: there is no response to measure.
    """
    responses = [response for each in previews for _, response in each.exchanges]
    if not responses:
        raise ConfigError("there is no response to measure; choose an engine that asks a model, or look at --show")
    unit, total, sample = step.function.UNIT, step.source.rows, len(previews)
    prompt, completion = (sum(each.outcome.cost[i] for each in previews) / sample for i in (1, 2))
    seconds = sum(response.latency_s for response in responses) / sample
    concurrency, budget = step.config.endpoint.concurrency, step.config.budget
    lines = [
        f"measured on {sample:,} {unit}: {len(responses) / sample:.2f} requests, {prompt:,.0f} prompt tokens and"
        f" {completion:,.0f} completion tokens each; {sum(each.outcome.row is None for each in previews):,} rejected",
        f"{total:,} {unit}: {total * len(responses) / sample:,.0f} requests, {total * prompt:,.0f} prompt tokens and"
        f" {total * completion:,.0f} completion tokens",
    ]
    if budget.price_prompt or budget.price_completion:
        lines.append(f"money: {total * budget.cost(1, 0) * prompt + total * budget.cost(0, 1) * completion:,.2f}")
    else:
        lines.append("money: unknown; set budget.price_prompt and budget.price_completion (of a million tokens)")
    if step.config.engine == "openai":
        hours = total * seconds / 3600
        lines.append(
            f"hours: {hours:,.2f} one request at a time; {hours / concurrency:,.2f} with {concurrency:,} in flight"
            " (`endpoint.concurrency`), if the servers keep this latency"
        )
    return "\n".join(lines)
