"""What an import says at its end: what it put right in the lines, and why no line was left where none was.

What surprises: an import of nothing is finished as an artifact all the same, since its `rejected.parquet` says why.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts.storage import join
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.progress import note

if TYPE_CHECKING:
    from collections.abc import Iterable

    from megapairs_hf.artifacts.artifact import Artifact
    from megapairs_hf.artifacts.storage import PathLike


MENDED = "mended"
COPY = "negative_is_copy"


def mended_stats(counts: Iterable[Counter[str]], jsonl: PathLike) -> dict[str, Any]:
    """Say what was put right, and give it for the manifest; nothing where nothing was."""
    mended = sum(counts, Counter[str]())
    if not mended:
        return {}
    summary = ", ".join(f"{count:,} {reason}" for reason, count in mended.most_common())
    note(f"{jsonl}: lines in which images were left out: {summary}")
    return {MENDED: dict(sorted(mended.items()))}


def check_lines(artifact: Artifact, jsonl: PathLike, image_root: PathLike) -> Artifact:
    """The artifact, unless it has no triplet to learn from.

    Raises:
        ArtifactError: no line could be used.
    """
    if not artifact.manifest.stats["triplets"]["train"]:
        lines = [row for row in artifact.rejected().to_pylist() if " line " in row["key"]]
        counts = Counter(row["reason"] for row in lines).most_common(1)
        first = next((row for row in lines if counts and row["reason"] == counts[0][0]), None)
        summary = f" ({counts[0][1]:,} {counts[0][0]}, such as {first['key']}: {first['detail']})" if first else ""
        raise ArtifactError(
            f"no line of {jsonl} can be used with the images in {image_root}{summary}; look at"
            f" {join(artifact.path, 'rejected.parquet')}, correct the lines, and import again with `overwrite`"
        )
    return artifact
