"""A small retrieval set in memory, to see during training whether the model gets better."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from PIL import Image

KS = (1, 10)


@dataclass(frozen=True)
class Watch:
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
    """Recall of composed queries among the queries' and targets' own pictures.

    Args:
        model: an MMRet; measured as it is at the time of the call.
        queries: (image id, text) of each.
        targets: image id that answers each; the query's own picture is taken out of its gallery, as CIRR does.
        fetch: gives the picture of an id.
        batch_size: inputs a forward pass.

    Returns:
        A function that gives `recall@1` and `recall@10` in percent.
    """
    import numpy as np

    gallery = list(dict.fromkeys([*targets, *(image for image, _ in queries)]))
    place = {name: i for i, name in enumerate(gallery)}

    def measure() -> dict[str, float]:
        options = {"batch_size": batch_size, "show_progress_bar": False, "convert_to_numpy": True}
        asked = [{"image": fetch(image), "text": text} for image, text in queries]
        left = model.encode_query(asked, **options)
        right = model.encode_document([fetch(name) for name in gallery], **options)
        scores = left @ right.T
        rows = np.arange(len(queries))
        scores[rows, [place[image] for image, _ in queries]] = -np.inf
        own = scores[rows, [place[name] for name in targets]]
        ranks = 1 + (scores > own[:, None]).sum(1)
        return {f"recall@{k}": float(100 * (ranks <= k).mean()) for k in KS}

    return measure


def of_triplets(model: Any, triplets: Any, limit: int, batch_size: int) -> Callable[[], Mapping[str, float]]:
    """`retrieval` on the first rows of a split of triplets, each with its first instruction."""
    rows = triplets.rows[: min(limit, len(triplets))]
    queries = [(image, texts[0]) for image, texts in zip(rows["q_img"], rows["q_text"], strict=True)]
    return retrieval(model, queries, rows["t_img"], triplets.image, batch_size)
