"""The artifacts that the stages make: what each reads, which row function it applies, and what decides the result."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import pyarrow as pa

from megapairs_hf.annotation.caption import Caption
from megapairs_hf.annotation.config import InstructConfig
from megapairs_hf.annotation.describe import Describe
from megapairs_hf.annotation.function import IMAGE_ROW
from megapairs_hf.annotation.instruct import Instruct
from megapairs_hf.annotation.instruction_warnings import instruction_facts
from megapairs_hf.annotation.prompts.few_shot import examples_digest
from megapairs_hf.annotation.rule_based.suggest import attribute_advice, caption_facts
from megapairs_hf.annotation.shard_io import Step
from megapairs_hf.annotation.verify import Verify
from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.fingerprints import model_path
from megapairs_hf.artifacts.sources import as_artifact
from megapairs_hf.core.errors import ArtifactError, ModelError
from megapairs_hf.core.progress import note
from megapairs_hf.core.schema import (
    CAPTIONS_TABLE,
    DESCRIPTIONS,
    INSTRUCTIONS,
    NEGATIVE_IDS,
    QUERY_ID,
    TARGET_ID,
    VERIFIED,
)

if TYPE_CHECKING:
    from datasets import Dataset

    from megapairs_hf.annotation.config import CaptionConfig, DescribeConfig, VerifyConfig
    from megapairs_hf.annotation.function import AnnotationFunction
    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.storage import PathLike

    # whatever `as_artifact` takes
    Source: TypeAlias = Artifact | Dataset | PathLike

OF_RULES = ("edits", "attributes", "parser")


def caption_step(corpus: Source, *, config: CaptionConfig, out: PathLike, overwrite: bool = False) -> Step:
    """Captions of a corpus."""
    corpus = as_artifact(corpus, "corpus")
    function = Caption(corpus, config=config)
    inputs = {"corpus": corpus.fingerprint} | _of_function(function)
    rows = partial(_with_rows, corpus)
    return Step("captions", CAPTIONS_TABLE, corpus, function.NEEDS, function, inputs, out, overwrite, rows)


def _with_rows(corpus: Artifact, index: int, table: pa.Table) -> pa.Table:
    """The ids of one shard with their row numbers in the corpus, so that no other shard is looked into."""
    first = sum(int(shard["rows"]) for shard in corpus.manifest.shards[:index])
    return table.append_column(IMAGE_ROW, pa.array(range(first, first + len(table)), pa.int64()))


def describe_step(
    pairs: Source, corpus: Source, *, config: DescribeConfig, out: PathLike, overwrite: bool = False
) -> Step:
    """Descriptions of pairs."""
    pairs, corpus = as_artifact(pairs, "pairs"), as_artifact(corpus, "corpus")
    function = Describe(corpus, config=config)
    by_captions = config.engine == "rule_based" and config.edits == "captions" and not config.attributes
    if by_captions and (advice := attribute_advice(corpus)):
        note(advice)
    inputs = {"pairs": pairs.fingerprint, "corpus": corpus.fingerprint} | _of_function(function)
    columns = (*function.NEEDS, *function.HINTS.values())
    facts = partial(caption_facts, corpus) if by_captions else None
    return Step("descriptions", DESCRIPTIONS, pairs, columns, function, inputs, out, overwrite, facts=facts)


def instruct_step(
    descriptions: Source,
    corpus: Source | None = None,
    *,
    config: InstructConfig,
    out: PathLike,
    overwrite: bool = False,
) -> Step:
    """Instructions from descriptions; a corpus is needed where captions are.

    Raises:
        ArtifactError: captions are needed, and there is no corpus.
    """
    descriptions = as_artifact(descriptions, "descriptions")
    corpus = None if corpus is None else as_artifact(corpus, "corpus")
    config = _like_describe(config, descriptions)
    function = Instruct(corpus, config=config)
    if corpus is None and (not function.asks or function.prompt.needs_captions):
        reads = "the prompt" if function.asks else "the rule-based engine"
        raise ArtifactError(f"{reads} reads captions, and there is no corpus; name its folder with --corpus")
    inputs = {"descriptions": descriptions.fingerprint, **({} if corpus is None else {"corpus": corpus.fingerprint})}
    inputs |= _of_function(function)
    if function.asks:
        inputs["demonstrations"] = examples_digest(function.examples)
    facts = partial(instruction_facts, corpus, config)
    needs = function.NEEDS
    return Step("instructions", INSTRUCTIONS, descriptions, needs, function, inputs, out, overwrite, facts=facts)


def _like_describe(config: InstructConfig, descriptions: Artifact) -> InstructConfig:
    """The settings of the rules, those from `describe` where `instruct` has none of its own: they are set once."""
    before = descriptions.manifest.config
    if config.engine != "rule_based" or before.get("engine") != "rule_based":
        return config
    plain = InstructConfig(engine="rule_based")
    if any(getattr(config, name) != getattr(plain, name) for name in OF_RULES):
        return config
    edits, parser = (str(before.get(name, getattr(plain, name))) for name in ("edits", "parser"))
    return replace(config, edits=edits, parser=parser, attributes=tuple(before.get("attributes") or ()))


def verify_step(
    instructions: Source,
    pairs: Source,
    corpus: Source,
    *,
    config: VerifyConfig,
    out: PathLike,
    work: PathLike = ".",
    overwrite: bool = False,
) -> Step:
    """Instructions with their pass rates."""
    instructions, pairs = as_artifact(instructions, "instructions"), as_artifact(pairs, "pairs")
    corpus = as_artifact(corpus, "corpus")
    if len(pairs.manifest.shards) != len(instructions.manifest.shards):
        raise ArtifactError("the instructions were made of other pairs; run `megapairs describe` and `instruct` again")
    path = _clip_path(config.model, work) if config.engine == "clip" else None
    function = Verify(corpus, config=config, model_path=path)
    inputs = {"instructions": instructions.fingerprint, "pairs": pairs.fingerprint, "corpus": corpus.fingerprint}
    inputs |= _of_function(function)
    rows = partial(_with_negatives, pairs)
    return Step("instructions", VERIFIED, instructions, INSTRUCTIONS.names, function, inputs, out, overwrite, rows)


def _of_function(function: AnnotationFunction) -> dict[str, str]:
    """What decides the result beside the settings."""
    facts = {"prompt": function.prompt.digest} if function.prompt is not None else {}
    return facts | ({"model": function.weights} if function.weights else {})


def _clip_path(model: str, work: PathLike) -> str:
    if model.startswith("./") and not storage.is_local(work):
        raise ModelError(f"{model} is in {work}, which is elsewhere; copy the model here and name its folder")
    return model_path(model, work)


def _with_negatives(pairs: Artifact, index: int, table: pa.Table) -> pa.Table:
    """The instructions of one shard with the hard negatives of their pairs.

    Raises:
        ArtifactError: a pair is not among the pairs of this shard.
    """
    rows = pairs.shard(index, [QUERY_ID, TARGET_ID, NEGATIVE_IDS]).to_pylist()
    by_pair = {(row[QUERY_ID], row[TARGET_ID]): row[NEGATIVE_IDS] for row in rows}
    negatives = []
    for key in zip(table[QUERY_ID].to_pylist(), table[TARGET_ID].to_pylist(), strict=True):
        if key not in by_pair:
            raise ArtifactError(
                f"{key[0]} -> {key[1]} is not among the pairs; name the `pairs` that the instructions were made of"
            )
        negatives.append(by_pair[key])
    return table.append_column(NEGATIVE_IDS, pa.array(negatives, pa.list_(pa.string())))
