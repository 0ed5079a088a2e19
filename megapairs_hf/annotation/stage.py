"""The stages: `pairs` → `descriptions` → `instructions` (MegaPairs §3.1, appendix A), their check, and `captions`.

What surprises: the rule-based engine reads the captions in both steps and the description in neither; it keeps the two
artifacts only so that everything after them is the same with and without a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megapairs_hf.annotation.runner import annotate
from megapairs_hf.annotation.shard_io import NO_VERDICT
from megapairs_hf.annotation.steps import caption_step, describe_step, instruct_step, verify_step
from megapairs_hf.annotation.verify import note_no_verdict

if TYPE_CHECKING:
    from megapairs_hf.annotation.config import CaptionConfig, DescribeConfig, InstructConfig, VerifyConfig
    from megapairs_hf.annotation.steps import Source
    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.storage import PathLike


def caption_images(
    corpus: Source,
    *,
    config: CaptionConfig,
    out: PathLike,
    overwrite: bool = False,
) -> Artifact:
    """Write a caption for every image.

    Args:
        corpus: the images; their own captions are not looked at.
        config: settings.
        out: output directory.
        overwrite: replace an earlier result.

    Returns:
        An artifact of kind `captions`; `with_captions` puts it in the place of a corpus's own. Images without a usable
        one are in its list of rejected rows.

    Raises:
        ServerUnavailableError: the servers refuse or fail every request; responses so far are kept.
        BudgetSpentError: the budget is exhausted; responses so far are kept.
        ConfigError: the prompt file cannot be used.
    """
    return annotate(caption_step(corpus, config=config, out=out, overwrite=overwrite))


def describe_pairs(
    pairs: Source,
    corpus: Source,
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
    return annotate(describe_step(pairs, corpus, config=config, out=out, overwrite=overwrite))


def instruct_pairs(
    descriptions: Source,
    corpus: Source | None = None,
    *,
    config: InstructConfig,
    out: PathLike,
    overwrite: bool = False,
) -> Artifact:
    """Turn every description into several search instructions.

    Args:
        descriptions: of `describe_pairs`.
        corpus: the captions; None where neither the rule-based engine nor a prompt of one's own reads them.
        config: settings.
        out: output directory.
        overwrite: replace an earlier result.

    Returns:
        An artifact of kind `instructions`; pairs with too few good ones are in its `rejected.parquet`, with the raw
        response.

    Raises:
        ServerUnavailableError: the servers refuse or fail every request; responses so far are kept.
        BudgetSpentError: the budget is exhausted; responses so far are kept.
        ArtifactError: captions are needed, and there is no corpus.
        ConfigError: the prompt file, the few-shot file or an attribute cannot be used.
    """
    return annotate(instruct_step(descriptions, corpus, config=config, out=out, overwrite=overwrite))


def verify_pairs(
    instructions: Source,
    pairs: Source,
    corpus: Source,
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
        The instructions again, with the column `verified`: for each the share of hard negatives that the target beats.

    Raises:
        ArtifactError: the instructions were made of other pairs.
        ModelError: the CLIP model is not there, or is none.
        ServerUnavailableError: the servers refuse or fail every request; responses so far are kept.
        BudgetSpentError: the budget is exhausted; responses so far are kept.
    """
    step = verify_step(instructions, pairs, corpus, config=config, out=out, work=work, overwrite=overwrite)
    artifact = annotate(step)
    verdicts = dict(artifact.manifest.stats.get("verdicts", {}))
    if artifact.rows and not sum(count for name, count in verdicts.items() if name != NO_VERDICT):
        note_no_verdict(asked=config.engine != "clip" and bool(artifact.manifest.stats.get("answers")))
    return artifact
