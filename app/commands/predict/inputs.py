"""The files to classify, and their contents."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from app.commands.filenames import left_out, printable
from app.commands.files import Finder, read_file
from app.errors import EmptyBody, ModelError
from app.images.files import ImageFiles, Skipped, find_images

STDIN = Path("-")


def find(files: Sequence[Path]) -> ImageFiles:
    """The files to classify, those in folders included. Raises ModelError if one does not exist."""
    finder = Finder()
    files = [path if path == STDIN else finder.find(path) for path in files]
    if missing := [printable(path) for path in files if path != STDIN and not path.exists()]:
        raise ModelError(f"no such file or folder: {', '.join(missing)}")
    paths: list[Path] = []
    skipped = Skipped()
    for path in files:
        if path.is_dir():
            try:
                images = find_images(path)
            except OSError as error:
                raise ModelError(f"{printable(path)} cannot be read: {error.strerror}") from error
            paths += images.paths
            skipped.add(images.skipped)
        else:
            paths.append(path)
    if not paths:
        raise ModelError("; ".join([f"no image files in {', '.join(map(printable, files))}", *left_out(skipped)]))
    return ImageFiles(tuple(paths), skipped)


async def read(path: Path) -> bytes:
    """The content of a file, or of standard input. Raises OSError and EmptyBody."""
    if path != STDIN:
        return await read_file(path)
    content: bytes = await asyncio.to_thread(sys.stdin.buffer.read)
    if not content:
        raise EmptyBody("standard input is empty")
    return content
