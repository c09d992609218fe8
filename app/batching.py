"""The batch queue: items wait here for a free stream, and each stream's thread runs whole batches of them.

It knows deadlines and costs, neither images nor torch. ``prepare(item)`` makes one item ready for the device, or raises
what answers it. ``run(items)`` is the device: it answers with one result an item, each an answer or an exception. The
two are measured apart: the cost curve and the watchdog are about the device alone. ``Backlog`` is the policy, without
threads and with the time passed in; ``BatchQueue`` is the machinery around it. Submissions come from any thread,
batches run on the queue's own threads (one a stream), results are settled on the event loop that waits for them.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import structlog

from app.errors import DeadlineExceeded, Internal, NotReady, Overloaded

log = structlog.get_logger(__name__)

Run = Callable[[Sequence[Any]], Sequence[Any]]
Prepare = Callable[[Any], None]

_PAYS = 0.97  # a bucket pays while its throughput is within 3 % of the best one's
_FRESH = 0.2  # weight of the newest measurement in the moving average
_OUTLIER = 2.0  # a measurement counts as at most so many times the average: a machine may pause, an item may be odd
_PREPARED_S = 0.05  # what an item may count as, whatever the average is
_FRESH_PREPARED = 0.05  # weight of the newest preparation: items differ more than batches
_FORGIVEN = 0.005  # how far one measurement brings a larger bucket that does not pay back to where it would
_PATIENCE_S = 0.95  # most clients that state no deadline give up after a second
_MARGIN_S = 0.2  # for what predictions miss, once there is an excess: then the queue is as long as it is let
_STANDING_S = 1.0  # for how long a refusal shows an excess
_HALF_LIFE_S = 10.0  # of the belief that the device is not faster than it was measured
_BURST_S = 0.1  # by then a burst has arrived
_DEFECT = "the image could not be classified"


class CostCurve:
    """Measured seconds a batch takes, by bucket; a batch of n costs what the smallest bucket holding n costs."""

    def __init__(self, buckets: Iterable[int]) -> None:
        self.buckets = tuple(sorted(buckets))
        self.ceiling = self.buckets[-1]
        self.fastest = 0.0  # seconds of the fastest batch ever measured; 0 before the first
        self._seconds: dict[int, float] = {}

    def bucket(self, n: int) -> int:
        """The smallest bucket that holds n items; the largest one if none does."""
        return next((b for b in self.buckets if b >= n), self.buckets[-1])

    def observe(self, n: int, seconds: float) -> None:
        """Take one measured batch of n items into the moving average of its bucket."""
        bucket = self.bucket(n)
        self.fastest = min(self.fastest or seconds, seconds)
        known = self._seconds.get(bucket)
        damped = seconds if known is None else known + _FRESH * (min(seconds, _OUTLIER * known) - known)
        self._seconds[bucket] = damped
        self._forgive(bucket)
        self.ceiling = self._pays()

    def keep_below(self, size: int) -> None:
        """Batches of this size or larger cannot be run here."""
        self.buckets = tuple(b for b in self.buckets if b < size)
        self._seconds = {b: seconds for b, seconds in self._seconds.items() if b < size}
        self.ceiling = self._pays()

    def seconds(self, n: int) -> float:
        """Predicted seconds of one batch of n items; proportional to the nearest bucket where none is measured."""
        bucket = self.bucket(n)
        if bucket in self._seconds:
            return self._seconds[bucket]
        if not self._seconds:
            return 0.0
        nearest = min(self._seconds, key=lambda b: abs(b - bucket))
        return self._seconds[nearest] * bucket / nearest

    def as_dict(self) -> dict[int, float]:
        """Bucket -> measured seconds."""
        return dict(sorted(self._seconds.items()))

    def _pays(self) -> int:
        """The largest bucket whose throughput is within 3 % of the best; one that is not measured yet may be.

        A bucket counts only where two such batches fit into a client's patience, since one waits for the other; or
        where it takes no longer than the smallest.
        """
        bearable_s = max(_PATIENCE_S / 2, self.seconds(self.buckets[0]))
        bearable = [b for b in self.buckets if self.seconds(b) <= bearable_s]
        least = _PAYS * max(b / max(self.seconds(b), 1e-9) for b in bearable)
        return max(b for b in bearable if b >= least * self.seconds(b))

    def _best_rate(self) -> float:
        return max((b / seconds for b, seconds in self._seconds.items() if seconds > 0), default=0.0)

    def _forgive(self, bucket: int) -> None:
        """What does not pay is not run, so not measured: without this, one hiccup would lower the ceiling for good."""
        best = self._best_rate()
        for larger, seconds in self._seconds.items():
            if larger > bucket and seconds * best > larger:
                self._seconds[larger] += _FORGIVEN * (larger / best - seconds)


@dataclass(slots=True, eq=False)
class Entry:
    """One waiting item. ``deadline`` and ``submitted`` are seconds of the queue's clock."""

    item: Any
    deadline: float
    future: "asyncio.Future[Done]"
    submitted: float = 0.0

    @property
    def gone(self) -> bool:
        """Nobody waits for it any more."""
        return self.future.done()


@dataclass(frozen=True, slots=True)
class Done:
    """An item's answer, when its batch began by the queue's clock, the seconds it waited and the size of its batch."""

    answer: Any
    started: float
    queue_s: float
    batch_size: int


class Outlook(NamedTuple):
    """What is to be expected of a queue, at ``now`` by its clock.

    In seconds: ``wait`` is predicted, ``rest`` is what would be left of it were nothing running, and ``fastest`` is
    what the device takes at least.
    """

    now: float
    wait: float
    rest: float
    waiting: int
    idle: bool
    fastest: float


class Backlog:
    """What waits and what runs; decides who is admitted and what goes next. Not thread-safe; time is passed in.

    ``ahead_s()`` predicts the seconds until all that is still prepared ahead of the queue will have come to it.
    """

    def __init__(self, costs: CostCurve, streams: int, ahead_s: Callable[[], float] = lambda: 0.0) -> None:
        self.costs = costs
        self.streams = streams
        self.ahead_s = ahead_s
        self.prepare_s = 0.0  # seconds that a stream takes on average to prepare an item
        self._waiting: deque[Entry] = deque()
        self._running: dict[int, float] = {}  # stream -> predicted end
        self._started: dict[int, float] = {}  # stream -> when the device began
        self._idle_at = -math.inf
        self._taken_at = math.inf
        self._refused_at = -math.inf

    def __len__(self) -> int:
        return len(self._waiting)

    def predicted_wait(self, now: float) -> float:
        """Seconds until an item that came now would be taken by a stream, from the measured costs."""
        return max(self.ahead_s(), self._start(now, len(self._waiting)))

    @property
    def fastest_s(self) -> float:
        """Seconds of the fastest batch ever."""
        return self.costs.fastest

    @property
    def active_at(self) -> float:
        """When the last batch was taken."""
        return self._taken_at

    @property
    def idle(self) -> bool:
        """Whether nothing runs, waits, or is being prepared ahead of the queue."""
        return not self._running and not self._waiting and not self.ahead_s()

    @property
    def target_s(self) -> float:
        """The wait that is tolerated: what leaves time for a batch within a second's patience, or half a batch."""
        batch = self._batch_s(self.costs.ceiling)
        return max(_PATIENCE_S - batch, batch / 2)

    def check(self, now: float, n: int, deadline: float) -> None:
        """Admit n more items that must be answered by ``deadline``, or raise Overloaded.

        It refuses what would come too late, and what would wait for longer than the target: hardly any client has the
        patience of its deadline. A burst, which comes all at once to an idle device, may wait until its deadline.
        For a second after each refusal the queue is kept shorter by a margin: in a sustained excess everybody waits as
        long as is let, and whatever went slower than predicted would come too late.

        An idle device admits whatever it could answer in time at its best: what it refused for a slow average would
        never be measured again.
        """
        if not self._running and not self._waiting:
            self._idle_at = now
        if self.idle:
            self._taken_at = min(self._taken_at, now)
            if (short := now + self._best_s(now) - deadline) > 0:
                raise Overloaded("the deadline is shorter than an answer takes", retry_after_s=short)
            return
        wait = self.predicted_wait(now)
        start = max(wait, self._start(now, len(self._waiting) + n - 1))
        excess = now + start + self._batch_s(min(n, self.costs.ceiling)) - deadline
        if now - self._idle_at > _BURST_S:
            excess = max(excess, wait - self.target_s)
        if wait > 0 and now - self._refused_at <= _STANDING_S:
            excess += _MARGIN_S
        if excess > 0:
            self._refused_at = now
            raise Overloaded("the answer would come too late", retry_after_s=excess)

    def put(self, entry: Entry, now: float) -> None:
        entry.submitted = now
        self._waiting.append(entry)

    def take(self, now: float, stream: int) -> tuple[list[Entry], list[Entry]]:
        """The next batch for a free stream, and the entries that expired while they waited.

        The batch is this stream's share of what the free streams can take. By arrival; only an entry that would miss
        its deadline by waiting for one more batch overtakes, and never the head. Entries that nobody waits for are
        dropped.
        """
        waiting = [entry for entry in self._waiting if not entry.gone]
        expired = [entry for entry in waiting if entry.deadline <= now]
        waiting = [entry for entry in waiting if entry.deadline > now]
        batch = self._choose(now, waiting)
        chosen = set(map(id, batch))
        self._waiting = deque(entry for entry in waiting if id(entry) not in chosen)
        if batch:
            self._taken_at = now
            self._running[stream] = now + self._batch_s(len(batch))
        return batch, expired

    def prepared(self, seconds: float) -> None:
        """Take the preparation of one item into the moving average."""
        counted = min(seconds, max(_OUTLIER * self.prepare_s, _PREPARED_S))
        self.prepare_s += _FRESH_PREPARED * (counted - self.prepare_s)

    def started(self, stream: int, now: float) -> None:
        """The device begins with a stream's batch."""
        self._started[stream] = now

    @property
    def one_running(self) -> bool:
        """Whether one batch is running, and nothing waits."""
        return len(self._running) == 1 and not self._waiting

    def clear(self) -> list[Entry]:
        """Take out all that waits."""
        waiting, self._waiting = list(self._waiting), deque()
        return waiting

    def finished(self, stream: int) -> None:
        self._running.pop(stream, None)
        self._started.pop(stream, None)

    def running_s(self, now: float) -> float:
        """Seconds that the device has taken so far for the longest running batch; 0 where none runs."""
        return max((now - started for started in self._started.values()), default=0.0)

    def _best_s(self, now: float) -> float:
        """What the device may take at its best: less and less while nothing is measured, so that it is tried again."""
        return float(self.fastest_s * 0.5 ** ((now - self.active_at) / _HALF_LIFE_S))

    def _batch_s(self, n: int) -> float:
        """Predicted seconds of a stream for a batch of n items: to prepare them, and to run them."""
        return n * self.prepare_s + self.costs.seconds(n)

    def _start(self, now: float, place: int) -> float:
        """Seconds until a stream takes the item at this place of the queue, all batches being full ones."""
        ends = sorted(max(0.0, end - now) for end in self._running.values())
        free = [0.0] * (self.streams - len(ends))
        turns, stream = divmod(place // self.costs.ceiling, self.streams)
        return (free + ends)[stream] + turns * self._batch_s(self.costs.ceiling)

    def _choose(self, now: float, waiting: list[Entry]) -> list[Entry]:
        free = max(1, self.streams - len(self._running))
        size = self._size(-(-len(waiting) // free))
        if size == len(waiting):
            return waiting
        next_end = now + 2 * self._batch_s(size)
        urgent_first = sorted(waiting[1:], key=lambda entry: entry.deadline >= next_end)  # stable: else by arrival
        return waiting[:1] + urgent_first[: size - 1]

    def _size(self, waiting: int) -> int:
        """All of it, up to the ceiling; or the full bucket below, where padding up to the next costs more."""
        n = min(waiting, self.costs.ceiling)
        below = max((b for b in self.costs.buckets if b <= n), default=n)
        if below < n and below / max(self.costs.seconds(below), 1e-9) > n / max(self.costs.seconds(n), 1e-9):
            return below
        return n


@dataclass(slots=True)
class BatchQueue:
    """Threads around a ``Backlog``: one a stream, each running its own callable.

    ``prepare`` is called on the stream's thread, item by item, before a batch runs, and ``finished`` after it.
    ``run_alone`` runs an item that has the device to itself, where that is done otherwise. ``ahead_s`` is the
    ``Backlog``'s.
    """

    runs: Sequence[Run]
    costs: CostCurve
    run_alone: Run | None = None
    prepare: Prepare = lambda item: None
    finished: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    ahead_s: Callable[[], float] = lambda: 0.0
    costs_alone: CostCurve = field(init=False, default_factory=lambda: CostCurve((1,)))
    backlog: Backlog = field(init=False)
    _wakeup: threading.Condition = field(init=False, default_factory=threading.Condition)
    _threads: list[threading.Thread] = field(init=False, default_factory=list)
    _closed: bool = field(init=False, default=False)
    _running: dict[int, list[Entry]] = field(init=False, default_factory=dict)
    _abandoned: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.backlog = Backlog(self.costs, len(self.runs), self.ahead_s)

    def start(self, warm_batch: Callable[[int], Sequence[Any]] | None = None) -> None:
        """Start the streams; with ``warm_batch(size)``, measure every bucket on each of them first.

        Blocks until all are warm. Raises what a warm-up raises.
        """
        warmed: list[Future[None]] = []
        for stream, run in enumerate(self.runs):
            warm: Future[None] = Future()
            thread = threading.Thread(
                target=self._serve, args=(stream, run, warm_batch, warm), name=f"topk-stream-{stream}", daemon=True
            )
            warmed.append(warm)
            self._threads.append(thread)
            thread.start()
        try:
            for warm in warmed:
                warm.result()
            if self.run_alone and warm_batch:
                self._warm_up(self.run_alone, warm_batch, self.costs_alone)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Refuse what comes, finish what waits, join the threads. Blocks."""
        with self._wakeup:
            self._closed = True
            self._wakeup.notify_all()
        for thread in self._threads:
            if not self._abandoned:
                thread.join()

    def running_s(self) -> float:
        """Seconds that the device has taken so far for the longest running batch; 0 where none runs."""
        with self._wakeup:
            return self.backlog.running_s(self.clock())

    def abandon(self, error: Exception) -> None:
        """Answer all that waits or runs with ``error``, refuse what comes, leave the threads behind. From any thread.

        For a device that does not answer any more.
        """
        with self._wakeup:
            self._closed = self._abandoned = True
            entries = [*self.backlog.clear(), *(entry for batch in self._running.values() for entry in batch)]
            self._wakeup.notify_all()
        settle(entries, [error] * len(entries))

    def __len__(self) -> int:
        return len(self.backlog)

    def predicted_wait(self) -> float:
        """Seconds until an item that came now would be taken."""
        with self._wakeup:
            return self.backlog.predicted_wait(self.clock())

    def outlook(self) -> Outlook:
        """What is to be expected of the queue now."""
        with self._wakeup:
            now, backlog = self.clock(), self.backlog
            wait, rest = backlog.predicted_wait(now), backlog.predicted_wait(math.inf)
            return Outlook(now, wait, min(wait, rest), len(backlog), backlog.idle, backlog.fastest_s)

    def admit(self, n: int, deadline: float) -> None:
        """Raise Overloaded unless n more items are likely to be answered by ``deadline`` (queue clock, seconds)."""
        with self._wakeup:
            self.backlog.check(self.clock(), n, deadline)

    def entry(self, item: Any, deadline: float) -> Entry:
        """Wrap an item for ``put``, on the event loop that will wait for ``entry.future``.

        The future ends in ``Done``, in the exception that answers the item, or in DeadlineExceeded. Cancelling it
        abandons the item: it is dropped before the device.
        """
        return Entry(item, deadline, asyncio.get_running_loop().create_future())

    def put(self, entry: Entry) -> None:
        """Append an entry. From any thread. Raises NotReady once the queue is closed."""
        with self._wakeup:
            if self._closed:
                raise NotReady("shutting down")
            self.backlog.put(entry, self.clock())
            self._wakeup.notify()

    def settle(self, entry: Entry, error: Exception) -> None:
        """Answer an entry that was never put. From any thread."""
        settle([entry], [error])

    def _serve(
        self, stream: int, run: Run, warm_batch: Callable[[int], Sequence[Any]] | None, warm: "Future[None]"
    ) -> None:
        try:
            if warm_batch:
                self._warm_up(run, warm_batch, self.costs)
        except BaseException as error:
            warm.set_exception(error)
            return
        warm.set_result(None)
        while self._serve_batch(stream, run):
            pass

    def _serve_batch(self, stream: int, run: Run) -> bool:
        """Wait for the next batch and run it; False once the queue is closed and empty."""
        with self._wakeup:
            while not len(self.backlog) and not self._closed:
                self._wakeup.wait()
            if not len(self.backlog):
                return False
            batch, expired = self.backlog.take(self.clock(), stream)
            alone = self.run_alone if len(batch) == 1 and self.backlog.one_running else None
            if batch:
                self._running[stream] = batch
        settle(expired, [DeadlineExceeded("the deadline passed while the image waited") for _ in expired])
        if batch:
            taken = self.clock()
            ready = self._prepare_batch(batch)
            with self._wakeup:
                self._running[stream] = ready
                self.backlog.started(stream, self.clock())
            answers = self._run_batch(alone or run, ready, self.costs_alone if alone else self.costs, taken)
            with self._wakeup:
                self.backlog.finished(stream)
                del self._running[stream]
            self.finished()
            settle(ready, answers)
        return True

    def _prepare_batch(self, batch: list[Entry]) -> list[Entry]:
        """Prepare the items of a batch; the entries that the device is to run. What fails is answered at once."""
        ready = []
        for entry in batch:
            if entry.gone:
                continue
            started = self.clock()
            try:
                self.prepare(entry.item)
            except BaseException as error:  # whatever it is, a stream that ends leaves its callers waiting
                settle([entry], [error if isinstance(error, Exception) else Internal(_DEFECT)])
            else:
                ready.append(entry)
                with self._wakeup:
                    self.backlog.prepared(self.clock() - started)
        return ready

    def _warm_up(self, run: Run, warm_batch: Callable[[int], Sequence[Any]], costs: CostCurve) -> None:
        for size in costs.buckets:
            batch = warm_batch(size)
            try:
                _checked(run, batch)  # the first pass compiles and allocates
                started = self.clock()
                answers = _checked(run, batch)
                seconds = self.clock() - started
            except MemoryError:
                if size == costs.buckets[0]:
                    raise
                log.warning("out of memory; batches are kept smaller", size=size)
                with self._wakeup:
                    costs.keep_below(size)
                return
            if failed := next((answer for answer in answers if isinstance(answer, Exception)), None):
                raise failed
            with self._wakeup:
                if size in costs.buckets:  # another stream may have had no memory for it
                    costs.observe(size, seconds)

    def _run_batch(self, run: Run, batch: list[Entry], costs: CostCurve, taken: float) -> list[Any]:
        """Results for a prepared batch, which was ``taken`` from the queue then."""
        if not batch:
            return []
        started = self.clock()
        answers, measured = _answers(run, batch)
        if measured:
            self._observe(costs, answers, self.clock() - started)
        return [
            answer if isinstance(answer, Exception) else Done(answer, taken, taken - entry.submitted, len(batch))
            for entry, answer in zip(batch, answers, strict=True)
        ]

    def _observe(self, costs: CostCurve, answers: list[Any], seconds: float) -> None:
        """Learn from a batch that fills its bucket. Items refused before the device, bad images say, cost nothing.

        Where nothing is padded a batch costs what its items cost: five of eight would make eight look cheap.
        """
        size = sum(not isinstance(answer, Exception) for answer in answers)
        if size in costs.buckets:
            with self._wakeup:
                costs.observe(size, seconds)


def _answers(run: Run, batch: list[Entry]) -> tuple[list[Any], bool]:
    """A batch's results, and whether the time they took is what such a batch costs here.

    What the device has no memory for is run again in halves, and takes so long that it seldom pays any more.
    """
    try:
        return _checked(run, [entry.item for entry in batch]), True
    except MemoryError:
        log.warning("out of memory; the batch is halved", size=len(batch))
    except BaseException:  # whatever it is, a stream that ends leaves its callers waiting
        log.exception("batch failed", size=len(batch))
        return _one_by_one(run, batch), False
    # Not within the handler, where the error's trace holds on to the memory.
    if len(batch) == 1:
        return [Overloaded("the device is out of memory", retry_after_s=1)], False
    middle = len(batch) // 2
    return _answers(run, batch[:middle])[0] + _answers(run, batch[middle:])[0], True


def _one_by_one(run: Run, batch: list[Entry]) -> list[Any]:
    """Once more what failed as a batch, so that only the guilty item fails; a batch of one has been tried."""
    if len(batch) == 1:
        return [Internal(_DEFECT)]
    return [None if entry.gone else _alone(run, entry) for entry in batch]


def _alone(run: Run, entry: Entry) -> Any:
    try:
        return _checked(run, [entry.item])[0]
    except BaseException:
        log.exception("item failed")
        return Internal(_DEFECT)


def _checked(run: Run, items: Sequence[Any]) -> list[Any]:
    answers = list(run(items))
    if len(answers) != len(items):
        raise RuntimeError(f"{len(answers)} results for {len(items)} items")
    return answers


def settle(entries: list[Entry], answers: list[Any]) -> None:
    """Hand results to the loops that wait for them, one call a loop. From any thread."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Entry, Any]]] = {}
    for entry, answer in zip(entries, answers, strict=True):
        by_loop.setdefault(entry.future.get_loop(), []).append((entry, answer))
    for loop, settled in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle_on_loop, settled)
        except RuntimeError:  # the loop is closed: nobody waits any more
            log.debug("results of a closed event loop dropped", count=len(settled))


def _settle_on_loop(settled: list[tuple[Entry, Any]]) -> None:
    for entry, answer in settled:
        if entry.gone:
            continue
        if isinstance(answer, Exception):
            entry.future.set_exception(answer)
        else:
            entry.future.set_result(answer)
