"""Limits on bodies in tiny chunks.

A chunk costs the event loop about 20 microseconds, whatever its size, and hundreds of thousands of tiny ones arrive in
one read. Therefore the chunks per turn of the event loop are limited, and a body of tiny chunks is refused.

This applies to ``Transfer-Encoding: chunked`` only. A body with a Content-Length is read at most once per TCP segment:
a slow client that sends small segments costs no more than its packets.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.flow_control import FlowControl

TINY = "topk.tiny_chunks"
"""The key in the scope of a request whose body arrives in tiny chunks."""

MANY = 1000
MEAN_BYTES = 64

_TURN = 64  # chunks per connection and turn of the event loop: about a millisecond


class Chunks:
    """Counts the chunks of one body."""

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0

    def add(self, data: h11.Data) -> None:
        """Count a chunk. A chunk that arrives in parts counts with its last part."""
        self.count += data.chunk_end
        self.bytes += len(data.data)

    @property
    def tiny(self) -> bool:
        """Whether there are many chunks, with less than ``MEAN_BYTES`` bytes on average, not counting the last."""
        return self.count > MANY and self.bytes < MEAN_BYTES * (self.count - 1)


class ChunkReader(h11.Connection):
    """h11's parser. It pauses after ``_TURN`` chunks until ``next_turn``, and stops if the chunks are tiny."""

    tiny = False
    _chunks: Chunks | None = None
    _turn = 0

    @property
    def exhausted(self) -> bool:
        """Whether the limit of this turn is reached, so that more chunks may be waiting."""
        return self._turn >= _TURN

    def next_turn(self) -> None:
        """Begin another turn."""
        self._turn = 0

    def next_event(self) -> Any:
        if self.tiny or self.exhausted:
            return h11.NEED_DATA
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = Chunks() if any(name == b"transfer-encoding" for name, _ in event.headers) else None
        elif isinstance(event, h11.Data) and self._chunks:
            self._turn += 1
            self._chunks.add(event)
            self.tiny = self._chunks.tiny
        return event


class Turns:
    """Schedules connections that have more to read: ``at_once`` of them in each turn of the event loop."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._waiting: deque[Callable[[], None]] = deque()
        self._scheduled = False

    def add(self, go_on: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        """Call ``go_on`` in one of the next turns."""
        self._waiting.append(go_on)
        self._schedule(loop)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._waiting and not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._run, loop)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        self._scheduled = False
        try:
            for _ in range(min(len(self._waiting), self._at_once)):
                self._waiting.popleft()()
        finally:
            self._schedule(loop)


class Flow(FlowControl):
    """uvicorn's flow control, which can also be held: then nothing is read."""

    held = False
    _full = False

    def hold(self) -> None:
        """Stop reading until ``release``."""
        self.held = True
        super().pause_reading()

    def release(self) -> None:
        """Resume reading, unless the app has unread data."""
        self.held = False
        if not self._full:
            super().resume_reading()

    def pause_reading(self) -> None:
        self._full = True
        super().pause_reading()

    def resume_reading(self) -> None:
        self._full = False
        if not self.held:
            super().resume_reading()
