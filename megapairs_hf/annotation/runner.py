"""From the shards of one artifact to the shards of the next: what both steps, and the check of them, have in common.

Output shard i comes from input shard i, so the result does not depend on the number of processes. What surprises: the
facts about wording are read back from the finished shards by the main process, so they do not depend on it either.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.annotation.client.budget import Tally
from megapairs_hf.annotation.client.event_loop import run
from megapairs_hf.annotation.engines import async_runner
from megapairs_hf.annotation.engines.journal import Journal, remove_journal
from megapairs_hf.annotation.engines.shard_io import Shards, write
from megapairs_hf.annotation.engines.transformers_engine import answer_all
from megapairs_hf.annotation.text_stats import wording
from megapairs_hf.artifacts.artifact import Artifact, read_table
from megapairs_hf.artifacts.replace import came_to_nothing
from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.storage import join
from megapairs_hf.artifacts.writer import ArtifactWriter, create_artifact
from megapairs_hf.core import distributed
from megapairs_hf.core.dependencies import require
from megapairs_hf.core.errors import ArtifactError, SchemaMismatchError
from megapairs_hf.core.progress import Progress, note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

    from megapairs_hf.annotation.client.budget import Budget
    from megapairs_hf.annotation.engines.shard_io import Step
    from megapairs_hf.annotation.tasks import Outcome, Row, Task

LOCAL_ENGINES = ("transformers", "clip")
TEXTS = {"descriptions": "description", "instructions": "instructions"}


@dataclass(frozen=True)
class Asked:
    """How a step is asked about.

    Attributes:
        job: makes the job for the pairs of one shard; told the format of replies and the shard's number.
        reply_format: `auto` where the servers are to be asked whether they keep to a JSON schema.
        vision: whether the model in process takes images.
    """

    job: Callable[[pa.Table, str, int], Task]
    reply_format: str = "list"
    vision: bool = False


def check_kind(artifact: Artifact, kind: str) -> None:
    """Refuse an artifact of another kind."""
    if artifact.manifest.kind != kind:
        raise SchemaMismatchError(
            f"{artifact.path} holds {artifact.manifest.kind}, but {kind} is needed here; name the other folder"
        )


def _useful(step: Step, made: Artifact) -> Artifact:
    """The artifact, unless it has no row.

    Raises:
        ArtifactError: every pair was rejected.
    """
    if made.rows == 0 and step.source.rows > 0:
        told = ", ".join(f"{count:,} {reason}" for reason, count in made.manifest.rejected.items())
        raise ArtifactError(
            f"none of the {step.source.rows:,} pairs got {step.kind} that are any use ({told}); look at what was"
            f" said in {made.path}/rejected.parquet, then change the model or the settings and run again"
        )
    return made


def make_asked(step: Step, asked: Asked) -> Artifact:
    """Make an artifact by asking a model about every pair."""
    writer = _begin(step)
    if isinstance(writer, Artifact):
        return writer
    with writer, Journal(step.out, step.identity) as journal:
        _require_engine(step)
        tally = Tally(step.config.budget, journal.sums())
        local = step.config.engine == "transformers"
        reply_format = _decide(asked, step, journal, tally, local=local)
        with _progress(step, writer) as bar:
            shards = Shards(step, writer, journal, asked.job, reply_format)
            if local:
                answer_all(shards, journal, writer.mine(), step.config, tally, bar, vision=asked.vision)
            else:
                stream = async_runner.Stream(shards, journal, tally, bar)
                run(async_runner.ask_all(stream, writer.mine(), step.config.endpoint, step.config.model))
        facts = {"reply_format": reply_format} if asked.reply_format == "auto" else {}
        facts |= _facts(step, writer)
        facts |= _cost(step.config.budget, journal)
        # the journal is removed with the rest of what is unfinished
        journal.close()
        made = writer.finish(facts)
    remove_journal(step.out, step.identity)
    return _useful(step, made)


def make_plain(step: Step, judge: Callable[[list[Row], Progress, int], list[Outcome]]) -> Artifact:
    """Make an artifact by a function of the rows of a shard."""
    writer = _begin(step)
    if isinstance(writer, Artifact):
        return writer
    with writer:
        _require_engine(step)
        with _progress(step, writer) as bar:
            for index in writer.mine():
                rows = step.source.shard(index, step.read).to_pylist()
                write(step, writer, index, zip(rows, judge(rows, bar, index), strict=True))
        made = writer.finish(_facts(step, writer))
    return _useful(step, made)


def _begin(step: Step) -> ArtifactWriter | Artifact:
    """A writer, or the artifact that is finished already."""
    names = shard_names(len(step.source.manifest.shards), "parquet")
    # what came to nothing is asked again: there is nothing to lose
    overwrite = step.overwrite or came_to_nothing(step.out, step.kind)
    writer = create_artifact(
        step.out, kind=step.kind, config=step.config, inputs=step.inputs, names=names, overwrite=overwrite
    )
    if overwrite and isinstance(writer, ArtifactWriter):
        remove_journal(step.out, step.identity)
    return writer


def _require_engine(step: Step) -> None:
    """Refuse a model in this process where nothing runs it; the other engines need the base alone."""
    if step.config.engine in LOCAL_ENGINES:
        require("models", f"`engine: {step.config.engine}`")


def _progress(step: Step, writer: ArtifactWriter) -> Progress:
    sizes = {i: int(step.source.manifest.shards[i]["rows"]) for i in distributed.my_shards(len(writer.names))}
    done = sum(size for i, size in sizes.items() if writer.done(i))
    return Progress(step.kind, sum(sizes.values()), "pairs", done)


def _decide(asked: Asked, step: Step, journal: Journal, tally: Tally, *, local: bool) -> str:
    """The format of replies, decided once for the artifact, so that a run that is continued asks alike."""
    if asked.reply_format != "auto":
        return asked.reply_format
    if local:
        return "list"
    if distributed.is_main() and journal.fact("reply_format") is None:
        takes = run(async_runner.takes_schema(step.config.endpoint, tally, step.config.model))
        journal.keep_fact("reply_format", "json" if takes else "list")
        note(f"replies are asked for as {'JSON by a schema' if takes else 'a numbered list'}")
    distributed.barrier()
    return journal.fact("reply_format") or "list"


def _cost(budget: Budget, journal: Journal) -> dict[str, Any]:
    """What all answers cost, those about rejected pairs too, when every process has its answers in its journal."""
    if not distributed.is_main():
        return {}
    answers, prompt, completion = journal.sums()
    told: dict[str, Any] = {"answers": answers}
    if prompt or completion:
        told["tokens"] = {"prompt": prompt, "completion": completion}
        if budget.price_prompt or budget.price_completion:
            told["spend"] = round(budget.cost(prompt, completion), 6)
    return told


def _facts(step: Step, writer: ArtifactWriter) -> dict[str, Any]:
    """Facts about the wording, by the main process, when every process has written its shards."""
    distributed.barrier()
    column = TEXTS[step.kind]
    if not distributed.is_main():
        return {}
    left_out: Counter[str] = Counter()
    for index in range(len(writer.names)):
        left_out.update(writer.stats(index).get("instructions", {}).get("rejected", {}))

    def lists() -> Iterator[list[str]]:
        for name in writer.names:
            for batch in read_table(join(writer.path, name), [column])[column].chunks:
                for value in batch.to_pylist():
                    yield value if isinstance(value, list) else [value]

    told = wording(lists, sum(int(shard["rows"]) for shard in step.source.manifest.shards), dict(left_out))
    return {"wording": told} if told else {}
