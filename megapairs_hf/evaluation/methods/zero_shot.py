"""Training-free composed retrieval over any model with image and text embeddings: what MMRet is held against.

Each strategy takes the embeddings of reference images, of texts and of the gallery (`Sides`) and gives a scorer for
`rank`. What surprises: where the reference stays in the ranking, the image alone finds itself first, so its R@1 is
nearly 0 on CIRCO's rule and not on CIRR's; a comparison of strategies says the rule as well as the method.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.evaluation.benchmarks.base import Part
from megapairs_hf.evaluation.encode import encode_parts, query_embeddings
from megapairs_hf.evaluation.rank import EmbeddingScorer, Scorer, rank

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from megapairs_hf.evaluation.benchmarks.base import Benchmark, Ranked


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


def encode_sides(model: Any, benchmark: Benchmark, gallery: np.ndarray, batch_size: int = 128) -> Sides:
    """Encode the queries' images and texts apart.

    Args:
        model: anything with `encode`.
        benchmark: the queries; each must have an image and a text.
        gallery: [G, D] embeddings of the gallery, encoded before.
        batch_size: inputs at a time.

    Raises:
        EvaluationError: a query is no composed one.
    """
    for query in benchmark.queries:
        if query.part.image is None or not query.part.text:
            raise EvaluationError(
                f"query {query.key!r} of {benchmark.name} lacks an image or a text, so there is nothing to compose"
            )
    images = query_embeddings(model, benchmark, "image only", batch_size)
    return Sides(images, query_embeddings(model, benchmark, "text only", batch_size), gallery)


def encode_texts(model: Any, texts: Sequence[str], batch_size: int = 128) -> np.ndarray:
    """Unit embeddings [N, D] of texts."""
    return encode_parts(model, [Part(text=text) for text in texts], lambda _: None, batch_size)


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
    return weighted(sides, 0.5)


def weighted(
    sides: Sides, alpha: float = 0.5, captions: np.ndarray | None = None, beta: float = 0.0
) -> Scorer:  # fmt: skip
    """WeiMoCIR (arXiv:2409.04918): q = (1 - α)·image + α·text, scored against images and their captions.

    Args:
        sides: the embeddings.
        alpha: weight of the text, from 0 (the image alone) to 1 (the text alone).
        captions: [G, D] embeddings of the gallery's captions; the score is then (1 - β)·q·image + β·q·caption.
        beta: weight of the captions.

    Raises:
        EvaluationError: a weight is not from 0 to 1, or there is no caption to be weighed.
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if not 0 <= value <= 1:
            raise EvaluationError(f"`{name}` is {value}, but must be from 0 to 1")
    if beta and captions is None:
        raise EvaluationError("`beta` weighs the gallery's captions; give their embeddings, or leave it 0")
    gallery = sides.gallery if captions is None else (1 - beta) * sides.gallery + beta * captions
    return EmbeddingScorer(unit((1 - alpha) * sides.images + alpha * sides.texts), gallery)


def directional(
    sides: Sides, base: np.ndarray, alpha_image: float = 1.0, alpha_text: float = 1.0, beta: float = 0.5
) -> Scorer:
    """Prompt directional embeddings, PDV (arXiv:2502.07215): what the prompt changes in the text moves the image too.

    With Δ = text of the composed caption - text of the reference's own caption: the image moves by α_I·Δ, the
    caption by α_T·Δ, and the two are fused by β.

    Args:
        sides: the embeddings; `texts` are of composed captions ("a dog" + "at night").
        base: [Q, D] unit embeddings of the captions without the change; of "a photo" where there are none.
        alpha_image: how far the image is moved.
        alpha_text: how far the caption is moved; 1 is the composed caption itself.
        beta: weight of the text.

    Raises:
        EvaluationError: `base` does not fit the texts.
    """
    if base.shape != sides.texts.shape:
        raise EvaluationError(f"`base` is {list(base.shape)}, but must be {list(sides.texts.shape)}, one a query")
    change = sides.texts - base
    image = unit(sides.images + alpha_image * change)
    text = unit(base + alpha_text * change)
    return EmbeddingScorer(unit((1 - beta) * image + beta * text), sides.gallery)


@dataclass(frozen=True)
class ProductScorer:
    """BASIC (arXiv:2510.25387): centerd similarities to image and to text, multiplied.

    Both are shifted and scaled by a smallest similarity, cut off at 0, and joined as s_i·s_t - λ·(s_i + s_t)², Harris'
    measure, which wants both large. BASIC's projection and query expansion need word lists and are left out. The
    authors take means and minima from LAION and from generated queries; here they come from the benchmark itself,
    without labels, so numbers differ from theirs.

    Attributes:
        sides: the embeddings.
        harris: λ; 0 is the plain product.
        centerd: whether the means of gallery and texts are taken off.
    """

    sides: Sides
    harris: float = 0.1
    centerd: bool = True

    @cached_property
    def _embeddings(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if not self.centerd:
            return self.sides.images, self.sides.texts, self.sides.gallery
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

    def block(self, start: int, stop: int) -> np.ndarray:
        """Scores [stop - start, G] float32."""
        images, texts, gallery = self._embeddings
        low_image, low_text = self._smallest
        image = np.maximum((images[start:stop] @ gallery.T + low_image) / low_image, 0)
        text = np.maximum((texts[start:stop] @ gallery.T + low_text) / low_text, 0)
        scores: np.ndarray = image * text - self.harris * (image + text) ** 2
        return scores.astype(np.float32)


def product(sides: Sides, harris: float = 0.1, *, centerd: bool = True) -> Scorer:
    """Product of the two similarities; see `ProductScorer`."""
    return ProductScorer(sides, harris, centerd)


# what needs nothing but the embeddings, by the name in the records
COMPOSED: Mapping[str, Callable[[Sides], Scorer]] = {
    "image only": image_only,
    "text only": text_only,
    "sum": added,
    "product": product,
}


def compare(benchmark: Benchmark, scorers: Mapping[str, Scorer], top: int = 50) -> dict[str, Ranked]:
    """Rank one benchmark by several strategies, side by side."""
    return {name: rank(benchmark, scorer, top) for name, scorer in scorers.items()}


def with_texts(benchmark: Benchmark, texts: Sequence[str]) -> Benchmark:
    """The benchmark with other texts, such as captions composed by a language model (CIReVL).

    Raises:
        EvaluationError: there is not one text a query.
    """
    if len(texts) != len(benchmark.queries):
        raise EvaluationError(f"{len(texts)} texts for {len(benchmark.queries)} queries; give one each")
    pairs = zip(benchmark.queries, texts, strict=True)
    queries = [replace(query, part=replace(query.part, text=text), other_texts=()) for query, text in pairs]
    return replace(benchmark, queries=queries)
