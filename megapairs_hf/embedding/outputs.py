"""The folders that the embeddings of each encoder go to: begun, resumed, finished, or made anew beside what is there.

What surprises: an update lies beside the folder that it replaces until it is complete.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import Artifact, open_artifact
from megapairs_hf.artifacts.lock import locked, release
from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.successor import drop_new, put_in_place, succeed
from megapairs_hf.artifacts.writer import ArtifactWriter, create_artifact
from megapairs_hf.core import distributed
from megapairs_hf.core.errors import StaleArtifactError
from megapairs_hf.embedding.update import open_earlier, shard_keys, write_keys

if TYPE_CHECKING:
    from megapairs_hf.embedding.config import ModelSettings


@dataclass(frozen=True)
class EncoderOutput:
    """The embeddings of one encoder, begun or finished.

    Attributes:
        target: their folder.
        writer: a writer, or the artifact where it is finished.
        keys: of the corpus's shards.
        is_update: whether they are made beside what is in the folder.
    """

    target: str
    writer: ArtifactWriter | Artifact
    keys: list[str]
    is_update: bool = False

    def finish(self, stats: dict[str, Any]) -> Artifact:
        """The finished embeddings, in their folder."""
        artifact = self.writer
        if isinstance(artifact, ArtifactWriter):
            if distributed.is_main():
                write_keys(artifact.path, self.keys)
            artifact = artifact.finish(stats)
        if not self.is_update:
            return artifact
        if isinstance(self.writer, ArtifactWriter):
            # with its name the folder loses the lock beside it
            release(self.writer.lock)
        if distributed.is_main():
            put_in_place(self.target)
        distributed.barrier()
        return open_artifact(self.target)


def begin(
    corpus: Artifact,
    settings: ModelSettings,
    weights: str,
    target: str,
    held: contextlib.ExitStack,
    *,
    overwrite: bool,
    update: bool,
) -> EncoderOutput:
    """Begin the embeddings of one encoder, or find that they are finished; an update takes over what is the same."""
    keys = shard_keys(corpus, settings.model.input)
    arguments: dict[str, Any] = {
        "kind": "embeddings",
        "config": settings,
        "inputs": {"corpus": corpus.fingerprint, "model": weights},
        "names": shard_names(len(corpus.manifest.shards), "arrow"),
    }
    if update:
        with contextlib.ExitStack() as lock:
            lock.enter_context(locked(target))
            earlier = open_earlier(target, settings, weights)
            if earlier is not None and earlier.artifact.manifest.inputs != arguments["inputs"]:
                held.enter_context(lock.pop_all())
                writer = succeed(target, **arguments)
                if isinstance(writer, ArtifactWriter):
                    earlier.take_over(keys, held.enter_context(writer))
                return EncoderOutput(target, writer, keys, is_update=True)
    try:
        writer = create_artifact(target, overwrite=overwrite, **arguments)
    except StaleArtifactError as error:
        if error.difference == "inputs.corpus" and storage.is_local(target):
            raise StaleArtifactError(
                f"{target} was made of another corpus; pass --update to embed only what is new in this one, or pass"
                " --overwrite to make it again",
                error.difference,
            ) from error
        raise
    if isinstance(writer, ArtifactWriter):
        held.enter_context(writer)
        if distributed.is_main():
            # of an update that was killed before all was made again
            drop_new(target)
    return EncoderOutput(target, writer, keys)
