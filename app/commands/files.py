"""Reading many files, several at a time."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from app.errors import EmptyBody, TopkError
from app.imagenet.labels import normalized

READ_ERRORS = (OSError, EmptyBody)
"""What ``read_file`` raises."""


async def for_each(count: int, at_once: int, work: Callable[[int], Awaitable[None]]) -> None:
    """Run ``work`` for 0, 1, ... ``count`` - 1, ``at_once`` calls at a time, until all have ended or one has failed.

    A failure cancels the other calls. A TopkError is raised as it is, not in a group. ``except*`` would not do that:
    Python 3.11.2 wraps an exception that is raised inside it in a group again.
    """
    positions = iter(range(count))

    async def worker() -> None:
        for position in positions:
            await work(position)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(at_once, count)):
                group.create_task(worker())
    except ExceptionGroup as failed:
        known, other = failed.split(TopkError)
        if known is None or other is not None:
            raise
        raise known.exceptions[0] from None


async def read_file(path: Path) -> bytes:
    """Read a regular file in a thread. Raises OSError; EmptyBody if the file is empty."""
    return await asyncio.to_thread(_read, path)


def _read(path: Path) -> bytes:
    check_regular(path)
    content = path.read_bytes()
    if not content:
        raise EmptyBody("the file is empty")
    return content


def check_regular(path: Path) -> None:
    """Raise OSError unless this is a regular file: reading from a pipe may block for ever."""
    if not path.is_file():
        raise OSError("not a regular file" if path.exists() else "no such file")


class Finder:
    """Finds files by names that may have another Unicode form than on disk.

    A list of files is often written on another system than the one that named them.
    """

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, str]] = {}

    def find(self, path: Path) -> Path:
        """The path as on disk; ``path`` itself if there is no such file or folder."""
        if os.path.lexists(path) or path.parent == path:
            return path
        parent = self.find(path.parent)
        if parent not in self._names:
            self._names[parent] = _names(parent)
        name = self._names[parent].get(normalized(path.name))
        return parent / name if name else path


def _names(folder: Path) -> dict[str, str]:
    """The names in a folder by their form NFC."""
    try:
        return {normalized(name): name for name in sorted(os.listdir(folder), reverse=True)}
    except OSError:
        return {}


def reason(error: OSError) -> str:
    """Why a file cannot be read, without its name."""
    return error.strerror or str(error)
