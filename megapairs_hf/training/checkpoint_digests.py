"""Whether the files of a checkpoint are those that were written: their SHA-256 hashes, in the checkpoint itself.

A rename is atomic, yet a power cut, a full quota or a copy can leave a file of the newest checkpoint cut off, empty or
absent. What surprises: a file that still loads can be damaged too, and a run that continued from it would end in
another model without a word, so every byte is hashed before a checkpoint is taken.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from megapairs_hf.artifacts import storage
from megapairs_hf.artifacts.fingerprints import sha256_of

if TYPE_CHECKING:
    from collections.abc import Sequence

DIGESTS = "files.json"
NAMED = 3


def write_digests(folder: Path) -> None:
    """Write the hashes of all files of a folder into it, and make everything durable."""
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    digests = {Path(name).as_posix(): sha256_of(str(folder / name)) for name in names}
    content = json.dumps({"files": digests, "sha256": _digest(digests)}, indent=1)
    (folder / DIGESTS).write_text(content, encoding="utf-8")
    for name in (*names, DIGESTS):
        storage.sync_file(folder / name)


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint, as the end of a sentence; empty where every file is as it was written."""
    try:
        content = json.loads((folder / DIGESTS).read_bytes())
    except FileNotFoundError:
        return f"{DIGESTS} is missing"
    except (OSError, ValueError, RecursionError):
        content = None
    digests = content.get("files") if isinstance(content, dict) else None
    if not isinstance(digests, dict) or content.get("sha256") != _digest(digests):
        return f"{DIGESTS} is cut off or damaged"
    wrong = [f"{name} {fault}" for name, digest in digests.items() if (fault := _fault(folder / name, digest))]
    return _some(wrong)


def _digest(digests: dict[str, str]) -> str:
    """The hash of the hashes: of a list that lost a name nothing else would tell."""
    return sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _fault(file: Path, digest: object) -> str:
    try:
        if not file.is_file():
            return "is missing"
        return "" if sha256_of(str(file)) == digest else "is cut off or damaged"
    except (OSError, ValueError):
        # a name that was damaged may be none that the system takes
        return "cannot be read"


def _some(sentences: Sequence[str]) -> str:
    return "; ".join(sentences[:NAMED]) + ("; …" if len(sentences) > NAMED else "")
