"""Whether the process accepts requests: loading, ready, suspended, draining or failed."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from app.errors import TopkError

LOADING = "the model is being loaded"


@dataclass(slots=True)
class Readiness:
    """The state. The server and the loader set it, and the HTTP layer reads it.

    ``serving``: a model accepts images. ``reason``: why not. ``was_ready``: a model has accepted images once.
    ``on_ready`` is called on the event loop, and also waits for ``listening``, which a server sets. ``on_failure`` is
    called on any thread.
    """

    serving: bool = False
    was_ready: bool = False
    listening: bool = True
    draining: bool = False
    failure: TopkError | None = None
    reason: str = LOADING
    on_ready: Callable[[], None] = lambda: None
    on_failure: Callable[[], None] = lambda: None
    _waiters: tuple[Callable[[], object], ...] = ()

    def serve(self) -> None:
        """Set that a model accepts images. From any thread."""
        self.serving = self.was_ready = True
        self._notify()

    def suspend(self, reason: str = LOADING) -> None:
        """Set that no model accepts images at present. From any thread."""
        self.serving, self.reason = False, reason

    def drain(self) -> None:
        """Set that the process exits after the accepted requests. From any thread, or from a signal handler."""
        self.draining = True
        self._notify()

    def fail(self, error: TopkError) -> None:
        """Set that the process cannot serve, now or later, and call ``on_failure``. Only once. From any thread."""
        if self.failure:
            return
        self.suspend(error.detail)
        self.failure = error
        self._notify()
        self.on_failure()

    def announce(self) -> None:
        """Call ``on_ready`` if a model is ready and the server listens. Call it when either has changed."""
        if self.was_ready and self.listening:
            self.on_ready()

    async def wait_for_start(self) -> None:
        """Wait until the process is ready for the first time, has failed, or drains."""
        await self._wait(lambda: self.was_ready or self.failure is not None or self.draining)

    async def wait_for_end(self) -> None:
        """Wait until the process has failed or drains."""
        await self._wait(lambda: self.failure is not None or self.draining)

    async def _wait(self, holds: Callable[[], bool]) -> None:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            loop.call_soon_threadsafe(changed.set)

        self._waiters += (wake,)
        try:
            while not holds():
                await changed.wait()
                changed.clear()
        finally:
            self._waiters = tuple(waiter for waiter in self._waiters if waiter is not wake)

    def _notify(self) -> None:
        for wake in self._waiters:
            wake()
