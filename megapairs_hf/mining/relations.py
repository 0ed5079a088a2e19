"""A relation with its embeddings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from megapairs_hf.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from megapairs_hf.mining.config import RelationConfig
    from megapairs_hf.mining.knn.embeddings import Embeddings


@dataclass(frozen=True)
class Relation:
    """A relation with its embeddings.

    Attributes:
        name: of the relation.
        query: the embeddings that are searched with.
        target: the embeddings that are searched; the same object where they are the same embeddings.
        visual: whether both are of images, so that a very high score means the same image.
    """

    name: str
    query: Embeddings
    target: Embeddings
    visual: bool

    @property
    def same(self) -> bool:
        """Whether embeddings are compared with themselves."""
        return self.query is self.target

    def over(self, query: Embeddings, target: Embeddings) -> Relation:
        """The same relation over other rows."""
        return replace(self, query=query, target=target)


def open_relations(
    embeddings: Mapping[str, Embeddings], texts: Collection[str], settings: Sequence[RelationConfig]
) -> list[Relation]:
    """The embeddings of every relation.

    Args:
        embeddings: by name, all of the same rows.
        texts: the names of those that are of texts.
        settings: the relations.

    Raises:
        ConfigError: embeddings are missing, or the two of a relation do not fit.
    """
    needed_embeddings(settings, embeddings)
    relations = []
    for relation in settings:
        query, target = relation.embeddings
        left, right = embeddings[query].dimension, embeddings[target].dimension
        if left != right:
            raise ConfigError(
                f"relation {relation.name!r} compares {query} with {target}, but their embeddings have"
                f" {left} and {right} dimensions; take two towers of one model"
            )
        visual = query not in texts and target not in texts
        relations.append(Relation(relation.name, embeddings[query], embeddings[target], visual))
    return relations


def needed_embeddings(settings: Sequence[RelationConfig], known: Collection[str]) -> list[str]:
    """The names of the embeddings that relations need, each once.

    Raises:
        ConfigError: some are not among those known.
    """
    names: dict[str, None] = {}
    for relation in settings:
        for name in relation.embeddings:
            if name not in known:
                there = ", ".join(known)
                raise ConfigError(f"relation {relation.name!r} needs embeddings {name!r}; there are {there}")
            names[name] = None
    return list(names)
