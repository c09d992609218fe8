"""Reading many files, several at a time."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from app.errors import EmptyBody, TopkError

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


def reason(error: OSError) -> str:
    """Why a file cannot be read, without its name."""
    return error.strerror or str(error)
