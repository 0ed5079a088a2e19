"""From the shards of one artifact to the shards of the next: what both steps, and the check of them, have in common.

Output shard i comes from input shard i, so the result does not depend on the number of processes. What surprises: the
text statistics are read back from the finished shards by the main process, so they do not depend on it either.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.annotation.client.budget import Usage
from megapairs_hf.annotation.client.event_loop import run
from megapairs_hf.annotation.engines.async_runner import AsyncRunner, run_requests
from megapairs_hf.annotation.engines.journal import Journal, remove_journal
from megapairs_hf.annotation.engines.shard_io import ShardIO, write_shard
from megapairs_hf.annotation.engines.transformers_engine import run_batches
from megapairs_hf.annotation.text_stats import MAX_TEXTS, text_stats
from megapairs_hf.artifacts.artifact import Artifact, read_table
from megapairs_hf.artifacts.replace import came_to_nothing
from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.storage import join
from megapairs_hf.artifacts.writer import ArtifactWriter, create_artifact
from megapairs_hf.core import distributed
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import ArtifactError, SchemaMismatchError
from megapairs_hf.core.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from megapairs_hf.annotation.client.budget import Budget
    from megapairs_hf.annotation.engines.shard_io import Step
    from megapairs_hf.annotation.tasks import AnnotationTask, Outcome, Row

LOCAL_ENGINES = ("transformers", "clip")
TEXTS = {"descriptions": "description", "instructions": "instructions"}


def check_kind(artifact: Artifact, kind: str) -> None:
    """Refuse an artifact of another kind."""
    if artifact.manifest.kind != kind:
        raise SchemaMismatchError(
            f"{artifact.path} holds {artifact.manifest.kind}, but {kind} is needed here; name the other folder"
        )


def annotate_by_model(
    step: Step, make_task: Callable[[pa.Table, int], AnnotationTask], *, vision: bool = False
) -> Artifact:
    """Make an artifact of the responses of a model.

    Args:
        step: the artifact.
        make_task: makes the task of one shard, from its rows and its number.
        vision: whether the model takes images.
    """
    writer = _open_writer(step)
    if isinstance(writer, Artifact):
        return writer
    config = step.config
    with writer, Journal(step.out, step.identity) as journal:
        _require_engine(step)
        usage = Usage(config.budget, journal.sums())
        with _progress(step, writer) as bar:
            shards = ShardIO(step, writer, journal, make_task)
            if config.engine == "transformers":
                run_batches(shards, journal, writer.mine(), config, usage, bar, vision=vision)
            else:
                runner = AsyncRunner(shards, journal, usage, bar)
                run(run_requests(runner, writer.mine(), config.endpoint, config.model))
        stats = _text_stats(step, writer) | _cost(config.budget, journal)
        # the journal is removed with the rest of what is unfinished
        journal.close()
        artifact = writer.finish(stats)
    remove_journal(step.out, step.identity)
    return _check_rows(step, artifact)


def annotate_by_function(step: Step, function: Callable[[list[Row], Progress, int], list[Outcome]]) -> Artifact:
    """Make an artifact by a function of the rows of a shard."""
    writer = _open_writer(step)
    if isinstance(writer, Artifact):
        return writer
    with writer:
        _require_engine(step)
        with _progress(step, writer) as bar:
            for index in writer.mine():
                rows = step.source.shard(index, step.columns).to_pylist()
                write_shard(step, writer, index, zip(rows, function(rows, bar, index), strict=True))
        artifact = writer.finish(_text_stats(step, writer))
    return _check_rows(step, artifact)


def _open_writer(step: Step) -> ArtifactWriter | Artifact:
    """A writer, or the artifact where it is complete already."""
    names = shard_names(len(step.source.manifest.shards), "parquet")
    # an artifact without a row is made anew: there is nothing to lose
    overwrite = step.overwrite or came_to_nothing(step.out, step.kind)
    writer = create_artifact(
        step.out, kind=step.kind, config=step.config, inputs=step.inputs, names=names, overwrite=overwrite
    )
    if overwrite and isinstance(writer, ArtifactWriter):
        remove_journal(step.out, step.identity)
    return writer


def _check_rows(step: Step, artifact: Artifact) -> Artifact:
    """The artifact, unless it has no row.

    Raises:
        ArtifactError: every pair was rejected.
    """
    if artifact.rows == 0 and step.source.rows > 0:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in artifact.manifest.rejected.items())
        raise ArtifactError(
            f"none of the {step.source.rows:,} pairs got {step.kind} that are any use ({reasons}); look at the"
            f" responses in {artifact.path}/rejected.parquet, then change the model or the settings and run again"
        )
    return artifact


def _require_engine(step: Step) -> None:
    """Refuse local inference where its packages are not installed; the other engines need the base alone."""
    if step.config.engine in LOCAL_ENGINES:
        require("models", f"`engine: {step.config.engine}`")


def _progress(step: Step, writer: ArtifactWriter) -> Progress:
    sizes = {i: int(step.source.manifest.shards[i]["rows"]) for i in distributed.my_shards(len(writer.names))}
    done = sum(size for i, size in sizes.items() if writer.done(i))
    return Progress(step.kind, sum(sizes.values()), "pairs", done)


def _cost(budget: Budget, journal: Journal) -> dict[str, Any]:
    """The cost of all responses, of rejected pairs too, when every process has its responses in its journal."""
    if not distributed.is_main():
        return {}
    responses, prompt, completion = journal.sums()
    stats: dict[str, Any] = {"answers": responses}
    if prompt or completion:
        stats["tokens"] = {"prompt": prompt, "completion": completion}
        if budget.price_prompt or budget.price_completion:
            stats["spend"] = round(budget.cost(prompt, completion), 6)
    return stats


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
