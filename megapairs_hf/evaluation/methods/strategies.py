"""Strategies by name: from a model and the embeddings of a gallery to a scorer for `rank`.

`fused` is image and text together by the model; all others compose the embeddings of the two, by `zero_shot.py`,
`CIReVL` after a vision language model has captioned the images and a language model has edited the captions.
What surprises: the embeddings of images and of texts are made once per benchmark, however many strategies use them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from megapairs_hf.core import distributed
from megapairs_hf.core.errors import EvaluationError
from megapairs_hf.evaluation.config import CIREVL, FUSED, NAMES, PDV, alpha_of
from megapairs_hf.evaluation.encode import encode_queries
from megapairs_hf.evaluation.methods.cirevl import caption_then_compose
from megapairs_hf.evaluation.methods.zero_shot import (
    COMPOSED,
    Sides,
    encode_sides,
    encode_texts,
    pdv,
    text_only,
    weimocir,
)
from megapairs_hf.evaluation.rank import EmbeddingScorer, Scorer

if TYPE_CHECKING:
    from megapairs_hf.evaluation.benchmarks.base import Benchmark
    from megapairs_hf.evaluation.config import RequestConfig

# the caption of a reference that has none, for PDV
NO_CAPTION = "a photo"


def text_of(strategy: str) -> str:
    """What a strategy encodes as the query's text, for the options of the record."""
    if strategy == "image only":
        return "none"
    if strategy == CIREVL:
        return "edited caption"
    return f"{NO_CAPTION!r} + caption" if strategy == PDV else "prompt"


@dataclass
class Scoring:
    """Scorers of one benchmark with one model.

    Attributes:
        model: anything with `encode`.
        benchmark: the queries.
        gallery: [G, D] its embeddings.
        batch_size: inputs at a time.
        vlm: captions the images for `CIReVL`.
        llm: edits the captions; None for `vlm`.
        share: folder that all processes of a launcher see; each of them asks for the same scorers in the same order.
        notes: by strategy, what its records say besides.
    """

    model: Any
    benchmark: Benchmark
    gallery: np.ndarray
    batch_size: int = 128
    vlm: RequestConfig | None = None
    llm: RequestConfig | None = None
    share: str = ""
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    _sides: list[Sides] = field(default_factory=list)

    @property
    def sides(self) -> Sides:
        """Embeddings of the queries' images and texts, made once."""
        if not self._sides:
            sides = encode_sides(self.model, self.benchmark, self.gallery, self.batch_size, self.share)
            self._sides.append(sides)
        return self._sides[0]

    def scorer(self, name: str) -> Scorer:
        """The scorer of a strategy.

        Raises:
            EvaluationError: there is no such strategy, or the queries have no image or text to compose.
            ServerUnavailableError: an endpoint fails everything.
        """
        alpha = alpha_of(name)
        if name == FUSED:
            queries = encode_queries(self.model, self.benchmark, name, self.batch_size, self.share)
            return EmbeddingScorer(queries, self.gallery)
        if name in COMPOSED:
            return COMPOSED[name](self.sides)
        if alpha is not None:
            return weimocir(self.sides, alpha)
        if name == CIREVL and self.vlm is not None:
            sides, llm = self.sides, self.llm or self.vlm
            if not distributed.is_main():
                # requests are sent once, and only the first process ranks
                return text_only(sides)
            composed = caption_then_compose(self.benchmark, self.vlm, llm)
            self.notes[name] = {"captioner": self.vlm.model, "composer": llm.model, "unusable": composed.unusable}
            return text_only(replace(sides, texts=encode_texts(self.model, composed.texts, self.batch_size)))
        if name == PDV:
            # the two sides must differ by the change alone, so a prompt's other words may stand in neither
            base = encode_texts(self.model, [NO_CAPTION], self.batch_size)
            texts = encode_queries(self.model, _changed(self.benchmark), "text only", self.batch_size, self.share)
            sides = replace(self.sides, texts=texts)
            return pdv(sides, np.repeat(base, len(texts), axis=0))
        raise EvaluationError(f"unknown strategy {name!r}; known: {', '.join(NAMES)}")


def _changed(benchmark: Benchmark) -> Benchmark:
    """The benchmark with "a photo" and its own words as the texts, all phrasings of a query among them."""
    queries = [
        replace(
            query,
            input=replace(query.input, text=f"{NO_CAPTION} {query.caption or query.input.text}"),
            other_texts=tuple(f"{NO_CAPTION} {words}" for words in query.other_captions),
        )
        for query in benchmark.queries
    ]
    return replace(benchmark, queries=queries)
