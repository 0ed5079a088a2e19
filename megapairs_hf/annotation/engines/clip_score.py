"""CLIP scores as a verifier: does query image plus instruction come closer to the target?

Images and texts are encoded once each; the query is the sum of the two embeddings, normalized, as MMRet's score fusion
has it. What surprises: a CLIP model that mined the pairs is no independent judge of them; take another one.
"""

from __future__ import annotations

import base64
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from megapairs_hf.annotation.tasks import Outcome, Row
from megapairs_hf.annotation.verify_tasks import scored
from megapairs_hf.core.compatibility import check_adapter_of, pad_with_end_token
from megapairs_hf.core.errors import ImageRejectedError, MegaPairsError, ModelError
from megapairs_hf.core.formatting import one_line
from megapairs_hf.core.schema import QUERY_ID, TARGET_ID
from megapairs_hf.images.decode import to_rgb

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from megapairs_hf.annotation.config import Local
    from megapairs_hf.annotation.corpus_reader import CorpusImages


class Clip:
    """A CLIP-like model: unit embeddings of images and texts.

    Args:
        model: its name, for errors.
        path: its folder or Hub id.
        local: how it is run.
        device: where.
    """

    def __init__(self, model: str, path: str, local: Local, device: str) -> None:
        from sentence_transformers import SentenceTransformer

        check_adapter_of(path, local.revision)
        try:
            self.model = SentenceTransformer(
                path,
                revision=local.revision,
                device=device,
                model_kwargs={"dtype": local.dtype},
            )
        except (MegaPairsError, MemoryError):
            raise
        except Exception as error:  # safetensors, tokenizers and each architecture have exceptions of their own
            message = f"{one_line(error, 300)} ({type(error).__name__})"
            raise ModelError(f"cannot load {model}: {message}; check `model` and `local`") from error
        pad_with_end_token(getattr(self.model[0], "tokenizer", None), path)
        if not self.model.supports("image") or not self.model.supports("text"):
            raise ModelError(f"{model} is no CLIP-like model; name one, or use `engine: openai`")
        self.batch_size = local.batch_size

    def encode(self, inputs: Sequence[Any]) -> np.ndarray:
        """Unit embeddings [N, D] of images or of texts."""
        import numpy as np

        embeddings = self.model.encode(list(inputs), batch_size=self.batch_size, show_progress_bar=False)
        # in single precision, whatever that of the weights
        return normalized(np.asarray(embeddings, np.float32))


def normalized(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings of unit length, [N, D]."""
    import numpy as np

    unit: np.ndarray = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return unit


@lru_cache(maxsize=1)
def load(model: str, path: str, _weights: str, local: Local, device: str) -> Clip:
    """The model of these settings, loaded once, and again when its weights are others."""
    return Clip(model, path, local, device)


def pass_rates(
    clip: Clip,
    rows: list[Row],
    negatives: Mapping[tuple[str, str], list[str]],
    corpus_images: CorpusImages,
) -> list[Outcome]:
    """The scores of the candidates, and the share of hard negatives that the target beats, for each instruction.

    Args:
        clip: the model.
        rows: the pairs, with `instructions`.
        negatives: of each pair.
        corpus_images: with the images of these pairs.
    """
    images, problems = {}, {}
    keys = [(row[QUERY_ID], row[TARGET_ID]) for row in rows]
    for image_id in sorted({name for key in keys for name in (*key, *negatives[key])}):
        try:
            content = base64.b64decode(corpus_images.data_url(image_id).split(",", 1)[1])
            images[image_id] = to_rgb(content)
        except ImageRejectedError as error:
            problems[image_id] = error
    embeddings = dict(zip(images, clip.encode(list(images.values())), strict=True)) if images else {}
    outcomes = []
    for row, key in zip(rows, keys, strict=True):
        problem = next((problems[name] for name in key if name in problems), None)
        if problem is not None:
            outcomes.append(Outcome(None, problem.reason, problem.detail))
            continue
        queries = normalized(embeddings[key[0]] + clip.encode(row["instructions"]))
        candidates = [key[1], *(name for name in negatives[key] if name in embeddings)]
        scores = [queries @ embeddings[name] for name in candidates]
        outcomes.append(scored(candidates, list(zip(*scores, strict=True)), len(queries)))
    return outcomes
