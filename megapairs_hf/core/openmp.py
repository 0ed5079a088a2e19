"""How the threads of OpenMP wait for each other.

What surprises: by default they spin, which is a tenth quicker on a machine that does nothing else, and two to four
times slower on one that does: each step waits for a thread that spinning ones keep off the processor. libgomp reads
the choice as it is loaded, so it must stand in the environment before torch, faiss or numba is imported.
"""

from __future__ import annotations

import os

PASSIVE = {"OMP_WAIT_POLICY": "passive"}
# any of them is the user's own choice
CHOICES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_passively() -> None:
    """Let waiting threads sleep, here and in processes that are started from here, unless the user has chosen."""
    if not any(name in os.environ for name in CHOICES):
        os.environ.update(PASSIVE)
