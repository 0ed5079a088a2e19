"""Does an instruction lead to its target? Optional, and ours: each is held against the pair's hard negatives.

`engine: openai` or `transformers` asks a vision-language model yes or no whether (query, instruction) fits the target
better than a hard negative; `engine: clip` compares the scores of a CLIP model. The share of hard negatives that the
target beats is the column `fits`; the threshold on it is `min_fit` of the build. A pair is left out here only where
its own pictures are missing or the server refuses it. What surprises: which of the two candidates comes first
alternates between the questions of an instruction: a model that always says yes scores a half.
"""

from __future__ import annotations

import random
import re
from functools import partial
from typing import TYPE_CHECKING, Any

from megapairs_hf import storage
from megapairs_hf.annotate import prompts
from megapairs_hf.annotate.clip_fit import fits_by_clip
from megapairs_hf.annotate.config import pair_seed
from megapairs_hf.annotate.endpoint import Budget, Endpoint
from megapairs_hf.annotate.jobs import Row, Verdict
from megapairs_hf.annotate.making import Asked, Step, check_kind, make_asked, make_plain
from megapairs_hf.annotate.pictures import Pictures, known_ids
from megapairs_hf.annotate.transport import Question
from megapairs_hf.artifact import model_place, weights_fingerprint
from megapairs_hf.errors import ArtifactError, ModelError
from megapairs_hf.schema import INSTRUCTIONS, NEGATIVE_IDS, QUERY_ID, TARGET_ID, VERIFIED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pyarrow as pa

    from megapairs_hf.annotate.config import VerifyConfig
    from megapairs_hf.annotate.jobs import Job
    from megapairs_hf.annotate.journal import Reply
    from megapairs_hf.artifact import Artifact
    from megapairs_hf.storage import PathLike

SLOTS = ("query_image", "first_image", "second_image")
YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


class VerifyJob:
    """One question for every instruction of a pair and every hard negative."""

    def __init__(
        self, config: VerifyConfig, prompt: prompts.Prompt, pictures: Pictures, negatives: Mapping[Any, list[str]]
    ) -> None:
        self.config, self.prompt, self.pictures, self.negatives = config, prompt, pictures, negatives

    def against(self, row: Row) -> list[str]:
        """The hard negatives that are held against the target."""
        return negatives_of(self.negatives, row)[: self.config.negatives]

    def prepare(self, rows: Iterable[Row]) -> None:
        """Read and shrink the pictures."""
        self.pictures.gather({i for row in rows for i in (row[QUERY_ID], row[TARGET_ID], *self.against(row))})

    def close(self) -> None:
        """Remove the shrunken pictures."""
        self.pictures.close()

    def _target_first(self, row: Row, attempt: int) -> bool:
        others = len(self.against(row))
        first = pair_seed(self.config.seed, row[QUERY_ID], row[TARGET_ID], attempt // others) & 1
        return bool((first + attempt % others) & 1)

    def question(self, row: Row, attempt: int) -> Question:
        """Three pictures and one instruction."""
        others = self.against(row)
        text, other = row["instructions"][attempt // len(others)], others[attempt % len(others)]
        candidates = (row[TARGET_ID], other) if self._target_first(row, attempt) else (other, row[TARGET_ID])
        urls = [self.pictures.data_url(image_id) for image_id in (row[QUERY_ID], *candidates)]
        messages = prompts.format_pictures(self.prompt, dict(zip(SLOTS, urls, strict=True)), instruction=text)
        parameters = {"temperature": 0.0, "top_p": None, "max_tokens": 5}
        seed = pair_seed(self.config.seed, row[QUERY_ID], row[TARGET_ID], attempt)
        return Question(messages, self.config.model, parameters | {"seed": seed})

    def settle(self, row: Row, replies: Mapping[int, Reply]) -> Verdict | int:
        """The share of hard negatives that the target beats, for every instruction; null where no reply says."""
        others, count = self.against(row), len(row["instructions"])
        asked = range(count * len(others))
        missing = next((n for n in asked if n not in replies), None)
        if missing is not None:
            return missing
        said = [self._beats(row, n, replies[n].text) for n in asked]
        groups = [said[i * len(others) : (i + 1) * len(others)] for i in range(count)]
        return Verdict({**row, "fits": [share(group) for group in groups]})

    def _beats(self, row: Row, attempt: int, text: str) -> bool | None:
        found = YES_NO.search(prompts.spoken(text))
        return None if found is None else (found[1].lower() == "yes") == self._target_first(row, attempt)


def negatives_of(negatives: Mapping[Any, list[str]], row: Row) -> list[str]:
    """The hard negatives of a pair.

    Raises:
        ArtifactError: the pair is not among them.
    """
    key = row[QUERY_ID], row[TARGET_ID]
    if key not in negatives:
        raise ArtifactError(
            f"{key[0]} -> {key[1]} is not among the pairs; name the `pairs` that the instructions were made of"
        )
    return negatives[key]


def share(verdicts: list[bool | None]) -> float | None:
    """Share of the verdicts that are yes; None where there is none."""
    known = [verdict for verdict in verdicts if verdict is not None]
    return sum(known) / len(known) if known else None


def verify_pairs(
    instructions: Artifact,
    pairs: Artifact,
    corpus: Artifact,
    *,
    config: VerifyConfig,
    out: PathLike,
    work: PathLike = ".",
    overwrite: bool = False,
    endpoint: Endpoint | None = None,
    budget: Budget | None = None,
) -> Artifact:
    """Hold every instruction against the hard negatives of its pair.

    Args:
        instructions: what `instruct_pairs` made.
        pairs: with their hard negatives.
        corpus: the images.
        config: settings.
        out: folder of the result.
        work: what `./…` in the path of a CLIP model is relative to.
        overwrite: throw away what is there.
        endpoint: where the servers are; None for a server on this machine.
        budget: what may be spent; None for no limit.

    Returns:
        The instructions again, with the column `fits`: for each the share of hard negatives that the target beats.

    Raises:
        ArtifactError: the instructions were made of other pairs.
        ModelError: the CLIP model is not there, or is none.
        ServerUnavailableError: the endpoint refuses or fails every question; answers so far are kept.
        BudgetSpentError: the budget does not reach; answers so far are kept.
    """
    for artifact, kind in ((instructions, "instructions"), (pairs, "pairs"), (corpus, "corpus")):
        check_kind(artifact, kind)
    if len(pairs.manifest.shards) != len(instructions.manifest.shards):
        raise ArtifactError("the instructions were made of other pairs; run `megapairs describe` and `instruct` again")
    inputs = {"instructions": instructions.fingerprint, "pairs": pairs.fingerprint, "corpus": corpus.fingerprint}
    read = tuple(INSTRUCTIONS.names)

    def pictures() -> Pictures:
        return Pictures(corpus, config.max_image_side, config.jpeg_quality)

    if config.engine == "clip":
        place = _clip_place(config.model, work)
        inputs["model"] = weights_fingerprint(place, config.local.revision)
        step = Step("instructions", VERIFIED, instructions, read, config, inputs, out, overwrite)
        negatives = partial(_negatives, pairs, corpus)
        judge = partial(
            fits_by_clip, place=place, config=config, pictures=pictures, negatives=negatives, of=negatives_of
        )
        return make_plain(step, judge)
    prompt = prompts.load_prompt(config.prompt, "verify.jinja", frozenset({*SLOTS, "instruction"}), SLOTS)

    def job(_: pa.Table, __: str, index: int) -> Job:
        return VerifyJob(config, prompt, pictures(), _negatives(pairs, corpus, index))

    inputs["prompt"] = prompt.digest
    step = Step("instructions", VERIFIED, instructions, read, config, inputs, out, overwrite)
    return make_asked(step, Asked(job, endpoint or Endpoint(), budget or Budget(), vision=True))


def _clip_place(model: str, work: PathLike) -> str:
    if model.startswith("./") and not storage.is_local(work):
        raise ModelError(f"{model} is in {work}, which is elsewhere; copy the model here and name its folder")
    return model_place(model, work)


def _negatives(pairs: Artifact, corpus: Artifact, index: int) -> dict[tuple[str, str], list[str]]:
    """The hard negatives of the pairs of one shard that the corpus has, each pair's in an order of its own."""
    rows = pairs.shard(index, [QUERY_ID, TARGET_ID, NEGATIVE_IDS]).to_pylist()
    there = known_ids(corpus, {name for row in rows for name in row[NEGATIVE_IDS]})
    found = {(row[QUERY_ID], row[TARGET_ID]): [name for name in row[NEGATIVE_IDS] if name in there] for row in rows}
    for key, names in found.items():
        random.Random("\0".join(key)).shuffle(names)
    return found
