"""The policy of the batch queue: admission and the choice of the next batch. No threads, no clock."""

import itertools
import math
import operator
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from app.batching.costs import OUTLIER, CostCurve
from app.batching.job import Job
from app.batching.patience import Patience
from app.errors import Overloaded

_MIN_CAP_S = 0.05  # least upper bound on a preparation time in the average
_PREPARE_WEIGHT = 0.05  # of the newest preparation time; images vary more than batches
_PUNCTUAL = 0.9  # share of the answers that come within the predicted time times ``lateness``
_LATENESS_STEP = 0.02  # change of the lateness by an answer
_LEAST_LATENESS, _MOST_LATENESS = 1.05, 1.3
_HALF_LIFE_S = 10.0  # of the fastest measured time while nothing is measured
_LIKELY = 0.9  # a client is likely to stay for an answer if it does so with at least this probability
_TOGETHER_S = 0.05  # clients that leave within this time leave together
_DIFFERENT = 1.2  # factor between waits that differ
_SLACK = 1.15  # factor on the predicted time of a batch whose clients may leave before its end
_deadline = operator.attrgetter("deadline")


class Outlook(NamedTuple):
    """The state of a queue at time ``now`` of its clock.

    ``wait`` is the predicted wait in seconds, and ``rest`` is the part of it that running batches do not cause.
    ``fastest`` is the shortest batch time in seconds. ``waiting`` is the number of waiting items. ``patience`` is how
    long clients wait, in seconds; infinite if none has left. ``lateness`` is the factor on predicted times.
    """

    now: float
    wait: float
    rest: float
    waiting: int
    idle: bool
    fastest: float
    patience: float
    lateness: float = 1.0


class Schedule(NamedTuple):
    """The predicted turns of the streams, all with full batches.

    ``free``: seconds until the running batch of each stream ends, ascending. ``size`` of a full batch, and its seconds.
    """

    free: list[float]
    size: int
    batch_s: float

    def start(self, place: int) -> float:
        """Predict the seconds until a stream takes the item at this place in the queue."""
        turn, stream = divmod(place // self.size, len(self.free))
        return self.free[stream] + turn * self.batch_s


class Backlog:
    """The waiting jobs and the running batches. Not thread-safe; callers pass the current time.

    ``ahead_s()`` predicts the seconds until all items that are being prepared ahead of the queue have entered it.
    """

    def __init__(self, costs: CostCurve, streams: int, ahead_s: Callable[[], float] = lambda: 0.0) -> None:
        self.costs = costs
        self.streams = streams
        self.ahead_s = ahead_s
        self.patience = Patience()
        self.prepare_s = 0.0  # average seconds that a stream takes to prepare an item
        self._waiting: list[Job] = []
        self._soonest = math.inf  # deadline of all jobs that waited when the last batch was chosen
        self._unlikely = 0  # waiting jobs whose clients will probably leave before an answer
        self._running: dict[int, float] = {}  # stream -> predicted end
        self._started: dict[int, float] = {}  # stream -> start time on the device
        self._taken_at = math.inf
        self.lateness = _LEAST_LATENESS  # factor on the predicted time until an answer that nine of ten keep
        self._observed: list[tuple[int, float, bool]] = []  # the latest clients: caller, wait, whether it has left
        self._observed_at = -math.inf  # the time of the first of them
        self._retry_at = -math.inf  # the latest time at which a refused client was told to come again

    def __len__(self) -> int:
        return len(self._waiting)

    def predicted_wait(self, now: float) -> float:
        """Predict the seconds until a stream takes an item that arrives now, from the measured costs."""
        return self._wait(now, self._schedule(now))

    def rest_s(self, now: float) -> float:
        """Predict the wait as if the running batches ended now."""
        ceiling = self.ceiling(now)
        return max(self.ahead_s(), self._before // ceiling // self.streams * self._batch_s(ceiling))

    @property
    def fastest_s(self) -> float:
        """Seconds of the fastest batch so far."""
        return self.costs.fastest

    @property
    def active_at(self) -> float:
        """The time when the last batch was taken."""
        return self._taken_at

    @property
    def idle(self) -> bool:
        """Whether no item is running, waiting or being prepared ahead of the queue."""
        return not self._running and not self._waiting and not self.ahead_s()

    def check(self, now: float, n: int, deadline: float, stated: bool = False) -> None:
        """Admit n more items that must be finished by ``deadline``, or raise Overloaded.

        Items are refused if they would miss their deadline. If the client has not ``stated`` it, they are also refused
        if they would be finished after clients have lost patience. Predictions are lengthened so that nine of ten
        answers keep them, because during overload every item waits as long as allowed.

        An idle device admits every item that it can finish in time at its best speed. If it refused items because of a
        slow average, the average would never be updated.
        """
        if self.idle:
            self._taken_at = min(self._taken_at, now)
            if (short := now + self._best_s(now) - deadline) > 0:
                raise Overloaded("the deadline is too short for an inference; allow more time", retry_after_s=short)
            return
        schedule = self._schedule(now)
        wait = self._wait(now, schedule)
        start = max(wait, schedule.start(self._before + n - 1))
        longest = allowed = deadline - now
        excess = self.lateness * (start + self._batch_s(min(n, schedule.size))) - allowed
        if not stated:
            patience, batch = self.patience_s(now), schedule.batch_s
            excess = max(excess, self.lateness * (wait + batch) - max(patience, 1.5 * self.lateness * batch))
            longest = min(longest, patience)
        if excess > 0:
            raise Overloaded("the answer would come too late", retry_after_s=self._retry_s(now, n, excess, longest))

    def _retry_s(self, now: float, n: int, least: float, most: float) -> float:
        """The seconds after which refused items may come again: one client after another, as fast as they are run."""
        ceiling = self.ceiling(now)
        turn = n * self._batch_s(ceiling) / ceiling / self.streams
        self._retry_at = min(max(self._retry_at, now + least) + turn, now + max(least, most))
        return self._retry_at - now

    def patience_s(self, now: float) -> float:
        """How long clients wait that state no deadline, in seconds; infinite if none has left."""
        self._count_observed(now)
        return self.patience.seconds(now)

    def computed(self, job: Job, now: float) -> None:
        """Learn from a job whose batch ends now: how far predictions hold, and whether its client has waited."""
        self._learn_lateness(now - job.waiting_since <= self.lateness * job.predicted_s)
        if job.reveals_patience and not job.gone:
            self._observe(job, now, left=False)

    def _learn_lateness(self, punctual: bool) -> None:
        lateness = self.lateness + _LATENESS_STEP * (_PUNCTUAL - punctual)
        self.lateness = min(max(lateness, _LEAST_LATENESS), _MOST_LATENESS)

    def left(self, job: Job, now: float) -> None:
        """Learn from a client that does not wait any more. One that has waited until its deadline was patient."""
        if now < job.deadline and job.reveals_patience:
            self._observe(job, now, left=True)

    def _observe(self, job: Job, now: float, left: bool) -> None:
        self._count_observed(now)
        if not self._observed:
            self._observed_at = now
        self._observed.append((job.caller, now - job.received_at, left))

    def _count_observed(self, now: float) -> None:
        """Pass on who was answered and who has left, once those that leave together are known.

        If a caller's connections close together, after different waits, and more of them than remain, then a proxy, a
        process or a network has failed: they count as one client.
        """
        if not self._observed or now - self._observed_at < _TOGETHER_S:
            return
        ages: dict[int, list[float]] = {}
        for caller, age, left in self._observed:
            if left:
                ages.setdefault(caller, []).append(age)
        remaining = Counter(job.caller for job in self._waiting if not job.gone) if ages else Counter[int]()
        together = {
            caller: max(waited)
            for caller, waited in ages.items()
            if len(waited) > remaining[caller] and max(waited) > _DIFFERENT * min(waited)
        }
        for caller, age, left in self._observed:
            if not left:
                self.patience.answered(age, caller, now)
            elif caller not in together:
                self.patience.left(age, caller, now)
        for caller, age in together.items():
            self.patience.left(age, caller, now)
        self._observed.clear()

    def ceiling(self, now: float) -> int:
        """The size of a full batch: two of them fit into the clients' patience, because one waits for the other."""
        limit_s, largest = self.patience_s(now) / 2, self.costs.ceiling
        if self._batch_s(largest) <= limit_s:
            return largest
        fitting = [b for b in self.costs.buckets if b < largest and self._batch_s(b) <= limit_s]
        return max(fitting, default=self.costs.buckets[0])

    def put(self, jobs: Sequence[Job], now: float) -> None:
        """Put jobs that arrive together."""
        ahead_s, schedule = self.ahead_s(), self._schedule(now)
        for place, job in enumerate(jobs, self._before):
            job.waiting_since = now
            job.predicted_s = max(ahead_s, schedule.start(place)) + schedule.batch_s
        self._waiting += jobs

    def take(self, now: float, stream: int) -> tuple[list[Job], list[Job]]:
        """Return the next batch for a free stream, and the jobs whose deadline cannot be met any more.

        The waiting jobs are divided among the free streams. Jobs are taken in order of arrival. A job that would miss
        its deadline by waiting for one more batch overtakes others, but not the first one. Jobs whose clients will
        probably leave before an answer come last. Abandoned jobs are dropped.
        """
        self._taken_at = min(self._taken_at, now)
        earliest = now + self._best_s(now)
        waiting = [job for job in self._waiting if not job.gone]
        late: list[Job] = []
        self._soonest = min(map(_deadline, waiting), default=math.inf)
        if self._soonest < earliest:
            late = [job for job in waiting if job.deadline < earliest]
            waiting = [job for job in waiting if job.deadline >= earliest]
        for _ in late:
            self._learn_lateness(punctual=False)
        batch = self._choose(now, waiting)
        self._waiting = waiting[len(batch) :]
        if batch != waiting[: len(batch)]:
            chosen = set(map(id, batch))
            self._waiting = [job for job in waiting if id(job) not in chosen]
        for job in batch:
            job.taken_at = now
            job.end_wait(now)
        if batch:
            self._taken_at = now
            self._running[stream] = now + self._batch_s(len(batch))
        return batch, late

    def prepared(self, seconds: float) -> None:
        """Add the preparation time of one item to the moving average."""
        counted = min(seconds, max(OUTLIER * self.prepare_s, _MIN_CAP_S))
        self.prepare_s += _PREPARE_WEIGHT * (counted - self.prepare_s)

    def started(self, stream: int, now: float) -> None:
        """Record that the device starts the batch of a stream now, or the time from which ``running_s`` counts."""
        self._started[stream] = now

    @property
    def one_running(self) -> bool:
        """Whether exactly one batch is running and no job is waiting."""
        return len(self._running) == 1 and not self._waiting

    def clear(self) -> list[Job]:
        """Remove and return all waiting jobs."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def finished(self, stream: int) -> None:
        self._running.pop(stream, None)
        self._started.pop(stream, None)

    def running_s(self, now: float) -> float:
        """Seconds since the device started the longest running batch; 0 if none is running."""
        return max([0.0, *(now - started for started in self._started.values())])

    def _best_s(self, now: float) -> float:
        """Seconds of the fastest expected batch.

        The value decays while nothing is measured, so that a device that seemed slow is tried again.
        """
        return float(self.fastest_s * 0.5 ** ((now - self.active_at) / _HALF_LIFE_S))

    def _batch_s(self, n: int) -> float:
        """Predict the seconds that a stream takes to prepare and run a batch of n items."""
        return n * self.prepare_s + self.costs.seconds(n)

    def _wait(self, now: float, schedule: Schedule) -> float:
        return max(self.ahead_s(), schedule.start(self._before))

    def _schedule(self, now: float) -> Schedule:
        ends = sorted([max(0.0, end - now) for end in self._running.values()])
        ceiling = self.ceiling(now)
        return Schedule([0.0] * (self.streams - len(ends)) + ends, ceiling, self._batch_s(ceiling))

    @property
    def _before(self) -> int:
        """The number of waiting jobs that run before one that comes now."""
        return max(0, len(self._waiting) - self._unlikely)

    def _choose(self, now: float, waiting: list[Job]) -> list[Job]:
        """The next batch: of the largest size, or of a smaller one if more clients then get an answer in time."""
        free = max(1, self.streams - len(self._running))
        size = self._size(now, -(-len(waiting) // free))
        likely, last = self._split(now, waiting, size)
        if len(likely) < min(size, len(waiting)):
            smaller = [b for b in self.costs.buckets if b < size]
            size, likely, last = max(
                ((b, *self._split(now, waiting, b)) for b in (*smaller, size)),
                key=lambda choice: min(choice[0], len(choice[1])) / max(self._batch_s(choice[0]), 1e-9),
            )
        self._unlikely = max(0, len(last) - max(0, size - len(likely)))
        if len(likely) <= size:
            return (likely + last)[:size]
        first, next_end = likely[0], now + 2 * self._batch_s(size)
        if self._soonest >= next_end:
            return likely[:size]
        urgent = [job for job in likely if job.deadline < next_end and job is not first][: size - 1]
        if not urgent:
            return likely[:size]
        chosen = {id(first), *map(id, urgent)}
        others = (job for job in likely if id(job) not in chosen)
        return [first, *urgent, *itertools.islice(others, size - 1 - len(urgent))]

    def _split(self, now: float, waiting: list[Job], size: int) -> tuple[list[Job], list[Job]]:
        """Those who will probably be there at the end of a batch of this size, and the others."""
        last = self._leaving(now, waiting, self._batch_s(size))
        skipped = set(map(id, last))
        return [job for job in waiting if id(job) not in skipped] if last else waiting, last

    def _leaving(self, now: float, waiting: list[Job], seconds: float) -> list[Job]:
        """The jobs whose deadline will probably have passed, or whose clients will have left, after ``seconds``."""
        end = now + _SLACK * seconds
        ages = self.patience.leaving(end - now, _LIKELY, now)
        if not ages and self._soonest >= end:
            return []
        return [
            job
            for job in waiting
            if job.deadline < end
            or (ages and not job.stated and any(start <= now - job.received_at < stop for start, stop in ages))
        ]

    def _size(self, now: float, waiting: int) -> int:
        """Return the batch size.

        It is the number of waiting items, up to the ceiling. If padding would lower the throughput, it is the largest
        bucket that the items fill. A larger bucket that was never measured is tried once enough items wait.
        """
        untried = self.costs.untried(waiting)
        if untried and 2 * self._batch_s(untried) <= self.patience_s(now):
            return untried
        n = min(waiting, self.ceiling(now))
        below = max((b for b in self.costs.buckets if b <= n), default=n)
        if below < n and below / max(self.costs.seconds(below), 1e-9) > n / max(self.costs.seconds(n), 1e-9):
            return below
        return n
