"""Whether files are those that were written: sha256, compared once per process when a file is first read.

What surprises: a flipped bit in a parquet page or in weights mostly reads well and gives other numbers, so nothing but
the hash tells. A file is compared again only when its size or time has changed; one that is elsewhere (`s3://…`) is
compared where it is copied here, and by `megapairs verify-files`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from megapairs_hf.artifacts import storage
from megapairs_hf.core.errors import ArtifactError, MegaPairsError
from megapairs_hf.core.formatting import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

RESTORE = "put back a good copy of the file, or run the command that made it again with --overwrite"
# (path, size, time of change) of files that were compared, and the digest that each has
COMPARED: dict[tuple[str, int, int], str] = {}


@contextmanager
def reading(path: str, advice: str = RESTORE) -> Iterator[None]:
    """Turn whatever a library raises on the bytes of a file into one sentence that names the exception's type.

    Args:
        path: of the file.
        advice: what to do about it.

    Raises:
        ArtifactError: the file cannot be read.
    """
    try:
        yield
    except (MegaPairsError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing; {advice}") from error
    except Exception as error:
        if isinstance(error, UnicodeEncodeError) and not path.isprintable():
            # it is the path that is no text in this locale, of which the command line says what to do
            raise
        reason = ": ".join(filter(None, [type(error).__name__, one_line(error)]))
        raise ArtifactError(f"{path} cannot be read ({reason}); {advice}") from error


def sha256_of(path: str) -> str:
    """sha256 of a file, read in blocks."""
    from hashlib import sha256

    digest = sha256()
    with storage.open_read(path) as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def fault_of(path: str, digest: object) -> str:
    """What is wrong with a file, as the end of a sentence; empty where its bytes are those that were written.

    Args:
        path: of the file, here or elsewhere.
        digest: the sha256 of its bytes.
    """
    if not storage.is_local(path):
        if not storage.exists(path):
            return "is missing"
        return "" if sha256_of(path) == digest else "is damaged: its bytes are not those that were written"
    file = storage.local(path)
    if not file.is_file():
        return "is missing"
    with reading(path):
        state = file.stat()
        key = (str(file.resolve()), state.st_size, state.st_mtime_ns)
        if key not in COMPARED:
            COMPARED[key] = sha256_of(path)
    return "" if COMPARED[key] == digest else "is damaged: its bytes are not those that were written"


def check_file(path: str, digest: object) -> None:
    """Compare a local file with its digest, once per process; one that is elsewhere is taken as it is.

    Raises:
        ArtifactError: it is missing, cannot be read, or is another.
    """
    if storage.is_local(path):
        fault = fault_of(path, digest)
        if fault:
            raise ArtifactError(f"{path} {fault}; {RESTORE}")
