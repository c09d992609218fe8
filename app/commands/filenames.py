"""File names as text."""

import os
from pathlib import Path


def printable(path: Path) -> str:
    """A path as printable text. Bytes that are not UTF-8 and control characters become U+FFFD."""
    name = os.fsencode(path).decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)
