"""Copies of model folders, for tests that change them."""

import shutil
from pathlib import Path


def copy_of(source: Path, target: Path) -> Path:
    """A copy of a model folder, with the same name."""
    return Path(shutil.copytree(source, target / source.name))
