"""Whether the device still answers: a batch that runs for too long hangs, and only a new process brings it back."""

import asyncio
from collections.abc import Callable

from app.errors import NotReady

_LOOKS = 4  # within the limit: a hang is found a quarter of the limit late at most


def hung(limit_s: float) -> NotReady:
    """What callers are told whose images the device will not answer."""
    return NotReady(f"the device has not answered for {limit_s:g} s; the server restarts")


async def hang(running_s: Callable[[], float], limit_s: float) -> None:
    """Return once ``running_s()``, the seconds that the longest running batch has taken so far, is over the limit."""
    while running_s() <= limit_s:  # noqa: ASYNC110  # no event tells
        await asyncio.sleep(limit_s / _LOOKS)
