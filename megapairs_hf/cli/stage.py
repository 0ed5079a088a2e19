"""A stage of the pipeline as a command: what it reads and writes, its settings, and the call."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from megapairs_hf.artifacts.storage import exists, is_local, join
from megapairs_hf.core.dependencies import require

# these map embeddings into memory or load models; elsewhere than on a local disk they work through the cache
NEEDS_FILES = {"pretrain", "embed", "mine", "train", "eval"}


@dataclass(frozen=True)
class Stage:
    """A stage as a command.

    Attributes:
        help: what it does.
        config: `module:Class` of its settings.
        inputs: folders that it reads, in the work folder unless named.
        out: folder that it writes, in the work folder unless named.
        call: `module:function` that runs it.
        needs: the extra of the package that it needs; None where the base is enough.
    """

    help: str
    config: str
    inputs: tuple[str, ...]
    out: str
    call: str
    needs: str | None = None

    def config_class(self) -> type[Any]:
        """The dataclass of the settings."""
        return load(self.config)

    def check(self, target: str) -> None:
        """Refuse to begin without the extra that the stage needs.

        Where there is something already, the stage itself finds out whether it is finished and so needs nothing.

        Raises:
            MissingDependencyError: the extra is not installed.
        """
        if self.needs is not None and not exists(target):
            require(self.needs, self.call.rsplit("_", 1)[1])

    def run(
        self,
        config: Any,
        *,
        work: str,
        out: str | None = None,
        inputs: dict[str, str] | None = None,
        overwrite: bool = False,
    ) -> int:
        """Run the stage.

        Args:
            config: the settings.
            work: the work folder.
            out: instead of the usual folder in it.
            inputs: instead of the usual folders in it.
            overwrite: throw away what is there.

        Returns:
            0.
        """
        places = {name: (inputs or {}).get(name) or join(work, name) for name in self.inputs}
        target = out or join(work, self.out)
        self.check(target)
        far = not all(is_local(place) for place in (work, target, *places.values()))
        if far and self.call.rsplit("_", 1)[1] in NEEDS_FILES:
            from megapairs_hf.artifacts.remote import stage_in

            staged = stage_in(work, places, target, overwrite=overwrite)
            load(self.call)(config, staged.places, staged.target, staged.work, overwrite)
            staged.send()
            return 0
        load(self.call)(config, places, target, work, overwrite)
        return 0


def load(place: str) -> Any:
    """The object at `module:name`."""
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)
