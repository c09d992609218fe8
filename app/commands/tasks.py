"""Work that is done at once."""

import asyncio
from collections.abc import Coroutine, Iterable

from app.errors import TopkError


async def all_of(works: Iterable[Coroutine[None, None, None]]) -> None:
    """Until all are done, or the first has failed, which ends the others. Raises its TopkError as it is.

    Not by ``except*``: what is raised within it comes out of Python 3.11.2 in a group again.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except ExceptionGroup as failed:
        known, other = failed.split(TopkError)
        if known is None or other is not None:
            raise
        raise known.exceptions[0] from None
