"""The threads of the queue, held still by events."""

import asyncio
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from app.batching import BatchQueue, CostCurve, Job, fail
from app.engine import Want
from app.errors import DeadlineExceeded, DeviceLost, Internal, NotReady, Overloaded
from tests.batching.jobs import BUCKETS, Numbered, answer, job, numbers


class Fake:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def served(*runs: Any, buckets: Sequence[int] = BUCKETS, **options: Any) -> Iterator[BatchQueue]:
    options = {"clock": Fake(), **options}
    if "run_alone" in options:
        options["run_alone"] = numbers(options["run_alone"])
    queue = BatchQueue([numbers(run) for run in runs], CostCurve(buckets), **options)
    queue.start()
    try:
        yield queue
    finally:
        queue.close()


@contextmanager
def warm(*runs: Any, buckets: Sequence[int] = BUCKETS, pads: bool = False, **options: Any) -> Iterator[BatchQueue]:
    """A queue that is warmed up first. ``Held`` runs pass until it is."""
    for run in runs:
        if isinstance(run, Held):
            run.gate.set()
    queue = BatchQueue([numbers(run) for run in runs], CostCurve(buckets, pads), **{"clock": Fake(), **options})
    queue.start(lambda size: [job_without_caller(0)] * size)
    try:
        yield queue
    finally:
        queue.close()


def put(queue: BatchQueue, *items: Any) -> list[Numbered]:
    jobs = [job(item) for item in items]
    for one in jobs:
        queue.put(one)
    return jobs


async def ended(jobs: Sequence[Numbered]) -> list[Any]:
    """Each job's answer or error."""
    return [answer(one) for one in await asyncio.gather(*(one.future for one in jobs))]


def ask(queue: BatchQueue, *items: Any) -> list[Any]:
    async def asked() -> list[Any]:
        return await ended(put(queue, *items))

    return asyncio.run(asked())


def job_without_caller(number: int) -> Numbered:
    made = Numbered(b"", Want(), math.inf)
    made.number = number
    return made


def doubled(items: Sequence[int]) -> list[int]:
    return [2 * item for item in items]


class Held:
    """Doubles numbers. Keeps each batch it got, and waits with it until the gate opens."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.gate = threading.Event()
        self._entered = threading.Semaphore(0)

    def __call__(self, items: Sequence[Any]) -> list[Any]:
        self.batches.append(list(items))
        self._entered.release()
        assert self.gate.wait(30)
        return doubled(items)

    def wait_for_batch(self) -> None:
        assert self._entered.acquire(timeout=30)


def streams() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("topk-stream")]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = streams()
    yield
    assert streams() == before


def test_answers_come_back_to_their_callers() -> None:
    with served(doubled, doubled) as queue:
        assert ask(queue, *range(50)) == [2 * i for i in range(50)]


def test_an_idle_stream_takes_a_single_item_and_batches_grow_while_it_is_busy() -> None:
    held = Held()

    async def go() -> list[Any]:
        first = put(queue, 0)
        held.wait_for_batch()
        waiting = put(queue, *range(1, 7))
        held.gate.set()
        return await ended(first + waiting)

    with served(held) as queue:
        assert asyncio.run(go()) == [0, 2, 4, 6, 8, 10, 12]
    assert held.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_items_that_are_put_together_are_shared_by_the_idle_streams() -> None:
    both = threading.Barrier(2, timeout=30)

    def meet(items: Sequence[int]) -> list[int]:
        both.wait()
        return doubled(items)

    async def go() -> list[Any]:
        jobs = [job(item) for item in (1, 2)]
        queue.put(*jobs)
        return await ended(jobs)

    with served(meet, meet) as queue:
        assert asyncio.run(go()) == [2, 4]


def test_every_state_of_the_queue_is_told_before_the_answers() -> None:
    held, told = Held(), list[tuple[int, bool]]()

    async def go() -> list[Any]:
        first = put(queue, 0)
        await asyncio.to_thread(held.wait_for_batch)
        waiting = put(queue, 1, 2)
        held.gate.set()
        return await ended(first + waiting)

    with served(held, changed=lambda: told.append((len(queue), queue.outlook().idle))) as queue:
        assert asyncio.run(go()) == [0, 2, 4]
    assert told == [(0, False), (0, False), (0, True)]


def test_two_streams_run_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=30)

    def meet(items: Sequence[int]) -> list[int]:
        both.wait()
        return doubled(items)

    with served(meet, meet) as queue:
        assert ask(queue, 1, 2) == [2, 4]


def test_an_answer_tells_its_wait_and_its_batch() -> None:
    held, clock = Held(), Fake()

    async def go() -> Job:
        put(queue, 0)
        held.wait_for_batch()
        second, _ = put(queue, 1, 2)
        clock.now = 0.1
        held.gate.set()
        return await second.future

    with served(held, clock=clock) as queue:
        done = asyncio.run(go())
    assert (answer(done), done.taken_at, done.queue_s, done.batch_size) == (2, 0.1, 0.1, 2)


def test_a_cancelled_item_is_never_run() -> None:
    held = Held()

    async def go() -> list[Any]:
        first = put(queue, 0)
        held.wait_for_batch()
        stays, leaves, stays_too = put(queue, 1, 2, 3)
        leaves.future.cancel()
        held.gate.set()
        return await ended([*first, stays, stays_too])

    with served(held) as queue:
        assert asyncio.run(go()) == [0, 2, 6]
    assert held.batches == [[0], [1, 3]]


def test_a_caller_that_leaves_a_running_batch_does_not_hurt_the_others() -> None:
    held = Held()

    async def go() -> list[Any]:
        put(queue, 0)
        held.wait_for_batch()
        leaves, stays = put(queue, 1, 2)
        held.gate.set()
        held.wait_for_batch()
        leaves.future.cancel()
        return await ended([stays])

    with served(held) as queue:
        assert asyncio.run(go()) == [4]


def test_an_expired_item_is_answered_and_never_run() -> None:
    held, clock = Held(), Fake()

    async def go() -> list[Any]:
        put(queue, 0)
        held.wait_for_batch()
        late = [job(item, 1.0) for item in (1, 2)]
        for one in late:
            queue.put(one)
        clock.now = 1.1
        held.gate.set()
        return await ended(late)

    with served(held, clock=clock) as queue:
        one, other = asyncio.run(go())
    assert isinstance(one, DeadlineExceeded)
    assert isinstance(other, DeadlineExceeded)
    assert one is not other  # a raised exception carries its traceback: two tasks must not share one
    assert held.batches == [[0]]


def test_an_item_that_cannot_be_in_time_any_more_is_refused_and_never_run() -> None:
    held, clock = Held(), Fake()

    async def go() -> list[Any]:
        put(queue, 0)
        held.wait_for_batch()
        late = [job(item, 1.5) for item in (1, 2)]
        for one in late:
            queue.put(one)
        clock.now = 1.0
        held.gate.set()
        return await ended(late)

    with served(held, clock=clock) as queue:
        queue.costs.observe(1, 1.0)
        one, other = asyncio.run(go())
    assert isinstance(one, Overloaded)
    assert isinstance(other, Overloaded)
    assert one is not other
    assert one.retry_after_s is not None
    assert held.batches == [[0]]


class Fussy(Held):
    """Fails with ``error`` on a batch that holds a 13."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def __call__(self, items: Sequence[Any]) -> list[Any]:
        answers = super().__call__(items)
        if 13 in items:
            raise self._error
        return answers


class Timed(Held):
    """Takes so many seconds of the clock."""

    def __init__(self, clock: Fake, seconds: float) -> None:
        super().__init__()
        self._clock, self._seconds = clock, seconds
        self.gate.set()

    def __call__(self, items: Sequence[Any]) -> list[Any]:
        self._clock.now += self._seconds
        return super().__call__(items)


@pytest.mark.parametrize("error", [ValueError("secret"), SystemExit(1)], ids=type)
def test_a_failed_batch_is_run_one_by_one_and_only_the_guilty_item_fails(error: BaseException) -> None:
    fussy = Fussy(error)

    async def go() -> list[Any]:
        put(queue, 0)
        fussy.wait_for_batch()
        waiting = put(queue, 1, 13, 3)
        fussy.gate.set()
        return await ended(waiting)

    with served(fussy, buckets=(1, 2, 3)) as queue:
        one, guilty, other = asyncio.run(go())
        assert ask(queue, 5) == [10]
    assert (one, other) == (2, 6)
    assert isinstance(guilty, Internal)
    assert "secret" not in guilty.detail
    assert fussy.batches == [[0], [1, 13, 3], [1], [13], [3], [5]]


def test_a_single_item_that_fails_is_not_run_again() -> None:
    fussy = Fussy(ValueError())
    fussy.gate.set()
    with served(fussy) as queue:
        [error] = ask(queue, 13)
    assert isinstance(error, Internal)
    assert fussy.batches == [[13]]


def test_a_failed_batch_does_not_count_as_measured() -> None:
    fussy = Fussy(ValueError())
    fussy.gate.set()
    with served(fussy) as queue:
        ask(queue, 13)
        assert queue.costs.as_dict() == {}


@pytest.mark.parametrize("wrong", [[], [1, 2, 3]], ids=["too few", "too many"])
def test_a_wrong_number_of_results_is_a_defect_and_the_stream_survives(wrong: list[int]) -> None:
    with served(lambda items: wrong if 13 in items else doubled(items)) as queue:
        [error] = ask(queue, 13)
        assert isinstance(error, Internal)
        assert ask(queue, 4) == [8]


def test_an_item_answered_with_an_exception_fails_alone() -> None:
    def picky(items: Sequence[int]) -> list[Any]:
        return [KeyError(item) if item % 2 else 2 * item for item in items]

    with served(picky) as queue:
        zero, one, two = ask(queue, 0, 1, 2)
    assert (zero, two) == (0, 4)
    assert isinstance(one, KeyError)


def test_items_refused_before_the_device_do_not_make_batches_look_cheap() -> None:
    clock = Fake()

    def refuse(items: Sequence[int]) -> list[Any]:
        clock.now += 0.001
        return [ValueError()] * len(items)

    with served(refuse, clock=clock) as queue:
        queue.costs.observe(1, 1.0)
        ask(queue, 1)
        assert queue.costs.as_dict() == {1: 1.0}


class Small(Held):
    """Has no memory for more than so many items, and none for a 13; its clock moves a little a pass."""

    def __init__(self, most: int, clock: "Fake") -> None:
        super().__init__()
        self._most, self._clock = most, clock

    def __call__(self, items: Sequence[Any]) -> list[Any]:
        answers = super().__call__(items)
        self._clock.now += 0.001
        if len(items) > self._most or 13 in items:
            raise MemoryError
        return answers

    def hold(self, most: int) -> None:
        """From here on, with less memory."""
        self._most = most
        self._entered = threading.Semaphore(0)
        self.gate.clear()


def test_a_batch_too_large_for_the_memory_is_halved_until_it_fits() -> None:
    clock = Fake()
    small = Small(2, clock)

    async def go() -> list[Any]:
        put(queue, 0)
        small.wait_for_batch()
        waiting = put(queue, 1, 2, 3, 4, 5, 6, 7, 8)
        small.gate.set()
        return await ended(waiting)

    with served(small, buckets=(1, 8), clock=clock) as queue:
        assert asyncio.run(go()) == [2, 4, 6, 8, 10, 12, 14, 16]
    assert list(map(len, small.batches)) == [1, 8, 4, 2, 2, 4, 2, 2]


@pytest.mark.parametrize(("waiting", "buckets"), [(8, (1, 2)), (7, (1, 2)), (3, (1, 2)), (2, (1, 2, 4, 8))])
def test_the_first_use_of_a_size_without_memory_keeps_batches_smaller(waiting: int, buckets: tuple[int, ...]) -> None:
    small = Small(2, Fake())

    async def go() -> list[Any]:
        put(queue, 0)
        small.wait_for_batch()
        jobs = put(queue, *range(waiting))
        small.gate.set()
        return await ended(jobs)

    with served(small, buckets=(1, 2, 4, 8)) as queue:
        assert asyncio.run(go()) == [2 * item for item in range(waiting)]
        assert queue.costs.buckets == buckets


def test_a_size_that_has_run_before_stays_though_the_memory_is_short_and_costs_more() -> None:
    clock = Fake()
    small = Small(8, clock)

    async def go() -> list[Any]:
        put(queue, 0)
        small.wait_for_batch()
        waiting = put(queue, *range(8))
        small.gate.set()
        return await ended(waiting)

    with warm(small, buckets=(8,), clock=clock) as queue:
        assert queue.costs.as_dict() == {8: pytest.approx(0.001)}
        small.hold(most=4)
        assert asyncio.run(go()) == [2 * item for item in range(8)]
        assert queue.costs.buckets == (8,)
        assert queue.costs.seconds(8) > 0.001


def test_an_item_without_memory_may_come_again_and_the_others_are_answered() -> None:
    clock = Fake()
    small = Small(8, clock)

    async def go() -> list[Any]:
        put(queue, 0)
        small.wait_for_batch()
        waiting = put(queue, 1, 13, 3, 4)
        small.gate.set()
        return await ended(waiting)

    with served(small, clock=clock) as queue:
        one, without, three, four = asyncio.run(go())
    assert [one, three, four] == [2, 6, 8]
    assert isinstance(without, Overloaded)
    assert without.retry_after_s == 1


def test_buckets_without_memory_are_found_by_the_warm_up_and_left_out() -> None:
    clock = Fake()
    small = Small(2, clock)
    small.gate.set()
    queue = BatchQueue([numbers(small), numbers(small)], CostCurve((1, 2, 4, 8)), clock=clock)
    queue.start(lambda size: [job_without_caller(1)] * size)
    try:
        assert queue.costs.buckets == (1, 2)
        assert queue.costs.ceiling == 2
        assert ask(queue, 1, 2, 3) == [2, 4, 6]
        assert list(map(len, small.batches[-2:])) == [2, 1]
    finally:
        queue.close()


def test_no_memory_for_one_item_fails_the_start() -> None:
    small = Small(0, Fake())
    small.gate.set()
    with pytest.raises(MemoryError):
        BatchQueue([numbers(small)], CostCurve(BUCKETS)).start(lambda size: [job_without_caller(13)] * size)


def test_what_is_abandoned_is_answered_and_close_waits_for_no_stream_that_hangs() -> None:
    held, before = Held(), streams()
    queue = BatchQueue([numbers(held)], CostCurve(BUCKETS), clock=Fake())
    queue.start()
    [stream] = set(streams()) - set(before)

    async def go() -> list[Any]:
        jobs = put(queue, 0)
        await asyncio.to_thread(held.wait_for_batch)
        jobs += put(queue, 1, 2)
        queue.abandon(NotReady("hangs"))
        answers = await ended(jobs)
        with pytest.raises(NotReady, match="hangs"):
            put(queue, 3)
        return answers

    assert [str(answer) for answer in asyncio.run(go())] == ["hangs"] * 3
    queue.close()
    assert stream.is_alive()
    held.gate.set()
    stream.join(30)


def test_a_lost_device_runs_nothing_more_and_everyone_is_answered() -> None:
    lost = DeviceLost("lost")
    fussy, before = Fussy(lost), streams()
    waiting: list[Numbered] = []
    reported: list[tuple[DeviceLost, bool]] = []

    def report(error: DeviceLost) -> None:
        reported.append((error, any(one.gone for one in waiting)))

    async def go() -> list[Any]:
        first = put(queue, 0)
        await asyncio.to_thread(fussy.wait_for_batch)
        waiting.extend(put(queue, 1, 13, 3, 4))
        fussy.gate.set()
        answers = await ended(first + waiting)
        with pytest.raises(DeviceLost):
            put(queue, 5)
        return answers

    with served(fussy, buckets=(1, 2, 3), lost=report) as queue:
        first, *others = asyncio.run(go())
    for stream in set(streams()) - set(before):
        stream.join(30)
    assert (first, others) == (0, [lost] * 4)
    assert reported == [(lost, False)]
    assert fussy.batches == [[0], [1, 13, 3]]


@pytest.mark.parametrize("late", [None, DeviceLost("lost too")], ids=["returns", "fails"])
def test_a_batch_that_runs_while_another_stream_loses_the_device_is_answered_at_once(late: DeviceLost | None) -> None:
    held, lost = Held(), DeviceLost("lost")
    before = streams()

    def device(items: Sequence[int]) -> list[int]:
        if 13 in items:
            raise lost
        answers = held(items)
        if late:
            raise late
        return answers

    async def go() -> None:
        jobs = put(queue, 0)
        await asyncio.to_thread(held.wait_for_batch)
        jobs += put(queue, 13)
        assert await ended(jobs) == [lost, lost]
        held.gate.set()
        for stream in set(streams()) - set(before):
            await asyncio.to_thread(stream.join, 30)
        await asyncio.sleep(0)  # the late outcome, which nobody waits for any more
        assert [one.future.result() for one in jobs] == jobs

    with served(device, device) as queue:
        asyncio.run(go())


def test_a_first_pass_counts_as_running_from_its_predicted_end_on() -> None:
    held, clock = Held(), Fake()

    async def go() -> None:
        jobs = put(queue, 0)
        await asyncio.to_thread(held.wait_for_batch)
        clock.now = 5.0
        assert queue.running_s() == 0.0
        clock.now = 7.0
        assert queue.running_s() == 1.0
        held.gate.set()
        await ended(jobs)

    with served(held, clock=clock) as queue:
        queue.costs.observe(1, 6.0)
        asyncio.run(go())


def test_the_longest_running_batch_is_told() -> None:
    held, clock = Held(), Fake()

    async def go() -> None:
        jobs = put(queue, 0)
        await asyncio.to_thread(held.wait_for_batch)
        clock.now = 3.0
        assert queue.running_s() == 3.0
        held.gate.set()
        await ended(jobs)

    with served(held, clock=clock) as queue:
        assert queue.running_s() == 0.0
        asyncio.run(go())


def test_changes_are_reported_when_a_batch_is_taken_and_once_the_queue_is_idle_again() -> None:
    idle: list[bool] = []
    with served(doubled, changed=lambda: idle.append(queue.outlook().idle)) as queue:
        assert ask(queue, 1) == [2]
    assert idle == [False, True]


def test_batches_are_observed_but_warm_ups_are_not() -> None:
    clock, observed = Fake(), list[tuple[float, int]]()
    timed = Timed(clock, 2.0)
    queue = BatchQueue([numbers(timed)], CostCurve((1,)), clock=clock, observe=lambda *one: observed.append(one))
    queue.start(lambda size: [job_without_caller(0)] * size)
    try:
        ask(queue, 1)
    finally:
        queue.close()
    assert observed == [(2.0, 1)]


def test_a_job_that_is_prepared_elsewhere_comes_back() -> None:
    def prepare(job: Job, put: Callable[[Job], None]) -> bool:
        here = job.image == b"prepared"
        if not here:
            job.image = b"prepared"
            elsewhere.submit(put, job)
        return here

    with ThreadPoolExecutor(1) as elsewhere, served(doubled, prepare=prepare) as queue:
        assert ask(queue, 1, 2, 3) == [2, 4, 6]


def test_an_item_whose_preparation_fails_is_answered_and_the_others_run() -> None:
    def prepare(job: Job, put: Callable[[Job], None]) -> bool:
        if job.number == 2:  # type: ignore[attr-defined]
            raise NotReady("not this one")
        return True

    with served(doubled, prepare=prepare) as queue:
        answers = ask(queue, 1, 2, 3)
        assert (answers[0], type(answers[1]), answers[2]) == (2, NotReady, 6)
        assert ask(queue, 2)[0].detail == "not this one"
        assert queue.running_s() == 0
        assert ask(queue, 4) == [8]


def test_close_finishes_what_waits_and_refuses_what_comes() -> None:
    held = Held()

    def wait_closed() -> bool:
        with queue._wakeup:
            return queue._wakeup.wait_for(lambda: queue._closed, 60)

    async def go() -> list[Any]:
        waiting = put(queue, 0)
        held.wait_for_batch()
        waiting += put(queue, 1, 2)
        closing = asyncio.create_task(asyncio.to_thread(queue.close))
        assert await asyncio.to_thread(wait_closed)
        with pytest.raises(NotReady):
            put(queue, 3)
        held.gate.set()
        await closing
        return await ended(waiting)

    with served(held) as queue:
        assert asyncio.run(go()) == [0, 2, 4]


def test_warm_up_runs_every_bucket_on_the_thread_of_every_stream_before_start_returns() -> None:
    ran: dict[str, list[int]] = {}

    def run(items: Sequence[int]) -> list[int]:
        ran.setdefault(threading.current_thread().name, []).append(len(items))
        return doubled(items)

    queue = BatchQueue([numbers(run), numbers(run)], CostCurve(BUCKETS))
    queue.start(lambda size: [job_without_caller(0)] * size)
    assert ran == {f"topk-stream-{i}": [1, 1, 2, 2, 4, 4] for i in (0, 1)}
    assert list(queue.costs.as_dict()) == [1, 2, 4]
    queue.close()


def test_the_streams_run_first_one_after_another_and_then_together() -> None:
    running, both = threading.Semaphore(1), threading.Barrier(2, timeout=30)
    passes = dict[str, int]()

    def run(items: Sequence[int]) -> list[int]:
        name = threading.current_thread().name
        passes[name] = passes.get(name, 0) + 1
        if passes[name] == 1:
            assert running.acquire(blocking=False)
            running.release()
        else:
            both.wait()
        return doubled(items)

    with warm(run, run, buckets=(1,)):
        assert passes == {"topk-stream-0": 2, "topk-stream-1": 2}


def timed(clock: Fake, *seconds: float) -> Callable[[Sequence[int]], list[int]]:
    """Takes so long in turn."""
    left = iter(seconds)

    def run(items: Sequence[int]) -> list[int]:
        clock.now += next(left)
        return doubled(items)

    return run


def test_the_first_pass_of_the_warm_up_is_not_measured() -> None:
    clock = Fake()
    with warm(timed(clock, 0.1, 0.01, 0.1, 0.015), buckets=(1, 2), clock=clock) as queue:
        assert queue.costs.as_dict() == pytest.approx({1: 0.01, 2: 0.015}, rel=0.01)


def test_sizes_that_would_take_longer_than_half_a_second_are_not_warmed_up_and_extrapolated() -> None:
    clock = Fake()
    with warm(timed(clock, 0.1, 0.1, 0.05, 0.05), buckets=(1, 2, 4), clock=clock) as queue:
        assert queue.costs.as_dict() == {1: pytest.approx(0.1)}
        assert queue.costs.seconds(4) == pytest.approx(0.4)


def test_the_warm_up_of_an_engine_that_pads_runs_all_sizes() -> None:
    clock = Fake()
    with warm(timed(clock, 9, 1, 9, 1.5, 9, 2), buckets=(1, 2, 4), pads=True, clock=clock) as queue:
        assert queue.costs.as_dict() == pytest.approx({1: 1.0, 2: 1.5, 4: 2.0}, rel=0.01)


def together(held: Held, queue: BatchQueue, *items: int) -> None:
    """Run one batch of all items, behind a first one."""

    async def go() -> list[Any]:
        held.gate.clear()
        first = put(queue, 0)
        await asyncio.to_thread(held.wait_for_batch)
        rest = put(queue, *items)
        held.gate.set()
        return await ended(first + rest)

    asyncio.run(go())
    held.wait_for_batch()
    assert held.batches[-1] == list(items)


def test_the_first_pass_of_a_size_is_not_measured_in_traffic_either() -> None:
    held = Held()
    with served(held) as queue:
        together(held, queue, 1, 2)
        assert queue.costs.as_dict() == {}
        together(held, queue, 1, 2)
        assert list(queue.costs.as_dict()) == [1, 2]


@pytest.mark.parametrize(("pads", "measured"), [(False, [1]), (True, [1, 4])])
def test_a_batch_costs_what_its_bucket_costs_only_if_the_engine_pads(pads: bool, measured: list[int]) -> None:
    held = Held()
    queue = BatchQueue([numbers(held)], CostCurve(BUCKETS, pads), clock=Fake())
    queue.start()
    try:
        together(held, queue, 1, 2, 3)
        together(held, queue, 1, 2, 3)
        assert list(queue.costs.as_dict()) == measured
    finally:
        queue.close()


def test_a_warm_up_that_fails_fails_the_start() -> None:
    def run(items: Sequence[int]) -> list[int]:
        if threading.current_thread().name == "topk-stream-1":
            raise MemoryError("too little memory")
        return doubled(items)

    queue = BatchQueue([numbers(run), numbers(run)], CostCurve(BUCKETS))
    with pytest.raises(MemoryError, match="too little"):
        queue.start(lambda size: [job_without_caller(0)] * size)


def test_the_warm_up_measures_an_item_alone_apart_from_the_batches() -> None:
    clock = Fake()
    alone = Timed(clock, 5.0)
    queue = BatchQueue([numbers(doubled)], CostCurve((1, 2)), run_alone=numbers(alone), clock=clock)
    queue.start(lambda size: [job_without_caller(0)] * size)
    assert alone.batches == [[0], [0]]
    assert queue.costs_alone.as_dict() == {1: 5.0}
    assert queue.costs.as_dict() == {1: 0.0, 2: 0.0}
    queue.close()


def test_a_warm_up_of_an_item_alone_that_fails_fails_the_start() -> None:
    alone = Fussy(MemoryError("too little memory"))
    alone.gate.set()
    queue = BatchQueue([numbers(doubled)], CostCurve(BUCKETS), run_alone=numbers(alone))
    with pytest.raises(MemoryError, match="too little"):
        queue.start(lambda size: [job_without_caller(13)] * size)


def test_an_item_that_has_the_device_to_itself_is_run_alone() -> None:
    clock = Fake()
    alone = Timed(clock, 5.0)
    with served(doubled, doubled, run_alone=alone, clock=clock) as queue:
        assert [ask(queue, 4), ask(queue, 5)] == [[8], [10]]
        assert queue.costs_alone.as_dict() == {1: 5.0}
        assert queue.costs.as_dict() == {}
    assert alone.batches == [[4], [5]]


def test_items_that_wait_together_are_not_run_alone() -> None:
    held, alone = Held(), Held()

    async def go() -> list[Any]:
        alone.gate.clear()
        first = put(queue, 0)
        alone.wait_for_batch()
        pair = put(queue, 1, 2)
        alone.gate.set()
        held.gate.set()
        return await ended(first + pair)

    with served(held, run_alone=alone) as queue:
        assert [asyncio.run(go()), asyncio.run(go())] == [[0, 2, 4]] * 2
        assert list(queue.costs.as_dict()) == [2]
    assert (alone.batches, held.batches) == ([[0]] * 2, [[1, 2]] * 2)


def test_an_item_beside_a_running_batch_is_not_run_alone() -> None:
    held, alone = Held(), Held()

    async def go() -> list[Any]:
        first = put(queue, 0)
        alone.wait_for_batch()
        second = put(queue, 1)
        held.wait_for_batch()
        held.gate.set()
        alone.gate.set()
        return await ended(first + second)

    with served(held, held, run_alone=alone) as queue:
        assert asyncio.run(go()) == [0, 2]
    assert (alone.batches, held.batches) == ([[0]], [[1]])


def test_an_item_alone_that_fails_is_a_defect_and_the_stream_survives() -> None:
    alone = Fussy(ValueError("secret"))
    alone.gate.set()
    with served(doubled, run_alone=alone) as queue:
        [error] = ask(queue, 13)
        assert isinstance(error, Internal)
        assert ask(queue, 4) == [8]
    assert alone.batches == [[13], [4]]


def test_admission_and_wait_follow_the_queue() -> None:
    held, clock = Held(), Fake()

    async def go() -> None:
        put(queue, 0)
        held.wait_for_batch()
        assert queue.predicted_wait() == 0.1
        queue.admit(1, deadline=0.3)
        with pytest.raises(Overloaded) as refused:
            queue.admit(1, deadline=0.15)
        assert refused.value.retry_after_s is not None
        assert refused.value.retry_after_s >= 0.05
        [waiting] = put(queue, 1)
        assert len(queue) == 1
        held.gate.set()
        await waiting.future
        assert (len(queue), queue.predicted_wait()) == (0, 0.0)

    with served(held, clock=clock) as queue:
        queue.costs.observe(1, 0.1)
        asyncio.run(go())


def test_several_threads_and_event_loops_share_a_queue() -> None:
    with served(doubled, doubled) as queue, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: ask(queue, *range(i, i + 25)), range(8)))
    assert answers == [[2 * n for n in range(i, i + 25)] for i in range(8)]


def test_one_batch_may_serve_several_event_loops() -> None:
    held, all_put = Held(), threading.Barrier(3, timeout=30)

    async def put_and_tell(item: int) -> list[Any]:
        jobs = put(queue, item)
        all_put.wait()
        return await ended(jobs)

    with served(held) as queue, ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask, queue, 0)
        held.wait_for_batch()
        others = [pool.submit(asyncio.run, put_and_tell(item)) for item in (1, 2)]
        all_put.wait()
        held.gate.set()
        assert [future.result() for future in (first, *others)] == [[0], [2], [4]]
    assert sorted(held.batches[1]) == [1, 2]


def test_a_closed_event_loop_kills_no_stream() -> None:
    held = Held()

    async def leave() -> None:
        put(queue, 0)
        held.wait_for_batch()

    with served(held) as queue:
        asyncio.run(leave())
        held.gate.set()
        assert ask(queue, 1) == [2]


def test_a_job_that_was_never_put_can_be_settled_from_any_thread() -> None:
    async def go() -> list[Any]:
        one = job(0)
        await asyncio.to_thread(fail, [one], KeyError("not put"))
        return await ended([one])

    assert isinstance(asyncio.run(go())[0], KeyError)


def test_the_outlook_shows_the_patience_of_those_who_hang_up() -> None:
    clock = Fake()
    with served(doubled, clock=clock) as queue:
        assert queue.outlook().patience == math.inf
        clock.now = 3.0
        for caller in range(50):
            queue.forget(Job(b"", Want(), math.inf, received_at=1.0, caller=caller))
        clock.now = 3.2
        assert 1.8 < queue.outlook().patience <= 2.0


@pytest.mark.parametrize("leave", [False, True], ids=["stay", "leave"])
def test_only_clients_that_are_still_there_count_as_answered(leave: bool) -> None:
    """The hang-ups of a caller count as far as there are answers to it."""
    clock, caller = Fake(), 7
    jobs: list[Numbered] = []

    async def hang_up() -> None:
        for one in jobs:
            one.future.cancel()

    def run(items: Sequence[int]) -> list[int]:
        if leave and caller in items:
            assert jobs[0].completion
            asyncio.run_coroutine_threadsafe(hang_up(), jobs[0].completion.loop).result(30)
        return doubled(items)

    async def go() -> None:
        clock.now = 3.0
        jobs.extend(job(caller, received_at=2.0, caller=caller) for _ in range(40))
        others = [job(0, received_at=1.0, caller=number) for number in range(100, 200)]
        for one in [*jobs, *others]:
            queue.put(one)
        await ended(others)
        for _ in jobs:
            queue.forget(Job(b"", Want(), math.inf, received_at=2.0, caller=caller))
        clock.now = 4.0
        assert (queue.outlook().patience < math.inf) == (not leave)

    with served(run, clock=clock) as queue:
        asyncio.run(go())
