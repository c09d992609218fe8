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
from typing import NamedTuple

import numpy as np
import structlog

from app.batching import Backlog, CostCurve, Job, Outlook, fail, settle
from app.engine.base import Facts, Pixels
from app.errors import Internal, NotReady
from app.workers import wire
from app.workers.memory import Board, Slots, curve

log = structlog.get_logger(__name__)

_SEND_S = 5  # an engine that reads nothing for this long counts as ended
_READ = 1 << 18
ENGINE_ENDED = "the engine process ended and is restarting"


class _Sent(NamedTuple):
    job: Job
    slot: int


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
        self._free = list(range(slots.count - 1, -1, -1))  # low slots first: fewer pages are touched
        self._sent: dict[int, _Sent] = {}
        self._numbers: dict[Job, int] = {}
        self._pending: deque[Job] = deque()
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

    def put(self, job: Job) -> None:
        """Send a job whose image is decoded. From any thread. Raises NotReady once the engine has ended."""
        if _pixels(job).shape not in _shapes(self._slots.crop):
            raise NotReady(ENGINE_ENDED)  # decoded for the model of an earlier engine process
        job.waiting_since = time.monotonic()
        with self._lock:
            if self._closed:
                raise NotReady(ENGINE_ENDED)
            self._pending.append(job)
        self._send_pending()

    def forget(self, job: Job) -> None:
        """Cancel a job on the engine, which learns how long its client has waited. From any thread."""
        with self._lock:
            number = self._numbers.get(job)
        if job.reveals_patience and time.monotonic() < job.deadline:
            self._send(wire.left(job.received_at, job.caller))
        if number is not None:
            self._send(wire.cancel(number))

    def running_s(self) -> float:
        """Always 0: the engine process has its own watchdog for the device."""
        return 0.0

    def abandon(self, error: Exception) -> None:
        """Settle all jobs with ``error`` and refuse further ones. From any thread."""
        with self._lock:
            self._closed = True
            jobs = [sent.job for sent in self._sent.values()] + list(self._pending)
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
                settle([self._finished(kind, payload) for kind, payload in frames.feed(data)])
                self._send_pending()

    def fail(self) -> None:
        """Settle all jobs with NotReady because the engine has ended, and close the socket."""
        self.abandon(NotReady(ENGINE_ENDED))
        with self._send_lock:
            self._socket.close()

    def _send_pending(self) -> None:
        """Send pending jobs while slots are free."""
        while True:
            with self._lock:
                while self._pending and self._pending[0].gone:
                    self._pending.popleft()
                if not self._pending or not self._free or self._closed:
                    return
                job, slot = self._pending.popleft(), self._free.pop()
                self._count += 1
                number = self._count
                self._sent[number] = _Sent(job, slot)
                self._numbers[job] = number
            pixels = _pixels(job)
            tensor = pixels.dtype == np.float32
            self._slots.view(slot, tensor)[:] = pixels
            terms = job.want, job.deadline, job.received_at, job.stated, job.caller
            self._send(wire.task(wire.ImageTask(number, slot, tensor, *terms)))

    def _send(self, frame: bytes) -> None:
        try:
            with self._send_lock:
                self._socket.sendall(frame)
        except OSError:
            self.close()  # the reading thread then fails all waiting jobs

    def _finished(self, kind: int, payload: bytes) -> Job:
        """The job that a frame belongs to, with its outcome set."""
        if kind == wire.ANSWER:
            answer = wire.read_answer(payload)
            job = self._release(answer.number)
            job.end_wait(answer.started)
            job.taken_at, job.inference_s = answer.started, answer.inference_s
            job.computed_at = answer.started + answer.inference_s
            job.batch_size, job.row = answer.batch_size, answer.row
        elif kind == wire.FAILURE:
            number, error = wire.read_failure(payload)
            job = self._release(number)
            job.error = error
        else:
            raise RuntimeError(f"unexpected frame of kind {kind}")
        return job

    def _release(self, number: int) -> Job:
        """The job of a finished task. Its slot becomes free."""
        with self._lock:
            job, slot = self._sent.pop(number)
            self._numbers.pop(job, None)
            self._free.append(slot)
        return job

    def _uncounted(self) -> int:
        """Number of images that the engine's outlook does not include yet."""
        return max(0, self._count - self._slots.taken) + len(self._pending)

    def _refresh(self) -> None:
        self._backlog.outlook, seconds = self._board.read()
        self._backlog.lateness = self._backlog.outlook.lateness
        if seconds != self._seconds:
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

    def predicted_wait(self, now: float) -> float:
        """The published wait, minus the time since, plus the images of this process that it does not include."""
        ceiling = self.ceiling(now)
        uncounted = self.uncounted() * self.costs.seconds(ceiling) / ceiling / self.streams
        left = self.outlook.wait - (now - self.outlook.now)
        return max(self.ahead_s(), max(self.outlook.rest, left) + uncounted)


def _pixels(job: Job) -> Pixels:
    if isinstance(job.image, bytes):
        raise Internal("the image is not decoded")
    return job.image


def _shapes(crop: int) -> tuple[tuple[int, ...], ...]:
    return (crop, crop, 3), (3, crop, crop)
