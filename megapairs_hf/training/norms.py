"""The ratio of the towers' norms, by which score fusion weighs them (paper, section 3.2, eq. 2).

The two outputs are added before the sum is normalized, so the longer one is heard more. What surprises: nothing in
the loss holds the ratio near 1; in our trials it stood at 2.1 to 2.5 in every run that made a model worse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megapairs_hf.core.progress import note

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from megapairs_hf.core.inputs import Input

LOW, HIGH = 0.5, 2.0


class NormWatch:
    """Measures the ratio in each batch, and warns of it once."""

    def __init__(self) -> None:
        self.warned = False

    def ratio(self, outputs: torch.Tensor, inputs: Sequence[Input]) -> dict[str, float]:
        """The mean norm of images over that of texts, as `norm_ratio`; nothing for a batch without one of them.

        Args:
            outputs (Tensor[P, D]): of a dual encoder, before normalizing.
            inputs: P images and texts.
        """
        import torch

        shown = torch.tensor([item.image is not None for item in inputs], device=outputs.device)
        if shown.all() or not shown.any():
            return {}
        norms = outputs.detach().float().norm(dim=1)
        ratio = float(norms[shown].mean() / norms[~shown].mean().clamp(min=1e-12))
        if not LOW <= ratio <= HIGH and not self.warned:
            self.warned = True
            longer, times = ("image", ratio) if ratio > HIGH else ("text", 1 / max(ratio, 1e-12))
            note(
                f"the {longer} embeddings are {times:.1f} times as long as the others before they are added, so the"
                f" sum follows the {longer} (0.5 to 2 is usual); lower `lr`, or weigh the two by the weight at the end"
            )
        return {"norm_ratio": round(ratio, 4)}
