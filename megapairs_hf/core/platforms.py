"""What differs between Linux, macOS and Windows, in one file.

What surprises: everything is looked up at each call, not at import, so that tests on one system can play another.
"""

from __future__ import annotations

import os
import sys

# bytes on macOS, where every other system that has it counts kibibytes
PEAK_UNIT = {"darwin": 1}


def cpu_cores() -> int:
    """CPU cores that this process may run on; all of the machine where the system does not say."""
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


def peak_memory_bytes() -> int:
    """The most memory that this process used so far; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return _peak_of_windows()
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * PEAK_UNIT.get(sys.platform, 1024)


def _peak_of_windows() -> int:
    try:
        # Accelerate brings it
        import psutil  # type: ignore[import-untyped]
    except ImportError:
        return 0
    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))


def process_lives(number: int) -> bool:
    """Whether a process of this machine has this number; True where the system does not say."""
    if sys.platform == "win32":
        # there a signal of 0 would end it
        try:
            import psutil
        except ImportError:
            return True
        return bool(psutil.pid_exists(number))
    try:
        os.kill(number, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    except OverflowError:
        return False
    return True


def start_method() -> str:
    """How worker processes start: never by a fork, which would inherit locks of threads that are no more."""
    # not at the top, as every `--help` imports this file
    import multiprocessing

    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
