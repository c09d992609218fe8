"""Files as text."""

import os
from pathlib import Path


def printable(path: Path) -> str:
    """A path as printable text. Bytes that are not UTF-8 and control characters become U+FFFD."""
    name = os.fsencode(path).decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)


def skipped_files(count: int) -> str:
    """A sentence about the files of a folder that are not images."""
    return "skipped 1 file that is not an image" if count == 1 else f"skipped {count:,} files that are not images"
