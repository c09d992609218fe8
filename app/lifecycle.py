"""Where the process stands: starting, ready, draining or failed. Set by the server, read by the HTTP layer."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from app.errors import TopkError

LOADING = "the model is being loaded"


@dataclass(slots=True)
class Lifecycle:
    """``on_ready`` and ``on_failure`` are called on the event loop once the model is warm, or cannot be.

    Warm is not enough to be asked: ``on_ready`` waits for ``listening`` as well, where a server says so.
    ``waiting_for`` is the reason that ``/readyz`` gives while the classifier is not ready and nothing has failed.
    """

    ready: bool = False
    listening: bool = True
    draining: bool = False
    failure: TopkError | None = None
    waiting_for: str = LOADING
    on_ready: Callable[[], None] = lambda: None
    on_failure: Callable[[], None] = lambda: None
    watch: "asyncio.Task[None] | None" = None  # kept, since the event loop alone would lose it

    def announce(self) -> None:
        """Call ``on_ready`` if all that it waits for has come about; to be called when something of it has."""
        if self.ready and self.listening:
            self.on_ready()
