"""The queue of an HTTP process. It sends jobs to the engine process; the classifier uses it like a ``BatchQueue``.

Decode threads call ``put``, the event loop cancels, and a separate thread reads the answers. An ``EngineQueue`` is one
connection to one engine process. When that process ends, all waiting jobs fail and the queue is discarded.
"""

import contextlib
import math
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np
import structlog

from app.batching import Backlog, CostCurve, Job, Outlook, fail, settle
from app.batching.backlog import Schedule
from app.engine.base import Facts, Jpeg, Pixels
from app.errors import Internal, NotReady
from app.workers import wire
from app.workers.memory import Board, Slots, curve

log = structlog.get_logger(__name__)

_SEND_S = 5  # an engine that reads nothing for this long counts as ended
_READ = 1 << 18
ENGINE_ENDED = "the engine process ended and is restarting"


class EngineQueue:
    """Sends decoded images to the engine. ``ahead_s`` predicts for how many seconds the decode threads are busy.

    Jobs without a free slot wait here until an answer frees one.
    """

    def __init__(
        self, sock: socket.socket, slots: Slots, board: Board, facts: Facts, ahead_s: Callable[[], float]
    ) -> None:
        self.costs_alone = CostCurve((1,))
        self._socket = sock
        self._slots = slots
        self._board = board
        self._facts = facts
        self._backlog = _RemoteBacklog(CostCurve(facts.buckets), facts.streams, ahead_s, self._uncounted)
        self._lock = threading.Lock()
        self._send_lock = threading.Lock()
        self._shapes = (slots.crop, slots.crop, 3), (3, slots.crop, slots.crop)
        self._free = list(range(slots.count - 1, -1, -1))  # low slots first: fewer pages are touched
        self._sent: dict[int, tuple[Job, int]] = {}  # number -> job and slot
        self._numbers: dict[Job, int] = {}
        self._pending: deque[Job] = deque()
        self._left: list[tuple[float, int]] = []  # clients that have left, of which the engine learns
        self._cancelled: list[int] = []  # numbers
        self._count = 0
        self._closed = False
        self._seconds: tuple[float, ...] = ()
        # A struct timeval: a timeout for sends on this socket, but not for reads.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", _SEND_S, 0))

    @property
    def costs(self) -> CostCurve:
        """The batch costs that the engine has measured."""
        self._refresh()
        return self._backlog.costs

    def __len__(self) -> int:
        """Number of images of this process that wait or are being computed."""
        return len(self._sent) + len(self._pending)

    def predicted_wait(self) -> float:
        """Seconds until the engine would start on an image that arrived now."""
        with self._lock:
            self._refresh()
            return self._backlog.predicted_wait(time.monotonic())

    def admit(self, n: int, deadline: float, stated: bool = False) -> None:
        """Raise Overloaded unless n more images are likely to be answered in time. Sends no request."""
        with self._lock:
            self._refresh()
            self._backlog.check(time.monotonic(), n, deadline, stated)

    def outlook(self) -> Outlook:
        """The state of the engine's queue that the engine published last."""
        with self._lock:
            self._refresh()
            return self._backlog.outlook

    def put(self, *jobs: Job) -> None:
        """Send jobs whose images are decoded. From any thread. Raises NotReady once the engine has ended."""
        now = time.monotonic()
        for job in jobs:
            image = _decoded(job)
            if not isinstance(image, Jpeg) and image.shape not in self._shapes:
                raise NotReady(ENGINE_ENDED)  # decoded for the model of an earlier engine process
            job.waiting_since = now
        with self._lock:
            if self._closed:
                raise NotReady(ENGINE_ENDED)
            self._pending += jobs
        self._send()

    def forget(self, job: Job) -> None:
        """Cancel a job on the engine, which learns how long its client has waited. From any thread."""
        with self._lock:
            if job.reveals_patience and time.monotonic() < job.deadline:
                self._left.append((job.received_at, job.caller))
            if (number := self._numbers.get(job)) is not None:
                self._cancelled.append(number)
        self._send()

    def running_s(self) -> float:
        """Always 0: the engine process has its own watchdog for the device."""
        return 0.0

    def abandon(self, error: Exception) -> None:
        """Settle all jobs with ``error`` and refuse further ones. From any thread."""
        with self._lock:
            self._closed = True
            jobs = [job for job, _ in self._sent.values()] + list(self._pending)
            self._sent.clear()
            self._numbers.clear()
            self._pending.clear()
        fail(jobs, error)

    def close(self) -> None:
        """Close the connection to the engine. ``read`` returns."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def read(self) -> None:
        """Read answers until the connection closes. Blocks; call it on a separate thread."""
        frames = wire.Frames()
        with contextlib.suppress(OSError):
            while data := self._socket.recv(_READ):
                settle([job for kind, payload in frames.feed(data) for job in self._finished(kind, payload)])
                self._send()

    def fail(self) -> None:
        """Settle all jobs with NotReady because the engine has ended, and close the socket."""
        self.abandon(NotReady(ENGINE_ENDED))
        with self._send_lock:
            self._socket.close()

    def _send(self) -> None:
        """Send what waits, in one call, unless another thread is sending: that thread then does so."""
        while self._unsent and self._send_lock.acquire(blocking=False):
            try:
                self._socket.sendall(self._next_frames())
            except OSError:
                self.close()  # the reading thread then fails all waiting jobs
            finally:
                self._send_lock.release()

    @property
    def _unsent(self) -> bool:
        """Whether something can be sent now."""
        return not self._closed and bool(self._left or self._cancelled or (self._pending and self._free))

    def _next_frames(self) -> bytes:
        """The frames of all that can be sent. A pending job becomes a task if there is a free slot for its image."""
        started = []
        with self._lock:
            left, self._left = self._left, []
            cancelled, self._cancelled = self._cancelled, []
            while self._pending and self._free:
                if not (job := self._pending.popleft()).gone:
                    self._count += 1
                    self._sent[self._count] = job, slot = job, self._free.pop()
                    self._numbers[job] = self._count
                    started.append((self._count, slot, job))
        frames = [wire.left(left)] if left else []
        if cancelled:
            frames.append(wire.cancel(cancelled))
        if started:
            frames.append(wire.tasks([self._task(number, slot, job) for number, slot, job in started]))
        return b"".join(frames)

    def _task(self, number: int, slot: int, job: Job) -> wire.ImageTask:
        """A task whose image is in its slot."""
        image = _decoded(job)
        terms = job.want, job.deadline, job.received_at, job.stated, job.caller
        if isinstance(image, Jpeg):
            self._slots.file(slot, len(image.data))[:] = image.data
            file = wire.JpegFile(len(image.data), image.width, image.height, image.orientation)
            return wire.ImageTask(number, slot, False, *terms, file)
        tensor = image.dtype == np.float32
        self._slots.view(slot, tensor)[:] = image
        return wire.ImageTask(number, slot, tensor, *terms)

    def _finished(self, kind: int, payload: bytes) -> list[Job]:
        """The jobs that a frame belongs to, with their outcomes set."""
        if kind == wire.ANSWERS:
            answers = wire.read_answers(payload)
            jobs = self._release([answer.number for answer in answers])
            for job, answer in zip(jobs, answers, strict=True):
                job.end_wait(answer.started)
                job.taken_at, job.inference_s = answer.started, answer.inference_s
                job.computed_at = answer.started + answer.inference_s
                job.batch_size, job.row = answer.batch_size, answer.row
            return jobs
        if kind == wire.FAILURE:
            number, error = wire.read_failure(payload)
            [job] = self._release([number])
            job.error = error
            return [job]
        raise RuntimeError(f"unexpected frame of kind {kind}")

    def _release(self, numbers: list[int]) -> list[Job]:
        """The jobs of finished tasks. Their slots become free."""
        jobs = []
        with self._lock:
            for number in numbers:
                job, slot = self._sent.pop(number)
                self._numbers.pop(job, None)
                self._free.append(slot)
                jobs.append(job)
        return jobs

    def _uncounted(self) -> int:
        """Number of images that the engine's outlook does not include yet."""
        return max(0, self._count - self._slots.taken) + len(self._pending)

    def _refresh(self) -> None:
        self._backlog.outlook, seconds = self._board.read()
        self._backlog.lateness = self._backlog.outlook.lateness
        if seconds is not self._seconds:
            self._seconds = seconds
            self._backlog.costs = curve(self._facts.buckets, seconds[:-1])
            self.costs_alone = curve((1,), seconds[-1:])


class _RemoteBacklog(Backlog):
    """The engine's backlog, seen from this process. Admission follows the same rule, from the published wait."""

    def __init__(
        self, costs: CostCurve, streams: int, ahead_s: Callable[[], float], uncounted: Callable[[], int]
    ) -> None:
        super().__init__(costs, streams, ahead_s)
        self.uncounted = uncounted
        self.outlook = Outlook(0.0, 0.0, 0.0, 0, idle=False, fastest=0.0, patience=math.inf)

    def __len__(self) -> int:
        return self.outlook.waiting + self.uncounted()

    @property
    def fastest_s(self) -> float:
        return self.outlook.fastest

    @property
    def active_at(self) -> float:
        return self.outlook.now  # the engine publishes its outlook after every change

    def patience_s(self, now: float) -> float:
        """How long clients wait, as the engine has learned from those of all processes."""
        return self.outlook.patience

    @property
    def idle(self) -> bool:
        return self.outlook.idle and not self.uncounted() and not self.ahead_s()

    def _wait(self, now: float, schedule: Schedule) -> float:
        """The published wait, minus the time since, plus the images of this process that it does not include."""
        uncounted = self.uncounted() * schedule.batch_s / schedule.size / self.streams
        left = self.outlook.wait - (now - self.outlook.now)
        return max(self.ahead_s(), max(self.outlook.rest, left) + uncounted)


def _decoded(job: Job) -> Jpeg | Pixels:
    if isinstance(job.image, bytes):
        raise Internal("the image is not decoded")
    return job.image
