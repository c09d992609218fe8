"""Bodies in tiny chunks: a few bytes of them cost the event loop as much as a page of text.

A chunk costs about 20 microseconds, whatever its size, and hundreds of thousands of them arrive in one read. So the
chunks of one turn of the event loop are limited, and a body of tiny ones is refused.

Only ``Transfer-Encoding: chunked`` is judged. A body with a Content-Length is read once a TCP segment at most: a slow
client that sends small segments costs no more than its packets do, and may go on for as long as an upload may take.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.flow_control import FlowControl

TINY = "topk.tiny_chunks"
"""The key that a scope has once the body of its request is judged to come in tiny chunks."""

MANY = 1000
MEAN_BYTES = 64

_TURN = 64  # chunks of a connection that are read in one turn of the event loop: about a millisecond


class Chunks:
    """The chunks of one body so far."""

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0

    def add(self, data: h11.Data) -> None:
        """Count a chunk, or a part of one, which counts as one with its last part."""
        self.count += data.chunk_end
        self.bytes += len(data.data)

    @property
    def tiny(self) -> bool:
        """Whether there are many, and they have less than ``MEAN_BYTES`` bytes on average, but for the last."""
        return self.count > MANY and self.bytes < MEAN_BYTES * (self.count - 1)


class ChunkReader(h11.Connection):
    """h11's parser, which stops after so many chunks until ``next_turn``, and for good where they are tiny."""

    tiny = False
    _chunks: Chunks | None = None
    _turn = 0

    @property
    def exhausted(self) -> bool:
        """Whether this turn's chunks have been read, so that more may be waiting."""
        return self._turn >= _TURN

    def next_turn(self) -> None:
        """Read so many chunks again."""
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
    """The connections of a server that have more to read: so many of them read on in each turn of the event loop."""

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
    """uvicorn's flow control, which reads nothing while it is held, whoever asks for more."""

    held = False
    _full = False

    def hold(self) -> None:
        """Read nothing until ``release``."""
        self.held = True
        super().pause_reading()

    def release(self) -> None:
        """Read again, unless the app has still to take what was read."""
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
