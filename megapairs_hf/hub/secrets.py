"""The last look before an upload: no token and no folder of this machine in any text that goes out.

What surprises: a vocabulary is searched for tokens only. Its entries are pieces of other people's texts, and paths are
among them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from megapairs_hf.errors import HubError

if TYPE_CHECKING:
    from collections.abc import Iterable

TEXTS = frozenset({".md", ".json", ".jsonl", ".py", ".yaml", ".yml", ".txt", ".jinja", ".csv"})
VOCABULARY = re.compile(r"(.*/)?(tokenizer\.json|vocab\.\w+|merges\.txt|added_tokens\.json)")
# the Hub's user and organisation tokens, and the signed ones
TOKEN = re.compile(r"\b(hf|api_org|hf_jwt)_[A-Za-z0-9]{20,}")
FOLDER = re.compile(
    r"(?<![\w.:/~\-])/(?:home|Users|root|tmp|mnt|media|srv|scratch|workspace|private|var/folders|nfs|gpfs|lustre)"
    r"/[\w.\-]+|\b[A-Za-z]:\\+Users\\+\w+|\bfile://"
)


def check_public(folder: Path, names: Iterable[str]) -> None:
    """Refuse texts that tell a token or a folder of this machine.

    Args:
        folder: the prepared folder.
        names: its files.

    Raises:
        HubError: one does; the message names file and line, and never shows a token.
    """
    home = str(Path.home())
    for name in names:
        if Path(name).suffix not in TEXTS:
            continue
        for number, line in enumerate((folder / name).read_text(encoding="utf-8", errors="replace").split("\n"), 1):
            if TOKEN.search(line):
                raise HubError(
                    f"{name} line {number} holds what looks like a token of the Hub; remove it, revoke the token,"
                    " and push again"
                )
            if VOCABULARY.fullmatch(name):
                continue
            found = FOLDER.search(line)
            told = found.group() if found else home if len(home) > len("/root") and home in line else ""
            if told:
                raise HubError(
                    f"{name} line {number} tells a folder of this machine ({told}); remove it and push again"
                )
