"""The batch queue: jobs wait here for a free stream, and the thread of each stream runs whole batches of them.

``prepare`` makes a job ready for the device, and ``run`` runs a batch on it. The two are measured separately: the cost
curve and the watchdog cover the device alone. Jobs come from any thread. Batches run on the queue's own threads, one
per stream. Outcomes are delivered on the event loop that waits for them.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import structlog

from app.batching.attempts import Run, attempt, checked
from app.batching.backlog import Backlog, Outlook
from app.batching.costs import CostCurve
from app.batching.job import Job, fail, settle
from app.batching.stream import Stream
from app.errors import DeadlineExceeded, DeviceLost, Internal, NotReady, Overloaded

log = structlog.get_logger(__name__)

Put = Callable[[Job], None]
Prepare = Callable[[Job, Put], bool]
"""Makes a job ready for the device and returns True. Returns False if the job goes elsewhere first: it then comes back
through the second argument, or is settled. Raises the error that settles the job."""

WarmBatch = Callable[[int], Sequence[Job]]

_WARM_UP_S = 0.5  # for the warm-up of the streams, beyond the smallest batch size


class Queue(Protocol):
    """A queue in front of a device, which is in this process or in another one."""

    @property
    def costs(self) -> CostCurve:
        """Measured costs of batches."""

    @property
    def costs_alone(self) -> CostCurve:
        """Measured cost of an image that has the device to itself, if it runs differently then."""

    def __len__(self) -> int:
        """Jobs that wait."""

    def predicted_wait(self) -> float:
        """Seconds until a job that comes now is taken."""

    def outlook(self) -> Outlook:
        """The state of the queue, as admission needs it."""

    def admit(self, n: int, deadline: float, stated: bool = False) -> None:
        """Raise Overloaded unless n more jobs are likely to be answered by ``deadline`` (seconds of the clock).

        If the client has not ``stated`` its deadline, they must be answered before most clients lose patience.
        """

    def put(self, *jobs: Job) -> None:
        """Append jobs. From any thread. Raises NotReady once the queue is closed."""

    def forget(self, job: Job) -> None:
        """Nobody waits for this job any more. From any thread."""

    def running_s(self) -> float:
        """Seconds that the device has taken so far for the longest running batch; 0 if none runs in this process."""

    def abandon(self, error: Exception) -> None:
        """Settle all jobs with ``error`` and refuse further ones. From any thread."""

    def close(self) -> None:
        """Refuse further jobs, and finish those that wait. Blocks."""


def _ready(job: Job, put: Put) -> bool:
    return True


@dataclass(slots=True)
class BatchQueue:
    """Threads around a ``Backlog``, one per stream; each runs its own callable.

    ``prepare`` is called on the stream's thread for each job of a batch. ``run_alone`` runs a job that has the device
    to itself, if that is done differently. ``changed`` is called on the stream's thread when it has taken a batch
    and when it becomes idle; ``observe`` gets the seconds and the size of each batch that was not a warm-up. ``lost``
    is called on the stream's thread when the device is lost, before the jobs are settled. ``ahead_s`` is passed to the
    ``Backlog``.
    """

    runs: Sequence[Run]
    costs: CostCurve
    run_alone: Run | None = None
    prepare: Prepare = _ready
    changed: Callable[[], None] = lambda: None
    observe: Callable[[float, int], None] = lambda seconds, size: None
    lost: Callable[[DeviceLost], None] = lambda error: None
    clock: Callable[[], float] = time.monotonic
    ahead_s: Callable[[], float] = lambda: 0.0
    costs_alone: CostCurve = field(init=False, default_factory=lambda: CostCurve((1,)))
    backlog: Backlog = field(init=False)
    _wakeup: threading.Condition = field(init=False, default_factory=threading.Condition)
    _streams: list[Stream] = field(init=False)
    _alone: Stream | None = field(init=False)
    _threads: list[threading.Thread] = field(init=False, default_factory=list)
    _closed: bool = field(init=False, default=False)
    _running: dict[int, list[Job]] = field(init=False, default_factory=dict)
    _abandoned: Exception | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.backlog = Backlog(self.costs, len(self.runs), self.ahead_s)
        self._streams = [Stream(run, self.costs) for run in self.runs]
        self._alone = Stream(self.run_alone, self.costs_alone) if self.run_alone else None

    def start(self, warm_batch: WarmBatch | None = None) -> None:
        """Start the streams, warmed up if there is a ``warm_batch(size)``.

        Blocks until all are warm. Raises what a warm-up raises.
        """
        for place in range(len(self._streams)):
            thread = threading.Thread(target=self._serve, args=(place,), name=f"topk-stream-{place}", daemon=True)
            self._threads.append(thread)
            thread.start()
        try:
            if warm_batch:
                self._warm_up(warm_batch)
        except BaseException:
            self._release()
            self.close()
            raise
        self._release()

    def close(self) -> None:
        """Refuse further jobs, finish those that wait, join the threads. Blocks."""
        with self._wakeup:
            self._closed = True
            self._wakeup.notify_all()
        for thread in self._threads:
            if self._abandoned is None:
                thread.join()

    def running_s(self) -> float:
        """Seconds that the device has taken so far for the longest running batch; 0 if none runs."""
        with self._wakeup:
            return self.backlog.running_s(self.clock())

    def abandon(self, error: Exception) -> None:
        """Settle all jobs that wait or run with ``error``, refuse further ones, and leave the threads behind.

        From any thread. For a device that is lost.
        """
        with self._wakeup:
            self._closed, self._abandoned = True, error
            jobs = [*self.backlog.clear(), *(job for batch in self._running.values() for job in batch)]
            self._wakeup.notify_all()
        fail(jobs, error)

    def __len__(self) -> int:
        return len(self.backlog)

    def predicted_wait(self) -> float:
        """Seconds until a job that comes now is taken."""
        with self._wakeup:
            return self.backlog.predicted_wait(self.clock())

    def outlook(self) -> Outlook:
        """The state of the queue now."""
        with self._wakeup:
            now, backlog = self.clock(), self.backlog
            wait, rest, patience = backlog.predicted_wait(now), backlog.rest_s(now), backlog.patience_s(now)
            return Outlook(
                now,
                wait,
                min(wait, rest),
                len(backlog),
                backlog.idle,
                backlog.fastest_s,
                patience,
                backlog.lateness,
            )

    def admit(self, n: int, deadline: float, stated: bool = False) -> None:
        """Raise Overloaded unless n more jobs are likely to be answered in time: see ``Backlog.check``."""
        with self._wakeup:
            self.backlog.check(self.clock(), n, deadline, stated)

    def put(self, *jobs: Job) -> None:
        """Append jobs. From any thread. Raises NotReady once the queue is closed, or the error of ``abandon``."""
        with self._wakeup:
            if self._closed:
                raise self._abandoned or NotReady("shutting down")
            self.backlog.put(jobs, self.clock())
            self._wakeup.notify(len(jobs))

    def forget(self, job: Job) -> None:
        """Learn how long a client has waited that waits no more. Its job is dropped when its turn comes."""
        with self._wakeup:
            self.backlog.left(job, self.clock())

    def _release(self) -> None:
        for stream in self._streams:
            stream.release()

    def _serve(self, place: int) -> None:
        self._streams[place].run_tasks()
        try:
            while self._serve_batch(place):
                pass
        except DeviceLost as error:
            log.exception("the device is lost")
            self.lost(error)
            self.abandon(error)

    def _serve_batch(self, place: int) -> bool:
        """Wait for the next batch and run it; False once the queue is closed and empty."""
        with self._wakeup:
            while not len(self.backlog) and not self._closed:
                self._wakeup.wait()
            if not len(self.backlog):
                return False
            now = self.clock()
            batch, late = self.backlog.take(now, place)
            retry_s = self.backlog.predicted_wait(now)
            alone = self._alone if len(batch) == 1 and self.backlog.one_running else None
            if batch:
                self._running[place] = batch
        for job in late:
            job.error = (
                DeadlineExceeded("the deadline passed while the image waited")
                if job.deadline <= now
                else Overloaded("the answer would come too late", retry_after_s=retry_s)
            )
        settle(late)
        if not batch:
            self.changed()
            return True
        ready, prepare_s = self._prepare_batch(batch)
        stream = alone or self._streams[place]
        with self._wakeup:
            self._running[place] = ready
            for seconds in prepare_s:
                self.backlog.prepared(seconds)
            self.backlog.started(place, self.clock() + stream.first_pass_s(len(ready)))
        self.changed()
        self._run_batch(stream, ready)
        with self._wakeup:
            self.backlog.finished(place)
            del self._running[place]
            now = self.clock()
            for job in ready:
                self.backlog.computed(job, now)
            idle = not len(self.backlog)
        if idle:  # else the next batch is taken at once
            self.changed()
        settle(ready)
        return True

    def _prepare_batch(self, batch: list[Job]) -> tuple[list[Job], list[float]]:
        """Prepare the jobs of a batch; returns those that the device runs, and the seconds that each of them took.

        A job that fails is settled at once.
        """
        ready, prepare_s = [], []
        for job in batch:
            if not job.claim():
                continue
            started = self.clock()
            try:
                prepared = self.prepare(job, self.put)
            except Exception as error:
                fail([job], error)
            except BaseException:  # a stream that ends would leave its callers waiting
                log.exception("preparation failed")
                fail([job], Internal("the image could not be classified"))
            else:
                if prepared:
                    ready.append(job)
                    prepare_s.append(self.clock() - started)
        return ready, prepare_s

    def _warm_up(self, warm_batch: WarmBatch) -> None:
        """Run the smallest batch size on each stream, and larger ones as long as time allows. Other sizes wait for use.

        The first passes run one after another. Then the streams are measured together, because they share the device
        under load. If the engine pads, a first pass is slow and all sizes run.
        """
        smallest, *_ = self.costs.buckets
        began = self.clock()
        for size in self.costs.buckets:
            expected = (len(self._streams) + 1) * self.costs.seconds(size)
            if size > smallest and not self.costs.pads and self.clock() - began + expected > _WARM_UP_S:
                break
            try:
                for stream in self._streams:
                    self._warm_pass([stream], size, warm_batch)
                self._warm_pass(self._streams, size, warm_batch)
            except MemoryError:
                if size == smallest:
                    raise
                self._keep_below(size)
                break
        if self._alone:
            for _ in range(2):
                self._run_warm(self._alone, 1, warm_batch(1))

    def _warm_pass(self, streams: Sequence[Stream], size: int, warm_batch: WarmBatch) -> None:
        """Run a warm-up batch on each of the streams at the same time."""
        passes = [stream.submit(partial(self._run_warm, stream, size, warm_batch(size))) for stream in streams]
        wait(passes)
        for one in passes:
            one.result()

    def _run_warm(self, stream: Stream, size: int, batch: Sequence[Job]) -> None:
        started = self.clock()
        rows = checked(stream.run, batch)
        seconds = self.clock() - started
        if failed := next((row for row in rows if isinstance(row, Exception)), None):
            raise failed
        with self._wakeup:
            stream.learn(size, seconds)

    def _keep_below(self, size: int) -> None:
        log.warning("out of memory; batches are kept smaller", size=size)
        with self._wakeup:  # reentrant
            self.costs.keep_below(size)

    def _run_batch(self, stream: Stream, batch: list[Job]) -> None:
        """Run a prepared batch: each job then has its row or its error."""
        if not batch:
            return
        started = self.clock()
        rows, measured, too_large = attempt(stream.run, batch)
        seconds = self.clock() - started
        self.observe(seconds, len(batch))
        with self._wakeup:
            if too_large and too_large > self.costs.buckets[0] and stream.is_first(too_large):
                self._keep_below(self.costs.bucket(too_large))
            if measured and not any(isinstance(row, Exception) for row in rows):
                stream.learn(len(batch), seconds)
        for job, row in zip(batch, rows, strict=True):
            job.batch_size = len(batch)
            if isinstance(row, Exception):
                job.error = row
            else:
                job.row = row
