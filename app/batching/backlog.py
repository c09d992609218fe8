"""The policy of the batch queue, without threads and with the time passed in: who is admitted, and what runs next."""

import math
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from app.batching.costs import OUTLIER, PATIENCE_S, CostCurve
from app.batching.job import Job
from app.errors import Overloaded

_PREPARED_S = 0.05  # what the preparation of a job may count as, whatever the average is
_FRESH_PREPARED = 0.05  # weight of the newest preparation: images differ more than batches
_MARGIN_S = 0.2  # for prediction errors during an excess: the queue is then as long as is allowed
_STANDING_S = 1.0  # how long a refusal counts as a sign of excess
_HALF_LIFE_S = 10.0  # of the belief that the device is not faster than measured
_BURST_S = 0.1  # a burst has arrived by then


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
        self._waiting: deque[Job] = deque()
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
        return max(PATIENCE_S - batch, batch / 2)

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

    def put(self, job: Job, now: float) -> None:
        job.waiting_since = now
        self._waiting.append(job)

    def take(self, now: float, stream: int) -> tuple[list[Job], list[Job]]:
        """The next batch for a free stream, and the jobs that expired while they waited.

        The batch is this stream's share of what the free streams can take. By arrival; only an entry that would miss
        its deadline by waiting for one more batch overtakes, and never the head. Entries that nobody waits for are
        dropped.
        """
        waiting = [job for job in self._waiting if not job.gone]
        expired = [job for job in waiting if job.deadline <= now]
        waiting = [job for job in waiting if job.deadline > now]
        batch = self._choose(now, waiting)
        chosen = set(map(id, batch))
        self._waiting = deque(job for job in waiting if id(job) not in chosen)
        for job in batch:
            job.taken_at = now
            job.end_wait(now)
        if batch:
            self._taken_at = now
            self._running[stream] = now + self._batch_s(len(batch))
        return batch, expired

    def prepared(self, seconds: float) -> None:
        """Take the preparation of one item into the moving average."""
        counted = min(seconds, max(OUTLIER * self.prepare_s, _PREPARED_S))
        self.prepare_s += _FRESH_PREPARED * (counted - self.prepare_s)

    def started(self, stream: int, now: float) -> None:
        """The device begins with a stream's batch."""
        self._started[stream] = now

    @property
    def one_running(self) -> bool:
        """Whether one batch is running, and nothing waits."""
        return len(self._running) == 1 and not self._waiting

    def clear(self) -> list[Job]:
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

    def _choose(self, now: float, waiting: list[Job]) -> list[Job]:
        free = max(1, self.streams - len(self._running))
        size = self._size(-(-len(waiting) // free))
        if size == len(waiting):
            return waiting
        next_end = now + 2 * self._batch_s(size)
        urgent_first = sorted(waiting[1:], key=lambda job: job.deadline >= next_end)  # stable: else by arrival
        return waiting[:1] + urgent_first[: size - 1]

    def _size(self, waiting: int) -> int:
        """All of it, up to the ceiling; or the full bucket below, where padding up to the next costs more."""
        n = min(waiting, self.costs.ceiling)
        below = max((b for b in self.costs.buckets if b <= n), default=n)
        if below < n and below / max(self.costs.seconds(below), 1e-9) > n / max(self.costs.seconds(n), 1e-9):
            return below
        return n
