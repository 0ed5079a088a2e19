"""From the shards of one artifact to the shards of the next: the inner part of a row function, applied shard by shard.

Output shard i comes from input shard i, so the result does not depend on the number of processes. All shards of a
process go through one stream: while the last rows of a shard wait for responses, requests of the next shard are sent
already, and the images of the one after are being read. What surprises: a shard's rows are made from the journal after
all of its responses have come, in the order of the source, so neither the order of responses nor an interruption shows
in the artifact, and no response waits in memory.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.annotation.client.budget import Usage
from megapairs_hf.annotation.client.client import Client
from megapairs_hf.annotation.client.event_loop import rare_collection, run
from megapairs_hf.annotation.engines.async_runner import AsyncRunner, by_client
from megapairs_hf.annotation.engines.journal import Journal
from megapairs_hf.annotation.response_watch import advice
from megapairs_hf.annotation.shard_io import ShardIO, journal_folder, remove_journal, write_shard
from megapairs_hf.annotation.text_stats import MAX_TEXTS, text_stats
from megapairs_hf.artifacts.artifact import Artifact, read_table
from megapairs_hf.artifacts.replace import came_to_nothing
from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.storage import join
from megapairs_hf.artifacts.writer import ArtifactWriter, create_artifact
from megapairs_hf.core import distributed
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import AnnotationError, ArtifactError
from megapairs_hf.core.progress import Progress, note

if TYPE_CHECKING:
    from collections.abc import Iterable

    from megapairs_hf.annotation.client.budget import Budget
    from megapairs_hf.annotation.engines.async_runner import Ask
    from megapairs_hf.annotation.engines.row_batch import RowBatch
    from megapairs_hf.annotation.response_watch import ResponseWatch
    from megapairs_hf.annotation.shard_io import Step

LOCAL_ENGINES = ("transformers", "clip")
# rows whose images are not there: no engine is to blame
ABSENT = {"missing_image", "unreadable_image"}
TEXTS = {"captions": "caption", "descriptions": "description", "instructions": "instructions"}


def annotate(step: Step, ask: Ask | None = None) -> Artifact:
    """Make an artifact by the inner part of a row function.

    Args:
        step: the artifact.
        ask: gives the response to a request; None for the servers of the settings.

    Raises:
        ServerUnavailableError: the servers refuse or fail every request; responses so far are kept.
        BudgetSpentError: the budget is exhausted; responses so far are kept.
        ArtifactError: every row was rejected.
    """
    writer = _open_writer(step)
    if isinstance(writer, Artifact):
        return writer
    with writer:
        if step.config.engine in LOCAL_ENGINES:
            # the other engines need the base alone
            require("models", f"`engine: {step.config.engine}`")
        with _progress(step, writer) as bar:
            if step.config.engine == "openai":
                with Journal(journal_folder(step.out)) as journal:
                    _by_requests(ShardIO(step, writer, journal), bar, ask)
            elif step.config.engine == "transformers":
                _by_local_model(step, writer, bar)
            else:
                for index in writer.mine():
                    rows = step.rows(index).to_pylist()
                    outcomes = step.function.by_function(rows, bar.advance)
                    write_shard(step, writer, index, zip(rows, outcomes, strict=True))
        stats = _text_stats(step, writer) | _spend(step.config.budget, writer)
        artifact = writer.finish(stats | (step.facts(writer) if step.facts is not None else {}))
    remove_journal(step.out)
    return _check_rows(step, artifact)


def _by_local_model(step: Step, writer: ArtifactWriter, bar: Progress) -> None:
    session = step.function.local_session(journal_folder(step.out))
    session.rows_left = lambda: bar.total - bar.count
    shards = ShardIO(step, writer, session.journal)
    try:
        for index in writer.mine():
            batch = shards.read(index)
            bar.advance(batch.table.num_rows - len(batch.pending))
            session.complete(batch, lambda: bar.advance(1, session.usage.line()))
            shards.write(batch)
    finally:
        session.close()


def _by_requests(shards: ShardIO, bar: Progress, ask: Ask | None) -> None:
    config = shards.step.config
    usage = Usage(config.budget, shards.journal.sums())

    async def work() -> None:
        with rare_collection():
            if ask is not None:
                await annotate_shards(shards, ask, usage, bar, shards.writer.mine())
                return
            async with Client(config.endpoint, usage, config.model) as client:
                await annotate_shards(shards, by_client(client), usage, bar, shards.writer.mine(), watch)

    watch = shards.step.function.watch()
    run(work())
    if watch is not None and (warning := watch.warning()):
        note(warning)


async def annotate_shards(
    shards: ShardIO,
    ask: Ask,
    usage: Usage,
    bar: Progress,
    indices: Iterable[int],
    watch: ResponseWatch | None = None,
) -> None:
    """Send the requests about all rows of some shards, and write each shard when it is complete.

    Args:
        shards: reads and writes them.
        ask: gives the response to a request.
        usage: counters.
        bar: progress.
        indices: the shards.
        watch: looks at the first responses.

    Raises:
        UselessResponsesError: most of the first responses are of no use; they are kept.
        BudgetSpentError: the budget is exhausted; what was in flight is kept.
        AnnotationError: some rows have no response, and none is to be waited for.
    """
    max_rows = 2 * shards.step.config.endpoint.concurrency
    runner = AsyncRunner(ask, shards.journal, usage, max_rows, lambda: bar.advance(1, usage.line()), watch=watch)
    async with asyncio.TaskGroup() as group:

        def write(batch: RowBatch) -> None:
            group.create_task(asyncio.to_thread(shards.write, batch))

        upcoming = iter(indices)
        following = _read(shards, next(upcoming, None))
        while (batch := await following) is not None and not runner.exhausted:
            following = _read(shards, next(upcoming, None))
            bar.advance(batch.table.num_rows - len(batch.pending))
            await runner.send(batch, group, write)
        await following
    runner.check_budget(f" after {bar.count:,} of {bar.total:,} {bar.unit}")
    if runner.unanswered:
        raise AnnotationError(
            f"{runner.unanswered:,} of {bar.total:,} {bar.unit} have no response that is any use yet; write the"
            " requests that are left by --requests, or run the same command without --responses to ask the servers"
        )


def _read(shards: ShardIO, index: int | None) -> asyncio.Task[RowBatch | None]:
    async def read() -> RowBatch | None:
        return None if index is None else await asyncio.to_thread(shards.read, index)

    return asyncio.get_running_loop().create_task(read())


def _open_writer(step: Step) -> ArtifactWriter | Artifact:
    """A writer, or the artifact where it is complete already."""
    names = shard_names(len(step.source.manifest.shards), "parquet")
    # an artifact without a row is made anew: there is nothing to lose
    overwrite = step.overwrite or came_to_nothing(step.out, step.kind)
    return create_artifact(
        step.out, kind=step.kind, config=step.config, inputs=step.inputs, names=names, overwrite=overwrite
    )


def _check_rows(step: Step, artifact: Artifact) -> Artifact:
    """The artifact, unless it has no row.

    Raises:
        ArtifactError: every row was rejected.
    """
    if artifact.rows == 0 and set(artifact.manifest.rejected) - ABSENT == {"no_caption"}:
        raise ArtifactError(
            "the rule-based engine writes from captions, and the corpus has none; make some with `megapairs caption`,"
            " or choose another engine"
        )
    if artifact.rows == 0 and step.source.rows > 0:
        counts = Counter(artifact.manifest.rejected)
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
        commonest = next((reason for reason, _ in counts.most_common(1)), "")
        raise ArtifactError(
            f"none of the {step.source.rows:,} {step.function.UNIT} got {step.kind} that are any use ({reasons}):"
            f" {advice(commonest, vars(step.config))}; the responses are in {artifact.path}/rejected.parquet"
        )
    return artifact


def _progress(step: Step, writer: ArtifactWriter) -> Progress:
    sizes = {i: int(step.source.manifest.shards[i]["rows"]) for i in distributed.my_shards(len(writer.names))}
    done = sum(size for i, size in sizes.items() if writer.done(i))
    return Progress(step.kind, sum(sizes.values()), step.function.UNIT, done)


def _spend(budget: Budget, writer: ArtifactWriter) -> dict[str, Any]:
    """What all responses cost, when every process has written its shards."""
    if not distributed.is_main() or not (budget.price_prompt or budget.price_completion):
        return {}
    tokens = [writer.stats(index).get("tokens", {}) for index in range(len(writer.names))]
    prompt, completion = (sum(each.get(name, 0) for each in tokens) for name in ("prompt", "completion"))
    return {"spend": round(budget.cost(prompt, completion), 6)} if prompt or completion else {}


def _text_stats(step: Step, writer: ArtifactWriter) -> dict[str, Any]:
    """Text statistics, by the main process, when every process has written its shards."""
    distributed.barrier()
    if not distributed.is_main():
        return {}
    rejected: Counter[str] = Counter()
    total = 0
    for index in range(len(writer.names)):
        counts = writer.stats(index).get("instructions", {})
        rejected.update(counts.get("rejected", {}))
        total += counts.get("kept", writer.rows(index))
    stats = text_stats(_sample_texts(writer, TEXTS[step.kind], -(-total // MAX_TEXTS)), total, dict(rejected))
    return {"wording": stats} if stats else {}


def _sample_texts(writer: ArtifactWriter, column: str, every: int) -> list[list[str]]:
    """The texts of each n-th row of an artifact."""
    samples: list[list[str]] = []
    every, first = max(1, every), 0
    for name in writer.names:
        values = read_table(join(writer.path, name), [column])[column]
        if len(values):
            rows = np.arange(-first % every, len(values), every)
            samples += [value if isinstance(value, list) else [value] for value in values.take(rows).to_pylist()]
        first += len(values)
    return samples
