"""The scores of a CLIP model as a verdict: does query image plus instruction come closer to the target?

Images and texts are encoded once each; the query is the sum of the two embeddings, normalized, as MMRet's score fusion
has it. What surprises: a CLIP model that mined the pairs is no independent judge of them; take another one.
"""

from __future__ import annotations

import base64
import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from megapairs_hf.annotation.tasks import Outcome, Row
from megapairs_hf.core import distributed
from megapairs_hf.core.compatibility import check_adapter_of
from megapairs_hf.core.errors import ImageRejectedError, ModelError
from megapairs_hf.core.schema import QUERY_ID, TARGET_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from megapairs_hf.annotation.corpus_reader import CorpusImages
    from megapairs_hf.core.progress import Progress


class Clip:
    """A CLIP-like model of transformers: unit embeddings of images and texts.

    Args:
        config: the settings of the check.
        place: the model's folder or Hub id.
    """

    def __init__(self, config: Any, place: str) -> None:
        import torch
        from transformers import AutoModel, AutoProcessor

        local = config.local
        check_adapter_of(place, local.revision)
        try:
            self.model = AutoModel.from_pretrained(place, revision=local.revision, dtype=local.dtype).eval()
            self.processor = AutoProcessor.from_pretrained(place, revision=local.revision)
        except (OSError, ValueError) as error:
            told = " ".join(str(error).split())[:300]
            raise ModelError(f"cannot load {config.model}: {told}; check `model` and `local`") from error
        if not hasattr(self.model, "get_image_features"):
            raise ModelError(f"{config.model} is no CLIP-like model; name one, or use `engine: openai`")
        self.device = (
            torch.device("cuda", distributed.rank() % torch.cuda.device_count())
            if (torch.cuda.is_available())
            else torch.device("cpu")
        )
        self.model.to(self.device)
        self.size = config.local.batch_size

    def encode_images(self, images: Sequence[Any]) -> np.ndarray:
        """Embeddings [N, D] of images."""
        return self._encode(images, lambda part: {"images": part}, self.model.get_image_features)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings [N, D] of texts."""
        how = {"padding": True, "truncation": True}
        return self._encode(texts, lambda part: {"text": part, **how}, self.model.get_text_features)

    def _encode(self, items: Sequence[Any], named: Callable[[list[Any]], dict[str, Any]], call: Any) -> np.ndarray:
        import numpy as np
        import torch

        made = []
        with torch.inference_mode():
            for start in range(0, len(items), self.size):
                inputs = self.processor(**named(list(items[start : start + self.size])), return_tensors="pt")
                found = call(**inputs.to(self.device)).pooler_output
                made.append(torch.nn.functional.normalize(found.float(), dim=-1).cpu().numpy())
        return np.concatenate(made)


@lru_cache(maxsize=1)
def load(config: Any, place: str) -> Clip:
    """The model of these settings, loaded once."""
    return Clip(config, place)


def fits_by_clip(
    rows: list[Row],
    bar: Progress,
    index: int,
    *,
    place: str,
    config: Any,
    images: Callable[[], CorpusImages],
    negatives: Callable[[int], Mapping[Any, list[str]]],
    of: Callable[[Mapping[Any, list[str]], Row], list[str]],
) -> list[Outcome]:
    """The verdicts on one shard, batch by batch."""
    found, verdicts = negatives(index), []
    for start in range(0, len(rows), config.local.batch_size):
        part = rows[start : start + config.local.batch_size]
        others = [of(found, row)[: config.negatives] for row in part]
        shown = images()
        shown.gather({i for row, names in zip(part, others, strict=True) for i in (*_ends(row), *names)})
        verdicts += _judge(load(config, place), part, others, shown)
        shown.close()
        bar.advance(len(part))
    return verdicts


def _ends(row: Row) -> tuple[str, str]:
    return row[QUERY_ID], row[TARGET_ID]


def _judge(clip: Clip, rows: list[Row], others: list[list[str]], shown: CorpusImages) -> list[Outcome]:
    from PIL import Image

    images, problems = {}, {}
    for image_id in sorted({i for row, names in zip(rows, others, strict=True) for i in (*_ends(row), *names)}):
        try:
            content = base64.b64decode(shown.data_url(image_id).split(",", 1)[1])
            images[image_id] = Image.open(io.BytesIO(content)).convert("RGB")
        except ImageRejectedError as error:
            problems[image_id] = error
    embeddings = dict(zip(images, clip.encode_images(list(images.values())), strict=True)) if images else {}
    verdicts = []
    for row, names in zip(rows, others, strict=True):
        broken = next((problems[i] for i in _ends(row) if i in problems), None)
        if broken is not None:
            verdicts.append(Outcome(None, broken.reason, broken.detail))
            continue
        asked = embeddings[row[QUERY_ID]] + clip.texts(row["instructions"])
        target = asked @ embeddings[row[TARGET_ID]]
        beaten = [target > asked @ embeddings[name] for name in names if name in embeddings]
        fits = [sum(bool(b[k]) for b in beaten) / len(beaten) if beaten else None for k in range(len(target))]
        verdicts.append(Outcome({**row, "fits": fits}))
    return verdicts
