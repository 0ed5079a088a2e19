"""The two stages: `pairs` → `descriptions` → `instructions` (MegaPairs §3.1, appendix A).

Output shard i comes from input shard i, so the result does not depend on the number of processes. What surprises: the
stand-in engine reads the captions in both steps and the description in neither; it keeps the two artifacts only so
that everything after them is the same with and without a model.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf import launch
from megapairs_hf.annotate import asking, phrases, prompts
from megapairs_hf.annotate.clean import clean
from megapairs_hf.annotate.client import Counters
from megapairs_hf.annotate.config import (
    STAND_IN,
    DescribeConfig,
    Endpoint,
    InstructConfig,
    pair_key,
    pair_seed,
)
from megapairs_hf.annotate.jobs import DescribeJob, InstructJob, Row, Verdict, captions_of
from megapairs_hf.annotate.journal import Journal, remove_journal
from megapairs_hf.annotate.pictures import Pictures, check_attributes, read_texts
from megapairs_hf.artifact import Artifact, shard_names
from megapairs_hf.artifact_writer import ArtifactWriter, create_artifact
from megapairs_hf.config import config_hash
from megapairs_hf.errors import ReplyRejectedError, SchemaMismatchError
from megapairs_hf.schema import DESCRIPTIONS, INSTRUCTIONS, META, QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from megapairs_hf.annotate.captions import Edit
    from megapairs_hf.launch import Progress
    from megapairs_hf.storage import PathLike

    Shard = Callable[[int, list[Row], Progress], list[Verdict]]

READ = [QUERY_ID, TARGET_ID, "description"]


def describe_pairs(
    pairs: Artifact,
    corpus: Artifact,
    *,
    config: DescribeConfig,
    out: PathLike,
    overwrite: bool = False,
    endpoint: Endpoint | None = None,
) -> Artifact:
    """Describe what the two images of every pair share and how they differ.

    Args:
        pairs: what the mining found.
        corpus: the images and captions.
        config: settings.
        out: folder of the result.
        overwrite: throw away what is there.
        endpoint: where the servers are; None for a server on this machine.

    Returns:
        An artifact of kind `descriptions`; pairs without a usable description are in its `rejected.parquet`.

    Raises:
        ServerUnavailableError: the endpoint refuses or fails every question; answers so far are kept.
        ConfigError: the prompt file or an attribute cannot be used.
    """
    check_kind(pairs, "pairs")
    check_kind(corpus, "corpus")
    inputs = {"pairs": pairs.fingerprint, "corpus": corpus.fingerprint}
    if config.engine == "captions":
        check_attributes(corpus, config.attributes)
        by_captions = partial(_describe_by_captions, corpus=corpus, config=config)
        return _make("descriptions", pairs, config, by_captions, inputs=inputs, out=out, overwrite=overwrite)
    prompt = prompts.describe_prompt(config.prompt)
    inputs["prompt"] = prompt.digest
    counters = Counters()

    def ask(index: int, rows: list[Row], bar: Progress) -> list[Verdict]:
        texts = read_texts(corpus, ids_of(rows)) if config.with_captions else {}
        with (
            Journal(out, identity(config, inputs)) as journal,
            Pictures(config.max_image_side, config.jpeg_quality) as pictures,
        ):
            job = DescribeJob(config, prompt, pictures, texts)
            asker = asking.Asker(job, journal, index)
            pictures.gather(corpus, ids_of(asker.unsettled(rows)))
            return asking.run(asker.all(rows, endpoint or Endpoint(), counters, bar))

    return _make("descriptions", pairs, config, ask, inputs=inputs, out=out, overwrite=overwrite)


def instruct_pairs(
    descriptions: Artifact,
    corpus: Artifact,
    *,
    config: InstructConfig,
    out: PathLike,
    overwrite: bool = False,
    endpoint: Endpoint | None = None,
) -> Artifact:
    """Turn every description into several search instructions.

    Args:
        descriptions: what `describe_pairs` made.
        corpus: the captions.
        config: settings.
        out: folder of the result.
        overwrite: throw away what is there.
        endpoint: where the servers are; None for a server on this machine.

    Returns:
        An artifact of kind `instructions`; pairs with too few good ones are in its `rejected.parquet`, with the raw
        reply.

    Raises:
        ServerUnavailableError: the endpoint refuses or fails every question; answers so far are kept.
        ConfigError: the prompt file, the pool or an attribute cannot be used.
    """
    check_kind(descriptions, "descriptions")
    check_kind(corpus, "corpus")
    inputs = {"descriptions": descriptions.fingerprint, "corpus": corpus.fingerprint}
    if config.engine == "captions":
        check_attributes(corpus, config.attributes)
        by_captions = partial(_instruct_by_captions, corpus=corpus, config=config)
        return _make("instructions", descriptions, config, by_captions, inputs=inputs, out=out, overwrite=overwrite)
    prompt = prompts.instruct_prompt(config.prompt)
    pool = prompts.load_pool(config.pool, config.demonstrations)
    inputs |= {"prompt": prompt.digest, "demonstrations": prompts.pool_digest(pool)}
    counters = Counters()

    def ask(index: int, rows: list[Row], bar: Progress) -> list[Verdict]:
        texts = read_texts(corpus, ids_of(rows)) if config.with_captions else {}
        with Journal(out, identity(config, inputs)) as journal:
            asker = asking.Asker(InstructJob(config, prompt, pool, texts), journal, index)
            return asking.run(asker.all(rows, endpoint or Endpoint(), counters, bar))

    return _make("instructions", descriptions, config, ask, inputs=inputs, out=out, overwrite=overwrite)


def check_kind(artifact: Artifact, kind: str) -> None:
    """Refuse an artifact of another kind."""
    if artifact.manifest.kind != kind:
        raise SchemaMismatchError(
            f"{artifact.path} holds {artifact.manifest.kind}, but {kind} is needed here; name the other folder"
        )


def identity(config: DescribeConfig | InstructConfig, inputs: Mapping[str, str]) -> str:
    """What makes one artifact another one than the next at the same place."""
    return f"{config_hash(config)} {sorted(inputs.items())}"


def ids_of(rows: Iterable[Row]) -> set[str]:
    """The images of some pairs."""
    return {row[name] for row in rows for name in (QUERY_ID, TARGET_ID)}


def _make(
    kind: str,
    source: Artifact,
    config: DescribeConfig | InstructConfig,
    shard: Shard,
    *,
    inputs: Mapping[str, str],
    out: PathLike,
    overwrite: bool,
) -> Artifact:
    """Write the artifact, shard by shard."""
    names = shard_names(len(source.manifest.shards), "parquet")
    writer = create_artifact(out, kind=kind, config=config, inputs=inputs, names=names, overwrite=overwrite)
    if isinstance(writer, Artifact):
        return writer
    if overwrite:
        remove_journal(out, identity(config, inputs))
    schema, read = (DESCRIPTIONS, [QUERY_ID, TARGET_ID]) if kind == "descriptions" else (INSTRUCTIONS, READ)
    with writer:
        mine = writer.mine()
        sizes = {i: int(source.manifest.shards[i]["rows"]) for i in launch.my_shards(len(names))}
        done = sum(size for i, size in sizes.items() if i not in mine)
        with launch.Progress(kind, sum(sizes.values()), "pairs", done) as bar:
            for index in mine:
                rows = source.shard(index, read).to_pylist()
                _write(writer, index, schema, rows, shard(index, rows, bar))
        made = writer.finish()
    remove_journal(out, identity(config, inputs))
    return made


def _write(writer: ArtifactWriter, index: int, schema: pa.Schema, rows: list[Row], verdicts: list[Verdict]) -> None:
    """Write one shard: rows and rejections in the order of the pairs."""
    made: list[Row] = []
    rejected: list[tuple[str, str, str]] = []
    left_out: Counter[str] = Counter()
    stats: dict[str, Any] = {}
    tokens: Counter[str] = Counter()
    for row, verdict in zip(rows, verdicts, strict=True):
        left_out += verdict.left_out
        if verdict.row is None:
            rejected.append((pair_key(row[QUERY_ID], row[TARGET_ID]), verdict.reason, verdict.detail))
            continue
        made.append({name: verdict.row.get(name) for name in schema.names})
        for name in ("prompt_tokens", "completion_tokens"):
            tokens[name] += verdict.row.get(name) or 0
    if schema is INSTRUCTIONS:
        kept = sum(len(row["instructions"] or ()) for row in made)
        stats["instructions"] = {"kept": kept, "rejected": dict(sorted(left_out.items()))}
    stats["tokens"] = {"prompt": tokens["prompt_tokens"], "completion": tokens["completion_tokens"]}
    writer.write(index, pa.Table.from_pylist(made, schema=schema), rejected=rejected, stats=stats)


def _describe_by_captions(
    _: int, rows: list[Row], bar: Progress, *, corpus: Artifact, config: DescribeConfig
) -> list[Verdict]:
    """One shard by the stand-in engine."""
    texts = read_texts(corpus, ids_of(rows), config.attributes)

    def write(row: Row, edits: list[Edit]) -> Verdict:
        description = phrases.write_description(*captions_of(row, texts), edits)
        return Verdict(_stand_in(row, description) | {"description": description})

    return _by_captions(rows, bar, texts, config.attributes, write)


def _instruct_by_captions(
    _: int, rows: list[Row], bar: Progress, *, corpus: Artifact, config: InstructConfig
) -> list[Verdict]:
    """One shard by the stand-in engine."""
    texts = read_texts(corpus, ids_of(rows), config.attributes)

    def write(row: Row, edits: list[Edit]) -> Verdict:
        seed = pair_seed(config.seed, row[QUERY_ID], row[TARGET_ID])
        query, target = captions_of(row, texts)
        written = phrases.write_instructions(query, target, edits, wanted=config.wanted, seed=seed)
        kept, left_out = clean(written, min_words=config.min_words, max_words=config.max_words)
        raw = prompts.format_reply(written, "list")
        if len(kept) < config.min_instructions:
            return Verdict(None, "too_few_instructions", raw, left_out)
        return Verdict(_stand_in(row, raw) | {"instructions": kept, "demonstration_ids": []}, left_out=left_out)

    return _by_captions(rows, bar, texts, config.attributes, write)


def _by_captions(
    rows: list[Row],
    bar: Progress,
    texts: Mapping[str, Row],
    attributes: Sequence[str],
    write: Callable[[Row, list[Edit]], Verdict],
) -> list[Verdict]:
    """A verdict on every pair, in order."""
    verdicts = []
    for row in rows:
        absent = next((row[name] for name in (QUERY_ID, TARGET_ID) if row[name] not in texts), None)
        if absent is not None:
            verdicts.append(Verdict(None, "missing_image", f"{absent} is not in the corpus"))
        else:
            edits = phrases.attribute_edits(texts[row[QUERY_ID]][META], texts[row[TARGET_ID]][META], attributes)
            try:
                verdicts.append(write(row, edits))
            except ReplyRejectedError as error:
                verdicts.append(Verdict(None, error.reason, error.detail))
        bar.advance()
    return verdicts


def _stand_in(row: Row, raw: str) -> Row:
    return {
        QUERY_ID: row[QUERY_ID],
        TARGET_ID: row[TARGET_ID],
        "raw": raw,
        "model": STAND_IN,
        "finish_reason": "stop",
    }
