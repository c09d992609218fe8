"""A queue whose device is loaded by the first job."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from app.batching import BatchQueue, CostCurve, DeferredQueue
from app.errors import DeviceLost, Inexplicable, InvalidParameter, NotReady, Overloaded
from tests.batching.jobs import answer, job, numbers

WAIT_S = 30


class Loading:
    """Loads a device that doubles numbers, once ``gate`` is open. The first ``fails`` loads raise ``error``."""

    def __init__(self, fails: int = 0, error: Exception | None = None) -> None:
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.loads = 0
        self.changes = threading.Semaphore(0)
        self.now = 0.0
        self._fails, self._error = fails, error or RuntimeError("no memory")
        self.queue = DeferredQueue(self._load, self.changes.release, lambda: self.now)

    def _load(self) -> BatchQueue:
        self.loads += 1
        self.entered.release()
        assert self.gate.wait(WAIT_S)
        if self.loads <= self._fails:
            raise self._error
        queue = BatchQueue([numbers(lambda jobs: [2 * number for number in jobs])], CostCurve((1,)))
        queue.start()
        return queue


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 2 * WAIT_S))


def test_nothing_is_loaded_before_the_first_job() -> None:
    loading = Loading()
    assert loading.queue.outlook().idle
    assert (len(loading.queue), loading.queue.predicted_wait(), loading.queue.running_s()) == (0, 0.0, 0.0)
    loading.queue.admit(1000, 0.0)
    loading.queue.close()
    assert loading.loads == 0


def test_jobs_wait_for_the_one_load() -> None:
    async def test() -> None:
        loading = Loading()
        jobs = [job(number) for number in range(5)]
        for one in jobs:
            loading.queue.put(one)
        assert len(loading.queue) == 5
        loading.gate.set()
        assert [answer(await one.future) for one in jobs] == [0, 2, 4, 6, 8]
        loading.queue.put(later := job(9))
        assert answer(await later.future) == 18
        assert loading.queue.costs.as_dict().keys() == {1}  # measured, and known while the queue is empty
        assert loading.loads == 1
        loading.queue.close()

    run(test)


def test_a_failed_load_fails_its_jobs_and_is_tried_again_later() -> None:
    async def test() -> None:
        loading = Loading(fails=1)
        loading.gate.set()
        loading.queue.put(first := job(1))
        assert isinstance(answer(await first.future), NotReady)
        assert loading.changes.acquire(timeout=WAIT_S)
        with pytest.raises(NotReady, match="retry later"):
            loading.queue.put(job(2))
        loading.now = 12.0
        with pytest.raises(NotReady, match="retry later") as refusal:  # before an image is uploaded
            loading.queue.admit(1, 2000.0)
        assert refusal.value.retry_after_s == 18.0
        loading.now = 31.0
        loading.queue.put(third := job(3))
        assert answer(await third.future) == 6
        loading.queue.close()

    run(test)


def test_a_network_that_has_no_explanations_is_not_loaded_again() -> None:
    async def test() -> None:
        loading = Loading(1, Inexplicable("no maps"))
        loading.queue.put(first := job(1))
        loading.gate.set()
        assert str(answer(await first.future)) == "explain is not available: no maps"
        assert loading.changes.acquire(timeout=WAIT_S)
        loading.now = 1000.0
        with pytest.raises(InvalidParameter, match="explain is not available: no maps"):
            loading.queue.admit(1, 2000.0)
        loading.queue.put(second := job(2))
        assert isinstance(answer(await second.future), InvalidParameter)
        assert loading.loads == 1
        loading.queue.close()

    run(test)


def test_closing_finishes_what_waits_for_the_load() -> None:
    async def test() -> None:
        loading = Loading()
        loading.queue.put(waiting := job(4))
        assert loading.entered.acquire(timeout=WAIT_S)
        closing = asyncio.create_task(asyncio.to_thread(loading.queue.close))
        loading.gate.set()
        assert answer(await waiting.future) == 8
        await closing
        with pytest.raises(NotReady, match="shutting down"):
            loading.queue.put(job(5))

    run(test)


def test_abandoning_settles_what_waits_at_once() -> None:
    async def test() -> None:
        loading, error = Loading(), DeviceLost("gone")
        loading.queue.put(waiting := job(4))
        assert loading.entered.acquire(timeout=WAIT_S)
        loading.queue.abandon(error)
        assert answer(await waiting.future) is error
        with pytest.raises(DeviceLost):
            loading.queue.put(job(5))
        loading.gate.set()
        assert loading.changes.acquire(timeout=WAIT_S)
        loading.queue.close()

    run(test)


def test_few_jobs_may_wait_for_the_load_and_those_whose_clients_have_left_are_dropped() -> None:
    async def test() -> None:
        loading = Loading()
        jobs = [job(number) for number in range(64)]
        loading.queue.put(*jobs)
        with pytest.raises(Overloaded, match="being loaded"):
            loading.queue.admit(1, 1e9)
        for one in jobs[1:]:
            one.future.cancel()
            loading.queue.forget(one)
        assert len(loading.queue) == 1
        loading.queue.admit(63, 1e9)
        loading.gate.set()
        assert answer(await jobs[0].future) == 0
        loading.queue.close()

    run(test)


def test_the_wait_for_the_load_is_a_wait_in_the_queue() -> None:
    async def test() -> None:
        loading = Loading()
        loading.queue.put(one := job(1))
        assert loading.entered.acquire(timeout=WAIT_S)
        loading.now = 7.0
        loading.gate.set()
        await one.future
        assert one.waits[0] == (0.0, 7.0)
        loading.queue.close()

    run(test)


def test_a_job_whose_client_has_left_is_not_run() -> None:
    async def test() -> None:
        loading = Loading()
        loading.queue.put(gone := job(1))
        loading.queue.put(stays := job(2))
        gone.future.cancel()
        loading.gate.set()
        assert answer(await stays.future) == 4
        assert gone.row is None
        loading.queue.close()

    run(test)
