"""Settings of a push. The words have the Hub's own meaning; nothing here is from the paper."""

from __future__ import annotations

import re
from dataclasses import dataclass

from megapairs_hf.config import require

LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.\-]*")


@dataclass(frozen=True)
class PushConfig:
    """Settings of one push.

    Attributes:
        repo_id: `name` or `organisation/name`.
        private: for a repository that is made by this push; one that exists stays as it is.
        create_pr: open a pull request instead of committing.
        revision: branch to commit to, made where it is not there; None for the default one.
        commit_message: None for one that says what was pushed.
        licence: the Hub's identifier of the licence (`apache-2.0`, `cc-by-4.0`, `other`); never guessed.
        dry_run: write the folder that would be uploaded, and stop.
        card: path of another card template; None for the package's own.
    """

    repo_id: str
    private: bool = False
    create_pr: bool = False
    revision: str | None = None
    commit_message: str | None = None
    licence: str | None = None
    dry_run: bool = False
    card: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.repo_id.strip()), "repo_id", self.repo_id, "a name such as organisation/name")
        one_place = not (self.create_pr and self.revision not in {None, "main"})
        require(one_place, "revision", self.revision, "left out with create_pr: the Hub opens those against main")
        known = self.licence is None or LICENCE_ID.fullmatch(self.licence) is not None
        require(known, "licence", self.licence, "a licence identifier of the Hub such as apache-2.0 or cc-by-4.0")
