"""Votes of the search page as a data set of triplets, which `eval` measures by and `train` learns from.

An image that was called right is a target, those that were called wrong for the same query are its hard negatives.
What surprises: the data set holds all images of the index, since a benchmark ranks the target among all of them;
`gallery: voted` keeps those alone that votes name, which is enough for training.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.artifact import Artifact
from megapairs_hf.artifacts.shards import shard_names
from megapairs_hf.artifacts.writer import Rejection, create_artifact
from megapairs_hf.core.errors import ArtifactError
from megapairs_hf.core.progress import Progress
from megapairs_hf.core.schema import TRIPLETS, with_features
from megapairs_hf.dataset.layout import COMPOSED, cut, image_table
from megapairs_hf.search.config import VotesConfig
from megapairs_hf.search.generation import INDEX
from megapairs_hf.search.index_contents import index_contents
from megapairs_hf.search.page.votes import NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from megapairs_hf.artifacts.storage import PathLike
    from megapairs_hf.search.index import SearchIndex

TRIPLETS_FILE = "triplets/train-00000-of-00001.parquet"


@dataclass(frozen=True)
class Vote:
    """One line of a file of votes.

    Attributes:
        query_image: id of the image that was searched with, in the index; empty for none of it.
        query_file: an image that a visitor gave, relative to the file of votes; empty for none.
        text: of the query.
        image_id: of the result.
        vote: 1 or -1.
    """

    query_image: str
    query_file: str
    text: str
    image_id: str
    vote: int

    @property
    def query_id(self) -> str:
        """What the data set calls the image of the query; empty where there is none."""
        return self.query_image or (f"votes/{self.query_file}" if self.query_file else "")


def read_votes(path: PathLike) -> list[Vote]:
    """The votes in a file; of several on one result of one query the last counts.

    Raises:
        ArtifactError: it cannot be read, or a line is no vote; the line is named.
    """
    votes: dict[tuple[str, str, str], Vote] = {}
    if not storage.exists(path):
        raise ArtifactError(f"{path} does not exist; vote on results of `megapairs search serve`, or check the path")
    for number, line in enumerate(storage.read_bytes(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            vote = _vote(json.loads(line))
        except (ValueError, RecursionError, AttributeError) as error:
            raise ArtifactError(f"{path} line {number} is no vote ({error}); correct or delete it") from error
        votes[vote.query_id, vote.text, vote.image_id] = vote
    if not votes:
        raise ArtifactError(f"{path} holds no vote; vote on results of `megapairs search serve` first")
    return list(votes.values())


def _vote(values: Any) -> Vote:
    texts = {name: values.get(name) or "" for name in ("query_image", "query_file", "text", "image_id")}
    for name, value in texts.items():
        if not isinstance(value, str):
            raise ValueError(f"{name} is {value!r}")
    if values.get("vote") not in {1, -1} or isinstance(values["vote"], bool) or not texts["image_id"]:
        raise ValueError("it needs image_id, and vote 1 or -1")
    if texts["query_file"] and not storage.is_inside(texts["query_file"]):
        raise ValueError(f"query_file {texts['query_file']!r} lies elsewhere")
    return Vote(**texts, vote=values["vote"])


def triplets_of_votes(
    index: SearchIndex,
    out: PathLike,
    *,
    votes: PathLike | None = None,
    config: VotesConfig | None = None,
    overwrite: bool = False,
) -> Artifact:
    """Write votes as triplets with their images.

    Args:
        index: that was searched.
        out: the artifact's folder.
        votes: the file; None for the one beside the index.
        config: the settings.
        overwrite: replace what is there.

    Returns:
        A `triplets` artifact; queries without an image, a text or a right result are in `rejected`.

    Raises:
        ArtifactError: there are no votes, none of them makes a triplet, or an image is gone.
    """
    config = config or VotesConfig()
    path = Path(votes) if votes is not None else index.folder / NAME
    rows, rejected = _triplets(read_votes(path), index, config)
    if not rows:
        reasons = ", ".join(sorted({reason for _, reason, _ in rejected}))
        raise ArtifactError(f"no vote of {path} makes a triplet ({reasons}); vote for results of an image with a text")
    numbers = _gallery(rows, index, config)
    tables = [partial(_rows_of, index, [row for row, _ in numbers[part]]) for part in cut([n for _, n in numbers])]
    visitors = _visitors(rows, path.parent)
    tables += [partial(list, visitors)] if visitors else []
    names = [TRIPLETS_FILE, *shard_names(len(tables), "parquet", "images/train")]
    inputs = {"votes": _digest(path), "index": _digest(index.folder / INDEX)}
    writer = create_artifact(out, kind="triplets", config=config, inputs=inputs, names=names, overwrite=overwrite)
    if isinstance(writer, Artifact):
        return writer
    with writer, Progress("votes", len(names), "files") as bar:
        for shard in writer.mine():
            content = image_table(tables[shard - 1]()) if shard else _triplet_table(rows)
            writer.write(shard, content)
            bar.advance()
        stats = {"triplets": {"train": len(rows)}, "query_only": [one["image_id"] for one in visitors]}
        return writer.finish(stats, rejected)


def _triplet_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=with_features(TRIPLETS))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _triplets(
    votes: Sequence[Vote], index: SearchIndex, config: VotesConfig
) -> tuple[list[dict[str, Any]], list[Rejection]]:
    """A row for each right result of each query, and the queries that give none."""
    groups: dict[tuple[str, str], list[Vote]] = {}
    rejected: list[Rejection] = []
    ids = set(index.generation.rows["image_id"].to_pylist())
    for vote in votes:
        absent = [name for name in (vote.query_image, vote.image_id) if name and name not in ids]
        if absent:
            rejected.append((vote.image_id, "not_in_index", absent[0]))
        else:
            groups.setdefault((vote.query_id, vote.text.strip()), []).append(vote)
    rows: list[dict[str, Any]] = []
    for (query, text), some in groups.items():
        key = f"{query} + {text}"
        right = [one.image_id for one in some if one.vote > 0 and one.image_id != query]
        wrong = [one.image_id for one in some if one.vote < 0 and one.image_id != query]
        if not query:
            rejected.append((key, "no_query_image", "searched by a text alone"))
        elif not text:
            rejected.append((key, "no_instruction", "searched by an image alone"))
        elif not right:
            rejected.append((key, "no_positive", f"{len(wrong)} wrong results"))
        else:
            rows += [_row(query, text, target, wrong, config.language) for target in right]
    return rows, rejected


def _row(query: str, text: str, target: str, wrong: Sequence[str], language: str) -> dict[str, Any]:
    blanks: dict[str, Any] = {"relation": [], "scores": [], "verified": [], "candidate_scores": []}
    named = {"q_img": query, "q_text": [text], "t_img": target, "hns": [query, *wrong]}
    return {**named, **blanks, "task": COMPOSED, "language": language}


def _gallery(rows: Sequence[dict[str, Any]], index: SearchIndex, config: VotesConfig) -> list[tuple[int, int]]:
    """Rows of the index whose images the data set holds, with the sizes of their files."""
    named = {name for row in rows for name in (row["t_img"], *row["hns"])}
    columns = zip(
        index.generation.rows["image_id"].to_pylist(), index.generation.rows["num_bytes"].to_pylist(), strict=True
    )
    return [(n, size) for n, (name, size) in enumerate(columns) if config.gallery == "all" or name in named]


def _visitors(rows: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The images that visitors gave."""
    names = dict.fromkeys(row["q_img"] for row in rows if row["q_img"].startswith("votes/"))
    return [
        {"image_id": name, "image": {"bytes": _visitor(folder, name.removeprefix("votes/")), "path": None}}
        for name in names
    ]


def _visitor(folder: Path, name: str) -> bytes:
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise ArtifactError(f"the image {path} of a query is gone; put it back, or delete its lines")
    return path.read_bytes()


def _rows_of(index: SearchIndex, rows: Sequence[int]) -> list[dict[str, Any]]:
    facts = index.rows.columns(rows, ["image_id", "caption"])
    contents = dict(index_contents(index, rows))
    return [{**one, "image": {"bytes": contents[row], "path": None}} for row, one in zip(rows, facts, strict=True)]
