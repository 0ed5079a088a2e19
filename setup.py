"""Puts recipes/, eval/ and model_cards/ into the wheel for `megapairs_hf.core.shipped`; all else is in setup.cfg."""

from pathlib import Path
from shutil import copytree, ignore_patterns

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("recipes", "eval", "model_cards")


class BuildWithShipped(build_py):
    """The usual build, and a copy of the folders that lie beside the package in the repository."""

    def run(self) -> None:
        """Build; an editable install reads the folders where they are."""
        super().run()
        if self.editable_mode:
            return
        for name in SHIPPED:
            target = Path(self.build_lib, "megapairs_hf", "_shipped", name)
            copytree(name, target, ignore=ignore_patterns("__pycache__"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithShipped})
