"""From the shards of one artifact to the shards of the next: what both steps, and the check of them, have in common.

Output shard i comes from input shard i, so the result does not depend on the number of processes. What surprises: the
facts about wording are read back from the finished shards by the main process, so they do not depend on it either.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf import launch
from megapairs_hf.annotate import asking
from megapairs_hf.annotate.config import pair_key
from megapairs_hf.annotate.journal import Journal, remove_journal
from megapairs_hf.annotate.local import answer_all
from megapairs_hf.annotate.tally import Tally
from megapairs_hf.annotate.wording import wording
from megapairs_hf.artifact import Artifact, read_table, shard_names
from megapairs_hf.artifact_writer import ArtifactWriter, create_artifact
from megapairs_hf.config import config_hash
from megapairs_hf.dependencies import require
from megapairs_hf.errors import ArtifactError, SchemaMismatchError
from megapairs_hf.overwriting import came_to_nothing
from megapairs_hf.schema import QUERY_ID, TARGET_ID
from megapairs_hf.storage import join

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from megapairs_hf.annotate.endpoint import Budget, Endpoint
    from megapairs_hf.annotate.jobs import Job, Row, Verdict
    from megapairs_hf.launch import Progress
    from megapairs_hf.storage import PathLike

PIECE = 1000
LOCAL_ENGINES = ("transformers", "clip")
TEXTS = {"descriptions": "description", "instructions": "instructions"}


@dataclass(frozen=True)
class Step:
    """One artifact to make.

    Attributes:
        kind: of the artifact.
        schema: of its rows.
        source: whose shards become its shards.
        read: the columns that are needed of them.
        config: the settings, with `engine`, `model` and `local`.
        inputs: fingerprint of each input by name.
        out: folder of the result.
        overwrite: throw away what is there.
    """

    kind: str
    schema: pa.Schema
    source: Artifact
    read: Sequence[str]
    config: Any
    inputs: Mapping[str, str]
    out: PathLike
    overwrite: bool = False

    @property
    def identity(self) -> str:
        """What makes this artifact another one than the next at the same place."""
        return f"{config_hash(self.config)} {sorted(self.inputs.items())}"


@dataclass(frozen=True)
class Asked:
    """How a step is asked about.

    Attributes:
        job: makes the job for the pairs of one shard; told the format of replies and the shard's number.
        endpoint: where the servers are.
        budget: what may be spent.
        reply_format: `auto` where the servers are to be asked whether they keep to a JSON schema.
        vision: whether the model in process takes pictures.
    """

    job: Callable[[pa.Table, str, int], Job]
    endpoint: Endpoint
    budget: Budget
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
        tally = Tally(asked.budget, journal.sums())
        local = step.config.engine == "transformers"
        reply_format = _decide(asked, journal, tally, step.config.model, local=local)
        with _progress(step, writer) as bar:
            shards = Shards(step, writer, journal, asked.job, reply_format)
            if local:
                answer_all(shards, journal, writer.mine(), step.config, tally, bar, vision=asked.vision)
            else:
                stream = asking.Stream(shards, journal, tally, bar)
                asking.run(asking.ask_all(stream, writer.mine(), asked.endpoint, step.config.model))
        facts = {"reply_format": reply_format} if asked.reply_format == "auto" else {}
        facts |= _facts(step, writer)
        facts |= _cost(asked.budget, journal)
        # the journal is removed with the rest of what is unfinished
        journal.close()
        made = writer.finish(facts)
    remove_journal(step.out, step.identity)
    return _useful(step, made)


def make_plain(step: Step, judge: Callable[[list[Row], Progress, int], list[Verdict]]) -> Artifact:
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


def _progress(step: Step, writer: ArtifactWriter) -> launch.Progress:
    sizes = {i: int(step.source.manifest.shards[i]["rows"]) for i in launch.my_shards(len(writer.names))}
    done = sum(size for i, size in sizes.items() if writer.done(i))
    return launch.Progress(step.kind, sum(sizes.values()), "pairs", done)


def _decide(asked: Asked, journal: Journal, tally: Tally, model: str, *, local: bool) -> str:
    """The format of replies, decided once for the artifact, so that a run that is continued asks alike."""
    if asked.reply_format != "auto":
        return asked.reply_format
    if local:
        return "list"
    if launch.is_main() and journal.fact("reply_format") is None:
        takes = asking.run(asking.takes_schema(asked.endpoint, tally, model))
        journal.keep_fact("reply_format", "json" if takes else "list")
        launch.note(f"replies are asked for as {'JSON by a schema' if takes else 'a numbered list'}")
    launch.barrier()
    return journal.fact("reply_format") or "list"


class Shards:
    """Reads the shards of the source and writes those of the artifact."""

    def __init__(
        self,
        step: Step,
        writer: ArtifactWriter,
        journal: Journal,
        make_job: Callable[[pa.Table, str, int], Job],
        reply_format: str,
    ) -> None:
        self.step, self.writer, self.journal = step, writer, journal
        self.make_job, self.reply_format = make_job, reply_format

    def open(self, index: int) -> asking.Shard:
        """Read a shard, look up what the journal has, and get ready what the other questions need."""
        table = self.step.source.shard(index, self.step.read)
        shard = asking.Shard(index, table, self.make_job(table, self.reply_format, index))
        with self.journal.reader() as reader:
            asking.find_unsettled(shard, reader)
        shard.job.prepare(row for _, row in shard.rows(shard.todo))
        return shard

    def close(self, shard: asking.Shard) -> None:
        """Write a settled shard."""
        shard.job.close()
        with self.journal.reader() as reader:
            write(self.step, self.writer, shard.index, shard.verdicts(reader))


def write(step: Step, writer: ArtifactWriter, index: int, verdicts: Iterable[tuple[Row, Verdict]]) -> None:
    """Write one shard: rows and rejections in the order of the pairs."""
    pieces: list[pa.Table] = []
    made: list[Row] = []
    rejected: list[tuple[str, str, str]] = []
    left_out: Counter[str] = Counter()
    kept = 0
    for row, verdict in verdicts:
        left_out += verdict.left_out
        if verdict.row is None:
            rejected.append((pair_key(row[QUERY_ID], row[TARGET_ID]), verdict.reason, verdict.detail))
            continue
        made.append({name: verdict.row.get(name) for name in step.schema.names})
        kept += len(verdict.row.get("instructions") or ())
        if len(made) == PIECE:
            pieces.append(pa.Table.from_pylist(made, schema=step.schema))
            made = []
    pieces.append(pa.Table.from_pylist(made, schema=step.schema))
    stats: dict[str, Any] = {}
    if step.kind == "instructions":
        stats["instructions"] = {"kept": kept, "rejected": dict(sorted(left_out.items()))}
    if "fits" in step.schema.names:
        fits = [fit for piece in pieces for row in piece["fits"].to_pylist() for fit in row]
        stats["verdicts"] = {
            "beats all hard negatives": sum(fit == 1 for fit in fits),
            "beats half of them or more": sum(fit is not None and 0.5 <= fit < 1 for fit in fits),
            "beats fewer": sum(fit is not None and fit < 0.5 for fit in fits),
            "no verdict": sum(fit is None for fit in fits),
        }
    writer.write(index, pa.concat_tables(pieces), rejected=rejected, stats=stats)


def _cost(budget: Budget, journal: Journal) -> dict[str, Any]:
    """What all answers cost, those about rejected pairs too, when every process has its answers in its journal."""
    if not launch.is_main():
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
    launch.barrier()
    column = TEXTS[step.kind]
    if not launch.is_main():
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
