"""The stages: `pairs` → `descriptions` → `instructions` (MegaPairs §3.1, appendix A), and their verification.

What surprises: the rule-based engine reads the captions in both steps and the description in neither; it keeps the two
artifacts only so that everything after them is the same with and without a model.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

from megapairs_hf.annotation.corpus_reader import CorpusImages, check_attributes, read_texts
from megapairs_hf.annotation.describe import Describe
from megapairs_hf.annotation.engines.clip_score import verify_by_clip
from megapairs_hf.annotation.engines.shard_io import Step
from megapairs_hf.annotation.instruct import Instruct
from megapairs_hf.annotation.prompts.few_shot import examples_digest, load_examples
from megapairs_hf.annotation.prompts.templates import describe_prompt, instruct_prompt, load_prompt
from megapairs_hf.annotation.rule_based.engine import describe_by_rules, instruct_by_rules
from megapairs_hf.annotation.runner import annotate_by_function, annotate_by_model, check_kind
from megapairs_hf.annotation.tasks import ids_of
from megapairs_hf.annotation.verify import SLOTS, Verify
from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.fingerprints import model_path, weights_fingerprint
from megapairs_hf.artifacts.lookup import known_ids
from megapairs_hf.core.errors import ArtifactError, ModelError
from megapairs_hf.core.schema import DESCRIPTIONS, INSTRUCTIONS, NEGATIVE_IDS, QUERY_ID, TARGET_ID, VERIFIED

if TYPE_CHECKING:
    import pyarrow as pa

    from megapairs_hf.annotation.config import DescribeConfig, InstructConfig, VerifyConfig
    from megapairs_hf.annotation.prompts.templates import Prompt
    from megapairs_hf.annotation.tasks import Row
    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.storage import PathLike

KEYS = (QUERY_ID, TARGET_ID)


def describe_pairs(
    pairs: Artifact,
    corpus: Artifact,
    *,
    config: DescribeConfig,
    out: PathLike,
    overwrite: bool = False,
) -> Artifact:
    """Describe what the two images of every pair share and how they differ.

    Args:
        pairs: of `mine_pairs`.
        corpus: the images and captions.
        config: settings.
        out: output directory.
        overwrite: replace an earlier result.

    Returns:
        An artifact of kind `descriptions`; pairs without a usable description are in its `rejected.parquet`.

    Raises:
        ServerUnavailableError: the servers refuse or fail every request; responses so far are kept.
        BudgetSpentError: the budget is exhausted; responses so far are kept.
        ConfigError: the prompt file or an attribute cannot be used.
    """
    check_kind(pairs, "pairs")
    check_kind(corpus, "corpus")
    inputs = {"pairs": pairs.fingerprint, "corpus": corpus.fingerprint}
    if config.engine == "rule_based":
        check_attributes(corpus, config.attributes)
        step = Step("descriptions", DESCRIPTIONS, pairs, KEYS, config, inputs, out, overwrite)
        return annotate_by_function(step, partial(describe_by_rules, corpus=corpus, config=config))
    prompt = describe_prompt(config.prompt)

    def make_task(table: pa.Table, _: int) -> Describe:
        images = CorpusImages(corpus, config.max_image_side)
        return Describe(config, prompt, images, _texts(corpus, table, prompt))

    inputs["prompt"] = prompt.digest
    step = Step("descriptions", DESCRIPTIONS, pairs, KEYS, config, inputs, out, overwrite)
    return annotate_by_model(step, make_task, vision=True)


def instruct_pairs(
    descriptions: Artifact,
    corpus: Artifact,
    *,
    config: InstructConfig,
    out: PathLike,
    overwrite: bool = False,
) -> Artifact:
    """Turn every description into several search instructions.

    Args:
        descriptions: of `describe_pairs`.
        corpus: the captions.
        config: settings.
        out: output directory.
        overwrite: replace an earlier result.

    Returns:
        An artifact of kind `instructions`; pairs with too few good ones are in its `rejected.parquet`, with the raw
        response.

    Raises:
        ServerUnavailableError: the servers refuse or fail every request; responses so far are kept.
        BudgetSpentError: the budget is exhausted; responses so far are kept.
        ConfigError: the prompt file, the few-shot file or an attribute cannot be used.
    """
    check_kind(descriptions, "descriptions")
    check_kind(corpus, "corpus")
    inputs = {"descriptions": descriptions.fingerprint, "corpus": corpus.fingerprint}
    columns = (*KEYS, "description")
    if config.engine == "rule_based":
        check_attributes(corpus, config.attributes)
        step = Step("instructions", INSTRUCTIONS, descriptions, columns, config, inputs, out, overwrite)
        return annotate_by_function(step, partial(instruct_by_rules, corpus=corpus, config=config))
    prompt = instruct_prompt(config.prompt)
    examples = load_examples(config.few_shot_file, config.num_few_shot)

    def make_task(table: pa.Table, _: int) -> Instruct:
        return Instruct(config, prompt, examples, _texts(corpus, table, prompt))

    inputs |= {"prompt": prompt.digest, "demonstrations": examples_digest(examples)}
    step = Step("instructions", INSTRUCTIONS, descriptions, columns, config, inputs, out, overwrite)
    return annotate_by_model(step, make_task)


def _texts(corpus: Artifact, table: pa.Table, prompt: Prompt) -> dict[str, Row]:
    """The captions of some pairs, for a prompt that uses them."""
    if not prompt.needs_captions:
        return {}
    return read_texts(corpus, ids_of(table.select(list(KEYS)).to_pylist()))


def verify_pairs(
    instructions: Artifact,
    pairs: Artifact,
    corpus: Artifact,
    *,
    config: VerifyConfig,
    out: PathLike,
    work: PathLike = ".",
    overwrite: bool = False,
) -> Artifact:
    """Compare the target of every instruction with the hard negatives of its pair.

    Args:
        instructions: of `instruct_pairs`.
        pairs: with their hard negatives.
        corpus: the images.
        config: settings.
        out: output directory.
        work: what `./…` in the path of a CLIP model is relative to.
        overwrite: replace an earlier result.

    Returns:
        The instructions again, with the column `fits`: for each the share of hard negatives that the target beats.

    Raises:
        ArtifactError: the instructions were made of other pairs.
        ModelError: the CLIP model is not there, or is none.
        ServerUnavailableError: the servers refuse or fail every request; responses so far are kept.
        BudgetSpentError: the budget is exhausted; responses so far are kept.
    """
    for artifact, kind in ((instructions, "instructions"), (pairs, "pairs"), (corpus, "corpus")):
        check_kind(artifact, kind)
    if len(pairs.manifest.shards) != len(instructions.manifest.shards):
        raise ArtifactError("the instructions were made of other pairs; run `megapairs describe` and `instruct` again")
    inputs = {"instructions": instructions.fingerprint, "pairs": pairs.fingerprint, "corpus": corpus.fingerprint}
    step = partial(
        Step, "instructions", VERIFIED, instructions, tuple(INSTRUCTIONS.names), config, out=out, overwrite=overwrite
    )
    images = partial(CorpusImages, corpus, config.max_image_side)
    negatives = partial(_negatives_of_shard, pairs, corpus)
    if config.engine == "clip":
        path = _clip_path(config.model, work)
        inputs["model"] = weights_fingerprint(path, config.local.revision)
        verify = partial(verify_by_clip, path=path, config=config, images=images, negatives=negatives)
        return annotate_by_function(step(inputs=inputs), verify)
    prompt = load_prompt(config.prompt, "verify.jinja", frozenset({*SLOTS, "instruction"}), SLOTS)
    inputs["prompt"] = prompt.digest
    return annotate_by_model(
        step(inputs=inputs), lambda _, index: Verify(config, prompt, images(), negatives(index)), vision=True
    )


def _clip_path(model: str, work: PathLike) -> str:
    if model.startswith("./") and not storage.is_local(work):
        raise ModelError(f"{model} is in {work}, which is elsewhere; copy the model here and name its folder")
    return model_path(model, work)


def _negatives_of_shard(pairs: Artifact, corpus: Artifact, index: int) -> dict[tuple[str, str], list[str]]:
    """The hard negatives of the pairs of one shard that the corpus has, each pair's in an order of its own."""
    rows = pairs.shard(index, [QUERY_ID, TARGET_ID, NEGATIVE_IDS]).to_pylist()
    known = known_ids(corpus, {name for row in rows for name in row[NEGATIVE_IDS]})
    negatives = {
        (row[QUERY_ID], row[TARGET_ID]): [name for name in row[NEGATIVE_IDS] if name in known] for row in rows
    }
    for key, names in negatives.items():
        random.Random("\0".join(key)).shuffle(names)
    return negatives
