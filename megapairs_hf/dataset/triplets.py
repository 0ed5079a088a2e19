"""`Triplets`: a `datasets.Dataset` of triplets by image id, joined with the images when a row is read.

What surprises: a row read by its number has images, while `map`, `filter` and everything else of `datasets` sees ids,
so that nothing is decoded or copied before it is looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from megapairs_hf.dataset.html import triplets_html
from megapairs_hf.dataset.rows_with_images import RowsWithImages
from megapairs_hf.dataset.save import push_configurations

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd  # type: ignore[import-untyped]
    from datasets import Features
    from huggingface_hub import CommitInfo

SHOWN = 3


class Triplets(RowsWithImages):
    """Triplets with their images.

        triplets = Triplets(drop_errors(pairs.map(JoinTriplets(), batched=True)), images=ds)

    `triplets[i]` is a dict with `q_img` (a PIL image), `q_text` (its instructions), `t_img`, `hns` (images; the first
    is the query image), `relation`, `scores` and every other column; `triplets.ids(i)` is the same row with image ids,
    and decodes nothing. Rows, images and the index that joins them are memory-mapped where they come from files, so a
    pickle for a worker is a few names.

    Args:
        dataset: one row per triplet, images by id, as `JoinTriplets` adds them and as the published `triplets` have
            them; a column `split` (by `split_pairs`) makes splits.
        images: the images of all rows: `image_id`, `image`, and `caption` where there are captions; a `Dataset`, a
            corpus or its folder, a table of one's own, or a published data set.
        columns: the columns of a row; None for all.
        root: the folder below which a `Dataset` has its images by reference; None to take a path as it is.

    Raises:
        ConfigError: a column is missing, or rows have an `error`.
    """

    @property
    def features(self) -> Features:
        """The columns and their types, images by id."""
        return self.dataset.features

    def map(self, *arguments: Any, **options: Any) -> Triplets:
        """`Dataset.map` over the rows with image ids."""
        return self._of(self.dataset.map(*arguments, **options))

    def filter(self, *arguments: Any, **options: Any) -> Triplets:
        """`Dataset.filter` over the rows with image ids."""
        return self._of(self.dataset.filter(*arguments, **options))

    def select(self, *arguments: Any, **options: Any) -> Triplets:
        """`Dataset.select`: the rows of these numbers."""
        return self._of(self.dataset.select(*arguments, **options))

    def shuffle(self, *arguments: Any, **options: Any) -> Triplets:
        """`Dataset.shuffle`: the rows in another order."""
        return self._of(self.dataset.shuffle(*arguments, **options))

    def to_pandas(self) -> pd.DataFrame:
        """The rows with image ids."""
        return self.dataset.to_pandas()

    def with_transform(self, transform: Callable[[dict[str, list[Any]]], dict[str, Any]] | None) -> Triplets:
        """The triplets with a function that is applied to rows when they are read.

        Args:
            transform: takes columns by name, as lists, with images decoded, and gives others of the same length;
                None for none.
        """
        changed = self._of(self.dataset)
        changed.transform = transform
        return changed

    def push_to_hub(self, repo_id: str, **options: Any) -> CommitInfo:
        """Push the configurations `triplets`, `images` (those that the rows name) and `preview`, each by `datasets`.

        The README gets the YAML by which `load_dataset` finds them and claims nothing; `megapairs_hf.push` makes a
        card, and looks for tokens.

        Args:
            repo_id: `user/name`.
            **options: of `DatasetDict.push_to_hub`: `private`, `token`, `revision`, `create_pr`, `max_shard_size`, …

        Returns:
            The last commit, as `datasets` gives it; with `create_pr` the one pull request that holds all.

        Raises:
            ArtifactError: images are missing.
        """
        return push_configurations(self, repo_id, **options)

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {count:,}" for name, count in self.splits.items())
        what = f"{len(self):,} triplets ({splits}) of {len(self.images):,} images"
        return f"Triplets: {what}\ncolumns: {', '.join(self.column_names)}"

    def _repr_html_(self) -> str:
        return triplets_html(repr(self), self.ids(range(min(SHOWN, len(self)))), self.files)
