"""A stream: the callable that runs its batches, what its thread does before it serves, and the costs it measures."""

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

from app.batching.attempts import Run
from app.batching.costs import CostCurve


class Stream:
    """Runs batches with ``run`` and adds their cost to ``costs``, which streams share. Its owner holds a lock."""

    def __init__(self, run: Run, costs: CostCurve) -> None:
        self.run = run
        self.costs = costs
        self._ran: set[int] = set()  # buckets
        self._tasks = SimpleQueue[Callable[[], None] | None]()

    def submit(self, task: Callable[[], None]) -> "Future[None]":
        """Run a task on the thread of the stream, before it serves. From any thread."""
        done: Future[None] = Future()

        def run() -> None:
            try:
                task()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        self._tasks.put(run)
        return done

    def release(self) -> None:
        """Let the thread of the stream serve after the submitted tasks. From any thread."""
        self._tasks.put(None)

    def run_tasks(self) -> None:
        """Run the submitted tasks until ``release``. On the thread of the stream."""
        for task in iter(self._tasks.get, None):
            task()

    def is_first(self, n: int) -> bool:
        """Whether no batch of n items has run yet. The first pass of a size also compiles and allocates."""
        return self.costs.bucket(n) not in self._ran

    def first_pass_s(self, n: int) -> float:
        """Predict the least seconds of a batch of n items if it is a first pass; 0 if it is not."""
        return self.costs.seconds(n) if self.is_first(n) else 0.0

    def learn(self, n: int, seconds: float) -> None:
        """Add the seconds of a batch of n items to the costs, except those of a first pass."""
        if not self.costs.covers(n):
            return
        if not self.is_first(n):
            self.costs.observe(n, seconds)
        self._ran.add(self.costs.bucket(n))
