"""Training-free composed retrieval over any model with image and text embeddings: what MMRet is held against.

Each strategy takes the embeddings of reference images, of texts and of the gallery (`Sides`) and gives a scorer for
`rank`. What surprises: where the reference stays in the ranking, the image alone finds itself first, so its R@1 is
nearly 0 on CIRCO's rule and not on CIRR's; a comparison of strategies says the rule as well as the method.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.core.inputs import Input
from megapairs_hf.evaluation.encode import encode_inputs, encode_queries
from megapairs_hf.evaluation.rank import EmbeddingScorer, Scorer, equal_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from megapairs_hf.evaluation.benchmarks.base import Benchmark

# λ of Harris' measure, from BASIC
HARRIS = 0.1


@dataclass(frozen=True)
class Sides:
    """Unit embeddings of a benchmark, float32.

    Attributes:
        images: [Q, D] of the reference images.
        texts: [Q, D] of the texts.
        gallery: [G, D].
    """

    images: np.ndarray
    texts: np.ndarray
    gallery: np.ndarray

    def __post_init__(self) -> None:
        same = self.images.shape == self.texts.shape and self.images.shape[1] == self.gallery.shape[1]
        if not same:
            raise EvaluationError(
                f"embeddings of images {list(self.images.shape)}, texts {list(self.texts.shape)} and gallery"
                f" {list(self.gallery.shape)} do not belong together; encode all with one model"
            )


def encode_sides(
    model: Any, benchmark: Benchmark, gallery: np.ndarray, batch_size: int = 128, share: str = ""
) -> Sides:
    """Encode the queries' images and texts apart.

    Args:
        model: anything with `encode`.
        benchmark: the queries; each must have an image and a text.
        gallery: [G, D] embeddings of the gallery, encoded before.
        batch_size: inputs at a time.
        share: folder that all processes of a launcher see.

    Raises:
        EvaluationError: a query is no composed one.
    """
    for query in benchmark.queries:
        if query.input.image is None or not query.input.text:
            raise EvaluationError(
                f"query {query.key!r} of {benchmark.name} lacks an image or a text, so there is nothing to compose"
            )
    images = encode_queries(model, benchmark, "image only", batch_size, share)
    return Sides(images, encode_queries(model, benchmark, "text only", batch_size, share), gallery)


def encode_texts(model: Any, texts: Sequence[str], batch_size: int = 128) -> np.ndarray:
    """Unit embeddings [N, D] of texts."""
    return encode_inputs(model, [Input(text) for text in texts], lambda _: None, batch_size)


def unit(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings [N, D] at unit length."""
    result: np.ndarray = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    return result


def image_only(sides: Sides) -> Scorer:
    """The reference image alone."""
    return EmbeddingScorer(sides.images, sides.gallery)


def text_only(sides: Sides) -> Scorer:
    """The text alone."""
    return EmbeddingScorer(sides.texts, sides.gallery)


def added(sides: Sides) -> Scorer:
    """Sum of the unit embeddings: "Image + Text" of Pic2Word (arXiv:2302.03084) and all tables since."""
    return weimocir(sides, 0.5)


def weimocir(sides: Sides, alpha: float = 0.5) -> Scorer:
    """WeiMoCIR (arXiv:2409.04918) without captions of the gallery: q = (1 - α)·image + α·text.

    Args:
        sides: the embeddings.
        alpha: weight of the text, from 0 (the image alone) to 1 (the text alone).

    Raises:
        EvaluationError: the weight is not from 0 to 1.
    """
    if not 0 <= alpha <= 1:
        raise EvaluationError(f"`alpha` is {alpha}, but must be from 0 to 1")
    return EmbeddingScorer(unit((1 - alpha) * sides.images + alpha * sides.texts), sides.gallery)


def pdv(sides: Sides, base: np.ndarray) -> Scorer:
    """Prompt Directional Vector, PDV (arXiv:2502.07215): what the prompt changes in the text moves the image too.

    With Δ = text of the composed caption - text of the reference's own caption: the mean of image + Δ and of the
    composed caption; the paper's α_I and α_T are 1 and its β is 0.5.

    Args:
        sides: the embeddings; `texts` are of composed captions ("a dog" + "at night").
        base: [Q, D] unit embeddings of the captions without the change; of "a photo" where there are none.

    Raises:
        EvaluationError: `base` does not fit the texts.
    """
    if base.shape != sides.texts.shape:
        raise EvaluationError(f"`base` is {list(base.shape)}, but must be {list(sides.texts.shape)}, one per query")
    return EmbeddingScorer(unit(unit(sides.images + sides.texts - base) + unit(sides.texts)), sides.gallery)


@dataclass(frozen=True)
class ProductScorer:
    """After BASIC (arXiv:2510.25387), without its projection and expansion: centered similarities, multiplied.

    Both are shifted and scaled by a smallest similarity, cut off at 0, and joined as s_i·s_t - λ·(s_i + s_t)², Harris'
    measure with λ = 0.1, which wants both large. BASIC's projection and query expansion need word lists and are left
    out, and its means and minima come from LAION and from generated queries; here they come from the benchmark itself,
    without labels. So the numbers compare with no paper's.

    Attributes:
        sides: the embeddings.
    """

    sides: Sides

    @cached_property
    def _embeddings(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        of_images, of_texts = self.sides.gallery.mean(0), self.sides.texts.mean(0)
        # a single text minus its own mean is nothing: then the texts stay where they are
        texts = self.sides.texts - of_texts if len(np.unique(self.sides.texts, axis=0)) > 1 else self.sides.texts
        return self.sides.images - of_images, texts, self.sides.gallery - of_images

    @cached_property
    def _smallest(self) -> tuple[float, float]:
        """Smallest similarities to images and to texts over all queries, negative or the scale would be lost."""
        images, texts, gallery = self._embeddings
        lows = [1e-6, 1e-6]
        for start in range(0, len(images), 64):
            for i, queries in enumerate((images, texts)):
                lows[i] = max(lows[i], -float((queries[start : start + 64] @ gallery.T).min()))
        return lows[0], lows[1]

    @cached_property
    def _copies(self) -> tuple[np.ndarray, np.ndarray]:
        return equal_rows(np.asarray(self.sides.gallery, np.float32))

    def block(self, start: int, stop: int) -> np.ndarray:
        """Scores [stop - start, G] float32; equal embeddings of the gallery have equal scores."""
        images, texts, gallery = self._embeddings
        low_image, low_text = self._smallest
        image = np.maximum((images[start:stop] @ gallery.T + low_image) / low_image, 0)
        text = np.maximum((texts[start:stop] @ gallery.T + low_text) / low_text, 0)
        scores: np.ndarray = image * text - HARRIS * (image + text) ** 2
        copies, originals = self._copies
        scores[:, copies] = scores[:, originals]
        return scores.astype(np.float32)


# what needs nothing but the embeddings, by the name in the records
COMPOSED: Mapping[str, Callable[[Sides], Scorer]] = {
    "image only": image_only,
    "text only": text_only,
    "sum": added,
    "product": ProductScorer,
}
