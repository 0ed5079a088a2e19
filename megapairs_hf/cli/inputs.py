"""What a stage reads, opened by the name of the input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megapairs_hf.artifacts.storage import exists, join
from megapairs_hf.core.errors import ArtifactError, IncompleteArtifactError
from megapairs_hf.core.progress import note

# what an input holds, where that is not its name
KINDS = {"heldout": "corpus", "base": "model"}
MANIFEST = "manifest.json"


def open_input(name: str, path: str, work: str) -> Any:
    """An input of a stage: an artifact, the embeddings of each encoder by name, or a data set's id on the Hub."""
    from megapairs_hf.artifacts.artifact import open_artifact
    from megapairs_hf.artifacts.sources import as_artifact
    from megapairs_hf.artifacts.storage import HUB_ID

    if name == "embeddings":
        return open_embeddings(path)
    if name == "triplets":
        # training reads a published data set by itself, its images too
        on_hub = path != join(work, name) and HUB_ID.fullmatch(path) and not exists(path)
        return path if on_hub else open_artifact(path, name)
    kind = KINDS.get(name, name)
    if name == "heldout" and path == join(work, name) and not exists(path):
        raise ArtifactError(
            f"{work} has no held-out corpus to measure on: no `heldout` of a recipe made one; name a corpus by"
            f" --heldout, or measure on a benchmark: `megapairs eval {join(work, 'model')} circo --data DIR --out DIR`"
        )
    # `work/corpus` looks like the id of a data set
    return open_artifact(path, kind) if path == join(work, name) else as_artifact(path, kind)


def captioned(corpus: Any, path: str) -> Any:
    """A corpus with the captions of a folder or file in the place of its own."""
    from megapairs_hf.artifacts.captioned import with_captions

    note(f"{path} takes the place of the corpus's captions")
    return with_captions(corpus, path)


def open_embeddings(folder: str) -> Any:
    """The embeddings in a folder, by encoder; those of a table; or those of a folder that another program wrote.

    Raises:
        IncompleteArtifactError: some were begun and not finished.
        ArtifactError: there are none.
    """
    from megapairs_hf.artifacts.artifact import open_artifact
    from megapairs_hf.artifacts.sources import as_artifact

    if Path(folder).is_file() or exists(join(folder, MANIFEST)):
        return {Path(folder).stem: as_artifact(folder, "embeddings")}
    names = sorted(path.parent.name for path in Path(folder).glob("[!.]*/manifest.json"))
    begun = sorted(path.parent.name for path in Path(folder).glob("[!.]*/.plan.json"))
    if set(begun) - set(names):
        raise IncompleteArtifactError(f"{folder}/{begun[0]} is not finished; run `megapairs embed` again to continue")
    if not names:
        from megapairs_hf.artifacts.embedding_folders import is_embedding_folder
        from megapairs_hf.mining.embedding_folders import open_embedding_folder

        if is_embedding_folder(folder):
            return open_embedding_folder(folder)
        raise ArtifactError(f"{folder} holds no finished embeddings; run `megapairs embed` first")
    return {name: open_artifact(str(Path(folder) / name), "embeddings") for name in names}
