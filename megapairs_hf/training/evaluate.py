"""A small retrieval set in memory, to see during training whether the model gets better."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from megapairs_hf.core.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from PIL import Image

KS = (1, 10)
# scores that are closer than this are one score: float32 and the batches of a pass round differently
TIE = 1e-6


@dataclass(frozen=True)
class EvalCallback:
    """Evaluation during training, and what follows from it.

    Attributes:
        evaluators: by name: functions without arguments that measure the model as it is now.
        every: steps between two evaluations; 0 for none.
        best_metric: `evaluator/metric` that decides which checkpoint is best (more is better).
        patience: evaluations without a better value before the run stops; 0 never stops.
        save: writes the loadable model into a folder of each checkpoint.
    """

    evaluators: Mapping[str, Callable[[], Mapping[str, float]]] = field(default_factory=dict)
    every: int = 0
    best_metric: str | None = None
    patience: int = 0
    save: Callable[[Path], None] | None = None


def retrieval(
    model: Any,
    queries: Sequence[tuple[str, str]],
    targets: Sequence[str],
    fetch: Callable[[str], Image.Image],
    batch_size: int = 32,
) -> Callable[[], Mapping[str, float]]:
    """Recall of composed queries among the queries' and targets' own images.

    An image whose score equals the target's, to rounding, counts as ranked before it, so a model that gives the same
    vector for everything finds nothing (where the gallery has more than k images).

    Args:
        model: an MMRet; measured as it is at the time of the call.
        queries: (image id, text) of each.
        targets: image id that answers each; the query's own image is taken out of its gallery, as CIRR does.
        fetch: gives the image of an id.
        batch_size: inputs per forward pass.

    Returns:
        A function that gives `recall@1` and `recall@10` in percent; it raises TrainingError where a vector is not
        finite, as the loop does for a loss or a gradient.
    """
    import numpy as np

    gallery = list(dict.fromkeys([*targets, *(image for image, _ in queries)]))
    index = {name: i for i, name in enumerate(gallery)}

    def measure() -> dict[str, float]:
        options = {"batch_size": batch_size, "show_progress_bar": False, "convert_to_numpy": True}
        asked = [{"image": fetch(image), "text": text} for image, text in queries]
        left = _finite(model.encode_query(asked, **options), "queries")
        right = _finite(model.encode_document([fetch(name) for name in gallery], **options), "images")
        slack = TIE * np.linalg.norm(left, axis=1).max() * np.linalg.norm(right, axis=1).max()
        scores = left @ right.T
        rows = np.arange(len(queries))
        scores[rows, [index[image] for image, _ in queries]] = -np.inf
        own = scores[rows, [index[name] for name in targets]]
        # the target itself is among those that score so much
        ranks = (scores >= own[:, None] - slack).sum(1)
        return {f"recall@{k}": float(100 * (ranks <= k).mean()) for k in KS}

    return measure


def _finite(embeddings: Any, what: str) -> np.ndarray:
    """Embeddings [n, d] in float64, where the order of a sum does not matter.

    Raises:
        TrainingError: one is not finite.
    """
    import numpy as np

    wide = np.asarray(embeddings, np.float64)
    wrong = int((~np.isfinite(wide)).any(1).sum())
    if wrong:
        raise TrainingError(
            f"the model gives embeddings that are not finite for {wrong:,} of the {len(wide):,} {what} of the"
            " evaluation; lower `lr`, or train with mixed_precision: no; the last good checkpoint is kept"
        )
    return wide


def of_triplets(model: Any, triplets: Any, limit: int, batch_size: int) -> Callable[[], Mapping[str, float]]:
    """`retrieval` on the first rows of a split of triplets, each with its first instruction."""
    rows = triplets.dataset[: min(limit, len(triplets))]
    queries = [(image, texts[0]) for image, texts in zip(rows["q_img"], rows["q_text"], strict=True)]
    return retrieval(model, queries, rows["t_img"], triplets.image, batch_size)
