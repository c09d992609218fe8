"""The job: one image on its way from the API to the device and back. Nothing wraps it on that way."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from app.engine.base import Jpeg, Pixels, Row, Want

log = structlog.get_logger(__name__)

Image = bytes | Jpeg | Pixels
"""An image file, one that the device decodes, a decoded crop, or a preprocessed tensor."""

Wait = tuple[float, float]
"""The start and the end of a wait, in seconds of ``time.monotonic``."""


class Completion(Protocol):
    """Receives a finished job on the event loop that waits for it."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...

    @property
    def done(self) -> bool:
        """Whether the job has its outcome, or nobody waits for it. From any thread."""

    def claim(self) -> bool:
        """Start to use the image, which must not change until ``resolve``. False if nobody waits. From any thread."""

    def resolve(self, job: "Job") -> None:
        """Take the outcome. On ``loop``."""


class Pending(Protocol):
    """Work that can be cancelled before it starts."""

    def cancel(self) -> bool: ...


@dataclass(slots=True, eq=False)
class Job:
    """One image, the outputs it needs, its timestamps and its outcome.

    ``image`` is replaced by the crop once it is decoded, or by a ``Jpeg`` if the device decodes it. The outcome is
    ``row`` or ``error``. ``size`` is the width and height of the upright picture in pixels, once it is decoded.
    ``deadline`` and the ``*_at`` fields are in seconds of ``time.monotonic``; the ``*_s`` fields
    are durations in seconds. ``received_at`` is the time of the last byte of the upload. ``stated``: the client stated
    the deadline itself. ``caller`` is a number for its key or address. ``predicted_s`` is the predicted time from
    ``waiting_since`` to the end of its batch. ``waits`` has the start and the end of each wait: for a decode thread,
    for the sandbox, and for a stream. ``completion`` is None only for warm-up batches. ``pending`` is the work on
    another thread that puts the job into the queue afterwards.
    """

    image: Image
    want: Want
    deadline: float
    completion: Completion | None = None
    stated: bool = False
    caller: int = 0
    pending: "Pending | None" = None
    size: tuple[int, int] | None = None
    received_at: float = 0.0
    waiting_since: float = 0.0
    predicted_s: float = 0.0
    taken_at: float = 0.0
    decoded_at: float = 0.0
    computed_at: float = 0.0
    decode_s: float = 0.0
    inference_s: float = 0.0
    batch_size: int = 0
    waits: list[Wait] = field(default_factory=list)
    row: Row | None = None
    error: Exception | None = None

    @property
    def gone(self) -> bool:
        """Whether nobody waits for the job."""
        return self.completion is not None and self.completion.done

    def claim(self) -> bool:
        """Start to use the image; False if nobody waits for the job."""
        return self.completion is None or self.completion.claim()

    @property
    def reveals_patience(self) -> bool:
        """Whether it tells how long clients wait that state no deadline."""
        return self.received_at > 0 and not self.stated

    def end_wait(self, now: float) -> None:
        """Add the time since ``waiting_since`` to the waits."""
        self.waits.append((self.waiting_since, max(self.waiting_since, now)))

    @property
    def queue_s(self) -> float:
        """The sum of all waits."""
        return sum(end - start for start, end in self.waits)


def fail(jobs: Iterable[Job], error: Exception) -> None:
    """Settle jobs with an error. From any thread."""
    jobs = list(jobs)
    for job in jobs:
        job.error = error
    settle(jobs)


def settle(jobs: Iterable[Job]) -> None:
    """Hand finished jobs to the event loops that wait for them, in one call per loop. From any thread."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Completion, Job]]] = {}
    for job in jobs:
        if job.completion is not None:
            by_loop.setdefault(job.completion.loop, []).append((job.completion, job))
    for loop, finished in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, finished)
        except RuntimeError:  # the loop is closed: nobody waits any more
            log.debug("results of a closed event loop dropped", count=len(finished))


def _resolve(finished: list[tuple[Completion, Job]]) -> None:
    for completion, job in finished:
        completion.resolve(job)
