"""CLIP scores as a verifier: does query image plus instruction come closer to the target?

Images and texts are encoded once each; the query is the sum of the two embeddings, normalized, as MMRet's score fusion
has it. What surprises: a CLIP model that mined the pairs is no independent judge of them; take another one.
"""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from megapairs_hf.annotation.tasks import Outcome, Row
from megapairs_hf.annotation.verify import negatives_of
from megapairs_hf.core.compatibility import check_adapter_of
from megapairs_hf.core.distributed import choose_device
from megapairs_hf.core.errors import ImageRejectedError, ModelError
from megapairs_hf.core.schema import QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from megapairs_hf.annotation.corpus_reader import CorpusImages
    from megapairs_hf.core.progress import Progress


class Clip:
    """A CLIP-like model: unit embeddings of images and texts.

    Args:
        config: the settings of the check.
        path: the model's folder or Hub id.
    """

    def __init__(self, config: Any, path: str) -> None:
        from sentence_transformers import SentenceTransformer

        local = config.local
        check_adapter_of(path, local.revision)
        try:
            self.model = SentenceTransformer(
                path,
                revision=local.revision,
                device=choose_device(None),
                model_kwargs={"dtype": local.dtype},
            )
        except (OSError, ValueError) as error:
            message = " ".join(str(error).split())[:300]
            raise ModelError(f"cannot load {config.model}: {message}; check `model` and `local`") from error
        if not self.model.supports("image") or not self.model.supports("text"):
            raise ModelError(f"{config.model} is no CLIP-like model; name one, or use `engine: openai`")
        self.batch_size = config.local.batch_size

    def encode(self, inputs: Sequence[Any]) -> np.ndarray:
        """Embeddings [N, D] of images or of texts."""
        import numpy as np

        embeddings = self.model.encode(list(inputs), batch_size=self.batch_size, show_progress_bar=False)
        # in single precision, whatever that of the weights
        embeddings = np.asarray(embeddings, np.float32)
        normalized: np.ndarray = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        return normalized


@lru_cache(maxsize=1)
def load(config: Any, path: str) -> Clip:
    """The model of these settings, loaded once."""
    return Clip(config, path)


def verify_by_clip(
    rows: list[Row],
    bar: Progress,
    index: int,
    *,
    path: str,
    config: Any,
    images: Callable[[], CorpusImages],
    negatives: Callable[[int], Mapping[Any, list[str]]],
) -> list[Outcome]:
    """The outcomes of one shard, batch by batch."""
    by_pair, outcomes = negatives(index), []
    for start in range(0, len(rows), config.local.batch_size):
        batch = rows[start : start + config.local.batch_size]
        others = [negatives_of(by_pair, row)[: config.negatives] for row in batch]
        corpus_images = images()
        corpus_images.load(_image_ids(batch, others))
        outcomes += _compare(load(config, path), batch, others, corpus_images)
        corpus_images.close()
        bar.advance(len(batch))
    return outcomes


def _image_ids(rows: list[Row], others: list[list[str]]) -> set[str]:
    return {i for row, names in zip(rows, others, strict=True) for i in (row[QUERY_ID], row[TARGET_ID], *names)}


def _compare(clip: Clip, rows: list[Row], others: list[list[str]], corpus_images: CorpusImages) -> list[Outcome]:
    from PIL import Image

    images, problems = {}, {}
    for image_id in sorted(_image_ids(rows, others)):
        try:
            content = base64.b64decode(corpus_images.data_url(image_id).split(",", 1)[1])
            images[image_id] = Image.open(io.BytesIO(content)).convert("RGB")
        except ImageRejectedError as error:
            problems[image_id] = error
    embeddings = dict(zip(images, clip.encode(list(images.values())), strict=True)) if images else {}
    outcomes = []
    for row, names in zip(rows, others, strict=True):
        problem = next((problems[i] for i in (row[QUERY_ID], row[TARGET_ID]) if i in problems), None)
        if problem is not None:
            outcomes.append(Outcome(None, problem.reason, problem.detail))
            continue
        queries = embeddings[row[QUERY_ID]] + clip.encode(row["instructions"])
        target = queries @ embeddings[row[TARGET_ID]]
        beaten = [target > queries @ embeddings[name] for name in names if name in embeddings]
        fits = [sum(bool(b[k]) for b in beaten) / len(beaten) if beaten else None for k in range(len(target))]
        outcomes.append(Outcome({**row, "fits": fits}))
    return outcomes
