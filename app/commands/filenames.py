"""File names as text."""

import os
from pathlib import Path


def shown(path: Path) -> str:
    """A path as text that can be printed: file names may hold anything."""
    name = os.fsencode(path).decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
