"""The two stages: `pairs` → `descriptions` → `instructions` (MegaPairs §3.1, appendix A).

What surprises: the stand-in engine reads the captions in both steps and the description in neither; it keeps the two
artifacts only so that everything after them is the same with and without a model.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from megapairs_hf.annotate import prompts
from megapairs_hf.annotate.by_captions import describe_by_captions, instruct_by_captions
from megapairs_hf.annotate.endpoint import Budget, Endpoint
from megapairs_hf.annotate.jobs import DescribeJob, InstructJob, ids_of
from megapairs_hf.annotate.making import Asked, Step, check_kind, make_asked, make_plain
from megapairs_hf.annotate.pictures import Pictures, check_attributes, read_texts
from megapairs_hf.schema import DESCRIPTIONS, INSTRUCTIONS, QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    import pyarrow as pa

    from megapairs_hf.annotate.config import DescribeConfig, InstructConfig
    from megapairs_hf.annotate.jobs import Row
    from megapairs_hf.artifact import Artifact
    from megapairs_hf.storage import PathLike

KEYS = (QUERY_ID, TARGET_ID)


def describe_pairs(
    pairs: Artifact,
    corpus: Artifact,
    *,
    config: DescribeConfig,
    out: PathLike,
    overwrite: bool = False,
    endpoint: Endpoint | None = None,
    budget: Budget | None = None,
) -> Artifact:
    """Describe what the two images of every pair share and how they differ.

    Args:
        pairs: what the mining found.
        corpus: the images and captions.
        config: settings.
        out: folder of the result.
        overwrite: throw away what is there.
        endpoint: where the servers are; None for a server on this machine.
        budget: what may be spent; None for no limit.

    Returns:
        An artifact of kind `descriptions`; pairs without a usable description are in its `rejected.parquet`.

    Raises:
        ServerUnavailableError: the endpoint refuses or fails every question; answers so far are kept.
        BudgetSpentError: the budget does not reach; answers so far are kept.
        ConfigError: the prompt file or an attribute cannot be used.
    """
    check_kind(pairs, "pairs")
    check_kind(corpus, "corpus")
    inputs = {"pairs": pairs.fingerprint, "corpus": corpus.fingerprint}
    if config.engine == "captions":
        check_attributes(corpus, config.attributes)
        step = Step("descriptions", DESCRIPTIONS, pairs, KEYS, config, inputs, out, overwrite)
        return make_plain(step, partial(describe_by_captions, corpus=corpus, config=config))
    prompt = prompts.describe_prompt(config.prompt)

    def job(table: pa.Table, _: str, __: int) -> DescribeJob:
        pictures = Pictures(corpus, config.max_image_side, config.jpeg_quality)
        return DescribeJob(config, prompt, pictures, _texts(corpus, table) if config.with_captions else {})

    inputs["prompt"] = prompt.digest
    step = Step("descriptions", DESCRIPTIONS, pairs, KEYS, config, inputs, out, overwrite)
    return make_asked(step, Asked(job, endpoint or Endpoint(), budget or Budget(), vision=True))


def instruct_pairs(
    descriptions: Artifact,
    corpus: Artifact,
    *,
    config: InstructConfig,
    out: PathLike,
    overwrite: bool = False,
    endpoint: Endpoint | None = None,
    budget: Budget | None = None,
) -> Artifact:
    """Turn every description into several search instructions.

    Args:
        descriptions: what `describe_pairs` made.
        corpus: the captions.
        config: settings.
        out: folder of the result.
        overwrite: throw away what is there.
        endpoint: where the servers are; None for a server on this machine.
        budget: what may be spent; None for no limit.

    Returns:
        An artifact of kind `instructions`; pairs with too few good ones are in its `rejected.parquet`, with the raw
        reply.

    Raises:
        ServerUnavailableError: the endpoint refuses or fails every question; answers so far are kept.
        BudgetSpentError: the budget does not reach; answers so far are kept.
        ConfigError: the prompt file, the pool or an attribute cannot be used.
    """
    check_kind(descriptions, "descriptions")
    check_kind(corpus, "corpus")
    inputs = {"descriptions": descriptions.fingerprint, "corpus": corpus.fingerprint}
    read = (*KEYS, "description")
    if config.engine == "captions":
        check_attributes(corpus, config.attributes)
        step = Step("instructions", INSTRUCTIONS, descriptions, read, config, inputs, out, overwrite)
        return make_plain(step, partial(instruct_by_captions, corpus=corpus, config=config))
    prompt = prompts.instruct_prompt(config.prompt)
    pool = prompts.load_pool(config.pool, config.demonstrations)

    def job(table: pa.Table, reply_format: str, _: int) -> InstructJob:
        return InstructJob(config, prompt, pool, _texts(corpus, table) if config.with_captions else {}, reply_format)

    inputs |= {"prompt": prompt.digest, "demonstrations": prompts.pool_digest(pool)}
    step = Step("instructions", INSTRUCTIONS, descriptions, read, config, inputs, out, overwrite)
    return make_asked(step, Asked(job, endpoint or Endpoint(), budget or Budget(), config.reply_format))


def _texts(corpus: Artifact, table: pa.Table) -> dict[str, Row]:
    return read_texts(corpus, ids_of(table.select(list(KEYS)).to_pylist()))
