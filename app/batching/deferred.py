"""A queue whose device is loaded when the first job comes, on a thread of its own.

A network that few requests need then takes neither memory nor time before one of them does.
"""

import math
import threading
import time
from collections.abc import Callable

import structlog

from app.batching.backlog import Outlook
from app.batching.costs import CostCurve
from app.batching.job import Job, fail
from app.batching.queue import BatchQueue
from app.errors import Inexplicable, InvalidParameter, NotReady, Overloaded

log = structlog.get_logger(__name__)

_RETRY_S = 30.0  # after a failed start
_FAILED = "the network for explanations could not be loaded; retry later"
_MOST_WAITING = 64  # jobs that wait for the start, whose images no other limit counts once their clients have left
_LOADING_S = 5.0  # until a retry while the network is loaded


class DeferredQueue:
    """A ``Queue``. ``start`` loads the device and returns its queue, which serves; it may raise any exception.

    Jobs that come before the end of ``start`` wait. If it raises Inexplicable, these and all later jobs fail with
    InvalidParameter, and nothing is started again. After another exception they fail with NotReady, and so do the jobs
    of the next ``_RETRY_S``; the first one after that starts it again. ``changed`` is called when ``start`` has ended.
    """

    def __init__(
        self,
        start: Callable[[], BatchQueue],
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start = start
        self._changed = changed
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: list[Job] = []
        self._thread: threading.Thread | None = None
        self._queue: BatchQueue | None = None
        self._retry_at = -math.inf
        self._refusal: str | None = None  # after Inexplicable
        self._closed = False
        self._abandoned: Exception | None = None
        self._costs = CostCurve((1,))  # unknown before the start

    @property
    def costs(self) -> CostCurve:
        return self._queue.costs if self._queue is not None else self._costs

    @property
    def costs_alone(self) -> CostCurve:
        return self._queue.costs_alone if self._queue is not None else self._costs

    def __len__(self) -> int:
        return len(self._queue if self._queue is not None else self._waiting)

    def predicted_wait(self) -> float:
        """Seconds until a job that comes now is taken; 0 before the start."""
        return self._queue.predicted_wait() if self._queue is not None else 0.0

    def outlook(self) -> Outlook:
        """The state of the queue; that of an idle device before the start."""
        if self._queue is not None:
            return self._queue.outlook()
        return Outlook(self._clock(), 0.0, 0.0, 0, idle=True, fastest=0.0, patience=math.inf)

    def admit(self, n: int, deadline: float, stated: bool = False) -> None:
        """Raise Overloaded unless n more jobs are likely to be answered in time. Before the start, admit a few.

        Raises InvalidParameter if the network is Inexplicable, and NotReady for some time after any other exception.
        """
        if self._refusal:
            raise InvalidParameter(self._refusal)
        if self._queue is not None:
            self._queue.admit(n, deadline, stated)
            return
        self._check_retry()
        if self._waiting and len(self._waiting) + n > _MOST_WAITING:  # the first request may be a large batch
            raise Overloaded("the network for explanations is being loaded", _LOADING_S)

    def put(self, *jobs: Job) -> None:
        """Append jobs, and start the queue if that has not been done. From any thread.

        Raises NotReady once the queue is closed, and for some time after a failed start; or the error of ``abandon``.
        Settles the jobs with InvalidParameter if the network is Inexplicable.
        """
        with self._lock:
            if self._closed:
                raise self._abandoned or NotReady("shutting down")
            if self._queue is None and not self._refusal:
                self._wait_for_start(jobs)
                return
        if self._refusal:
            fail(jobs, InvalidParameter(self._refusal))
        elif self._queue is not None:
            self._queue.put(*jobs)

    def forget(self, job: Job) -> None:
        """Nobody waits for this job any more."""
        with self._lock:
            if self._queue is None:
                self._waiting = [other for other in self._waiting if other is not job]
                return
        self._queue.forget(job)

    def running_s(self) -> float:
        """Seconds that the device has taken so far for the longest running batch."""
        return self._queue.running_s() if self._queue is not None else 0.0

    def abandon(self, error: Exception) -> None:
        """Settle all jobs with ``error`` and refuse further ones. From any thread."""
        with self._lock:
            self._closed, self._abandoned = True, error
            waiting, self._waiting = self._waiting, []
        fail(waiting, error)
        if self._queue is not None:
            self._queue.abandon(error)

    def close(self) -> None:
        """Refuse further jobs, and finish those that wait, even for the start. Blocks."""
        with self._lock:
            self._closed = True
            starting = self._thread  # which sets it to None when it fails
        if self._abandoned:
            return
        if starting:
            starting.join()
        if self._queue is not None:
            self._queue.close()

    def _wait_for_start(self, jobs: tuple[Job, ...]) -> None:
        """Keep jobs until the queue has started. The caller holds the lock."""
        if self._thread is None:
            self._check_retry()
            self._thread = threading.Thread(target=self._run_start, name="topk-explanations", daemon=True)
            self._thread.start()
        for job in jobs:
            job.waiting_since = self._clock()
        self._waiting += jobs

    def _check_retry(self) -> None:
        """Raise NotReady if the start has failed a moment ago."""
        if (seconds := self._retry_at - self._clock()) > 0:
            raise NotReady(_FAILED, seconds)

    def _run_start(self) -> None:
        try:
            queue = self._start()
        except Inexplicable as error:
            log.warning("explanations are refused", reason=error.detail)
            self._refusal = f"explain is not available: {error.detail}"
            self._end(InvalidParameter(self._refusal))
        except Exception:
            log.exception("the network for explanations could not be loaded")
            self._end(NotReady(_FAILED, _RETRY_S))
        else:
            self._serve(queue)
        self._changed()

    def _end(self, error: InvalidParameter | NotReady) -> None:
        """Settle what waits for a start that has failed."""
        with self._lock:
            self._thread, self._retry_at = None, self._clock() + _RETRY_S
            waiting, self._waiting = self._waiting, []
        fail(waiting, error)

    def _serve(self, queue: BatchQueue) -> None:
        with self._lock:
            if not self._abandoned:
                waiting = [job for job in self._waiting if not job.gone]
                for job in waiting:
                    job.end_wait(self._clock())
                queue.put(*waiting)
            self._waiting.clear()
            self._queue = queue
        if self._abandoned:
            queue.abandon(self._abandoned)
