"""Names of a package that are imported when they are first used (PEP 562), so that importing the package is free.

A package says three things: under `TYPE_CHECKING` the plain imports, which type checkers and editors read; `__all__`;
and, for the interpreter alone, `__getattr__, __dir__ = exports(__name__, …)`. What surprises: that last line stands in
the `else` of `TYPE_CHECKING`, because a type checker that sees a `__getattr__` lets every misspelt name pass.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def exports(package: str, names: Mapping[str, Sequence[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package.

    Args:
        package: its `__name__`.
        names: for each module, as its name below the package, what the package shows of it.
    """
    modules = {name: f"{package}.{module}" for module, shown in names.items() for name in shown}

    def find(name: str) -> Any:
        if name in modules:
            return getattr(import_module(modules[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def listed() -> list[str]:
        # what the package shows, not what it imports for itself
        return sorted({*modules, *(name for name in vars(sys.modules[package]) if name.startswith("__"))})

    return find, listed
