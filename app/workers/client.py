"""The queue of an HTTP process: it leads to the engine process, and looks to the classifier like a ``BatchQueue``.

``put`` comes from decode threads, cancellations from the event loop; a thread of its own reads the answers. One
``EngineQueue`` is one connection to one life of the engine: with the engine it ends, and all that wait on it are told.
"""

import contextlib
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

_SEND_S = 5  # an engine that reads nothing for so long is taken for lost
_READ = 1 << 18
LOST = "the engine has ended; it is being started again"


class _Sent(NamedTuple):
    job: Job
    slot: int


class EngineQueue:
    """Hands decoded images over. ``ahead_s`` predicts how long this process's decode threads are busy.

    What finds no free slot waits here until an answer frees one.
    """

    def __init__(
        self, sock: socket.socket, slots: Slots, board: Board, facts: Facts, ahead_s: Callable[[], float]
    ) -> None:
        self.costs_alone = CostCurve((1,))
        self._socket = sock
        self._slots = slots
        self._board = board
        self._facts = facts
        self._expected = _Expected(CostCurve(facts.buckets), facts.streams, ahead_s, self._unseen)
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._free = list(range(slots.count - 1, -1, -1))  # the lowest one first: fewer pages are touched
        self._sent: dict[int, _Sent] = {}
        self._numbers: dict[Job, int] = {}
        self._pending: deque[Job] = deque()
        self._count = 0
        self._closed = False
        self._seconds: tuple[float, ...] = ()
        # struct timeval: sends on this socket end after a while, reads do not
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", _SEND_S, 0))

    @property
    def costs(self) -> CostCurve:
        """As the engine has measured them."""
        self._look()
        return self._expected.costs

    def __len__(self) -> int:
        """Images of this process that wait or are being computed."""
        return len(self._sent) + len(self._pending)

    def predicted_wait(self) -> float:
        """Seconds until an image that came now would be taken."""
        with self._lock:
            self._look()
            return self._expected.predicted_wait(time.monotonic())

    def admit(self, n: int, deadline: float) -> None:
        """Raise Overloaded unless n more images are likely to be answered by ``deadline``; asks nobody."""
        with self._lock:
            self._look()
            self._expected.check(time.monotonic(), n, deadline)

    def outlook(self) -> Outlook:
        """The state of the engine's queue, as the engine published it last."""
        with self._lock:
            self._look()
            return self._expected.outlook

    def put(self, job: Job) -> None:
        """Hand over a job whose image is decoded. From any thread. Raises NotReady once the engine has ended."""
        if _pixels(job).shape not in _shapes(self._slots.crop):
            raise NotReady(LOST)  # decoded for the model that the engine served before it ended
        job.waiting_since = time.monotonic()
        with self._lock:
            if self._closed:
                raise NotReady(LOST)
            self._pending.append(job)
        self._hand_over()

    def forget(self, job: Job) -> None:
        """Tell the engine that nobody waits for a job. From any thread."""
        with self._lock:
            number = self._numbers.get(job)
        if number is not None:
            self._send(wire.cancel(number))

    def running_s(self) -> float:
        """0: the engine process watches its own device."""
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
        """Hang up: nothing is waited for any more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def read(self) -> None:
        """Read answers until the engine hangs up. The thread that calls this belongs to the connection."""
        frames = wire.Frames()
        with contextlib.suppress(OSError):
            while data := self._socket.recv(_READ):
                settle([self._settled(kind, payload) for kind, payload in frames.feed(data)])
                self._hand_over()

    def fail(self) -> None:
        """Settle all jobs because the engine has ended, and close the connection."""
        self.abandon(NotReady(LOST))
        with self._sending:
            self._socket.close()

    def _hand_over(self) -> None:
        """Hand over every job that finds a slot."""
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
            self._send(wire.task(wire.Task(number, slot, tensor, job.want, job.deadline)))

    def _send(self, frame: bytes) -> None:
        try:
            with self._sending:
                self._socket.sendall(frame)
        except OSError:
            self.close()  # the reading thread finds the end, and tells all who wait

    def _settled(self, kind: int, payload: bytes) -> Job:
        """A job with the outcome that a frame brings."""
        if kind == wire.ANSWER:
            answer = wire.read_answer(payload)
            job = self._returned(answer.number)
            job.end_wait(answer.started)
            job.taken_at, job.inference_s = answer.started, answer.inference_s
            job.computed_at = answer.started + answer.inference_s
            job.batch_size, job.row = answer.batch_size, answer.row
        elif kind == wire.FAILURE:
            number, error = wire.read_failure(payload)
            job = self._returned(number)
            job.error = error
        else:
            raise RuntimeError(f"a frame of kind {kind}")
        return job

    def _returned(self, number: int) -> Job:
        """The engine has finished a task, and no longer uses its slot."""
        with self._lock:
            job, slot = self._sent.pop(number)
            self._numbers.pop(job, None)
            self._free.append(slot)
        return job

    def _unseen(self) -> int:
        """Images that the engine's outlook does not count yet."""
        return max(0, self._count - self._slots.taken) + len(self._pending)

    def _look(self) -> None:
        self._expected.outlook, seconds = self._board.read()
        if seconds != self._seconds:
            self._seconds = seconds
            self._expected.costs = curve(self._facts.buckets, seconds[:-1])
            self.costs_alone = curve((1,), seconds[-1:])


class _Expected(Backlog):
    """The engine's backlog as it is known here: the rule of admission is the same, the wait is what it publishes."""

    def __init__(self, costs: CostCurve, streams: int, ahead_s: Callable[[], float], unseen: Callable[[], int]) -> None:
        super().__init__(costs, streams, ahead_s)
        self.unseen = unseen
        self.outlook = Outlook(0.0, 0.0, 0.0, 0, idle=False, fastest=0.0)

    def __len__(self) -> int:
        return self.outlook.waiting + self.unseen()

    @property
    def fastest_s(self) -> float:
        return self.outlook.fastest

    @property
    def active_at(self) -> float:
        return self.outlook.now  # it is published whenever something happens

    @property
    def idle(self) -> bool:
        return self.outlook.idle and not self.unseen() and not self.ahead_s()

    def predicted_wait(self, now: float) -> float:
        """What was published, less the time since, and what this process has sent that is not in it."""
        ceiling = self.costs.ceiling
        unseen = self.unseen() * self.costs.seconds(ceiling) / ceiling / self.streams
        left = self.outlook.wait - (now - self.outlook.now)
        return max(self.ahead_s(), max(self.outlook.rest, left) + unseen)


def _pixels(job: Job) -> Pixels:
    if isinstance(job.image, bytes):
        raise Internal("the image was not decoded")
    return job.image


def _shapes(crop: int) -> tuple[tuple[int, ...], ...]:
    return (crop, crop, 3), (3, crop, crop)
