"""A caption model that needs no training: random word embeddings, weighted by rarity.

The mean of random embeddings is a random projection of the bag of words (Johnson and Lindenstrauss), so its cosine is
that of the words two captions share; weighting by inverse document frequency (compare Arora et al. 2017) lets the
rare words count. It is an ordinary Sentence Transformers model, `StaticEmbedding`, and takes the place of a text
model such as BGE.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sentence_transformers import SentenceTransformer


def word_model(captions: Sequence[str], tokenizer: Any, dimension: int, seed: int) -> SentenceTransformer:
    """Make the model.

    Args:
        captions: by which the rarity of tokens is measured.
        tokenizer: a fast tokenizer of transformers.
        dimension: of the embeddings.
        seed: of the embeddings.

    Returns:
        A Sentence Transformers model for texts.
    """
    import numpy as np
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding

    seen: Counter[int] = Counter()
    for ids in tokenizer(list(captions), add_special_tokens=False)["input_ids"]:
        seen.update(set(ids))
    weights = [math.log((1 + len(captions)) / (1 + seen[token])) for token in range(len(tokenizer))]
    embeddings = np.random.default_rng(seed).standard_normal((len(tokenizer), dimension)) / math.sqrt(dimension)
    embeddings *= np.maximum(np.array(weights), 1e-3)[:, None]
    static = StaticEmbedding(tokenizer.backend_tokenizer, embedding_weights=embeddings.astype(np.float32))
    return SentenceTransformer(modules=[static, Normalize()], device="cpu", similarity_fn_name="cosine")
