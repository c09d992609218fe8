"""The queue's policy with the time passed in, then its threads, held still by events."""

import asyncio
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from app.batching import Backlog, BatchQueue, CostCurve, Done, Entry
from app.errors import DeadlineExceeded, Internal, NotReady, Overloaded

BUCKETS = (1, 2, 4)


def measured(seconds: dict[int, float]) -> CostCurve:
    costs = CostCurve(seconds)
    for bucket, cost in seconds.items():
        costs.observe(bucket, cost)
    return costs


# --- the cost curve ---


def test_a_batch_costs_what_the_smallest_bucket_that_holds_it_costs() -> None:
    costs = measured({1: 1.0, 2: 1.5, 4: 2.0})
    assert [costs.bucket(n) for n in (1, 2, 3, 4, 9)] == [1, 2, 4, 4, 4]
    assert [costs.seconds(n) for n in (1, 2, 3, 4)] == [1.0, 1.5, 2.0, 2.0]


def test_an_unmeasured_bucket_costs_in_proportion_to_the_nearest() -> None:
    costs = CostCurve(BUCKETS)
    assert costs.seconds(4) == 0.0
    costs.observe(2, 3.0)
    assert (costs.seconds(1), costs.seconds(4)) == (1.5, 6.0)


def test_a_measurement_moves_the_average_by_a_fifth() -> None:
    costs = measured({1: 1.0})
    costs.observe(1, 2.0)
    assert costs.seconds(1) == pytest.approx(1.2)
    costs.observe(1, 2.0)
    assert costs.as_dict() == {1: pytest.approx(1.36)}


@pytest.mark.parametrize(("four", "ceiling"), [(0.305, 4), (0.315, 2)])
def test_the_ceiling_is_the_largest_bucket_within_3_percent_of_the_best(four: float, ceiling: int) -> None:
    assert measured({1: 0.1, 2: 0.15, 4: four, 8: 0.8}).ceiling == ceiling


def test_a_bucket_that_is_not_measured_yet_may_be_the_ceiling() -> None:
    costs = CostCurve(BUCKETS)
    assert costs.ceiling == 4
    costs.observe(1, 0.1)
    assert costs.ceiling == 4


@pytest.mark.parametrize(("factor", "ceiling"), [(1, 4), (2, 2), (3, 1), (20, 1)])
def test_two_batches_of_the_ceiling_fit_into_a_second(factor: float, ceiling: int) -> None:
    assert measured({1: 0.1 * factor, 2: 0.2 * factor, 4: 0.4 * factor}).ceiling == ceiling


def test_what_takes_no_longer_than_a_single_item_may_be_the_ceiling() -> None:
    assert measured({1: 5.0, 2: 5.0, 4: 5.1}).ceiling == 2


def test_an_outlier_counts_as_twice_the_average_at_most() -> None:
    costs = measured({1: 0.1})
    costs.observe(1, 25.0)
    assert costs.seconds(1) == pytest.approx(0.12)


def test_one_hiccup_does_not_lower_the_ceiling_for_good() -> None:
    costs = measured({1: 0.1, 2: 0.12, 4: 0.2})
    for _ in range(3):
        costs.observe(4, 2.0)
    assert costs.ceiling == 2
    for _ in range(2000):
        costs.observe(2, 0.12)
    assert costs.ceiling == 4
    assert costs.seconds(4) >= 4 / (2 / 0.12)


# --- the backlog ---


@pytest.fixture
def entry() -> Iterator[Callable[..., Entry]]:
    loop = asyncio.new_event_loop()
    yield lambda item=0, deadline=math.inf: Entry(item, deadline, loop.create_future())
    loop.close()


MakeEntry = Callable[..., Entry]
SECOND_A_BATCH = {1: 1.0, 2: 1.0, 4: 1.0}
TENTH_A_BATCH = {1: 0.1, 2: 0.1, 4: 0.1}


def fill(backlog: Backlog, entries: Sequence[Entry], now: float = 0.0) -> None:
    for one in entries:
        backlog.put(one, now)


def taken(backlog: Backlog, now: float = 0.0, stream: int = 0) -> list[Any]:
    batch, _ = backlog.take(now, stream)
    return [one.item for one in batch]


def test_nothing_waits_while_a_stream_is_free(entry: MakeEntry) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=2)
    assert backlog.predicted_wait(0.0) == 0.0
    fill(backlog, [entry()])
    taken(backlog)
    assert backlog.predicted_wait(0.0) == 0.0


def test_the_predicted_wait_ends_when_a_stream_comes_to_the_batch_that_will_hold_the_item(entry: MakeEntry) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=2)
    for stream, now in enumerate((0.0, 0.5)):
        fill(backlog, [entry()])
        taken(backlog, now, stream)
    waits = []
    for _ in range(3):
        waits.append(backlog.predicted_wait(0.75))
        fill(backlog, [entry() for _ in range(4)])
    assert waits == [0.25, 0.75, 1.25]


def test_a_batch_that_overruns_its_prediction_counts_as_about_to_end(entry: MakeEntry) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=1)
    fill(backlog, [entry()])
    taken(backlog)
    assert backlog.predicted_wait(7.0) == 0.0


def test_a_finished_stream_is_free_again(entry: MakeEntry) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=1)
    fill(backlog, [entry()])
    taken(backlog)
    assert backlog.predicted_wait(0.0) == 1.0
    backlog.finished(0)
    assert backlog.predicted_wait(0.0) == 0.0


def test_what_is_prepared_ahead_of_the_queue_counts_as_wait() -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=1, ahead_s=lambda: 3.0)
    assert backlog.predicted_wait(0.0) == 3.0
    with pytest.raises(Overloaded) as refused:
        backlog.check(0.0, 1, deadline=3.5)
    assert refused.value.retry_after_s == pytest.approx(0.5)


def test_admission_refuses_by_how_much_the_answer_would_be_late(entry: MakeEntry) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    fill(backlog, [entry()])
    taken(backlog)
    backlog.check(0.025, 1, deadline=0.2)
    with pytest.raises(Overloaded) as refused:
        backlog.check(0.025, 1, deadline=0.15)
    assert refused.value.retry_after_s == pytest.approx(0.05)


@pytest.mark.parametrize(("n", "streams", "needed"), [(1, 1, 1.0), (4, 1, 1.0), (5, 1, 2.0), (8, 2, 1.0), (16, 2, 2.0)])
def test_admission_counts_the_batches_that_were_asked_for(n: int, streams: int, needed: float) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams, ahead_s=lambda: 1e-9)  # not idle
    backlog.check(0.0, n, deadline=needed + 1e-9)
    with pytest.raises(Overloaded):
        backlog.check(0.0, n, deadline=needed - 0.01)


def test_an_idle_device_admits_whatever_was_measured(entry: MakeEntry) -> None:
    costs = measured({1: 0.1})
    for _ in range(100):
        costs.observe(1, 25.0)
    assert costs.seconds(1) > 20
    backlog = Backlog(costs, streams=2)
    backlog.check(0.0, 1, deadline=1.0)
    backlog.check(0.0, 32, deadline=1.0)
    with pytest.raises(Overloaded):
        backlog.check(0.0, 1, deadline=0.09)  # not even at its best
    fill(backlog, [entry()])
    taken(backlog)
    with pytest.raises(Overloaded):
        backlog.check(0.0, 1, deadline=1.0)
    backlog.finished(0)
    backlog.check(0.1, 1, deadline=1.1)


def test_a_device_that_was_never_fast_is_tried_again_after_a_while() -> None:
    backlog = Backlog(measured({1: 1.5}), streams=1)  # warmed up while the machine was busy
    for now in (0.0, 1.0, 4.0):
        with pytest.raises(Overloaded):
            backlog.check(now, 1, deadline=now + 1.0)
    backlog.check(10.0, 1, deadline=11.0)


def test_preparation_counts_as_wait_and_outliers_are_damped(entry: MakeEntry) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    for _ in range(200):
        backlog.prepared(0.01)
    assert backlog.prepare_s == pytest.approx(0.01, rel=0.01)
    fill(backlog, [entry() for _ in range(4)])
    taken(backlog)
    assert backlog.predicted_wait(0.0) == pytest.approx(0.1 + 4 * 0.01, rel=0.01)
    backlog.prepared(25.0)
    assert backlog.prepare_s < 0.013


def burst(backlog: Backlog, now: float, entries: Sequence[Entry]) -> None:
    """All of them admitted and put at once, to an idle device."""
    for one in entries:
        backlog.check(now, 1, math.inf)
        backlog.put(one, now)
        if backlog.predicted_wait(now) == 0:
            taken(backlog, now)


def drain(backlog: Backlog, now: float) -> None:
    while len(backlog):
        backlog.finished(0)
        taken(backlog, now)
    backlog.finished(0)


def test_a_burst_is_admitted_and_an_excess_is_refused(entry: MakeEntry) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    burst(backlog, 0.0, [entry() for _ in range(60)])
    backlog.check(0.1, 1, math.inf)
    with pytest.raises(Overloaded) as refused:
        backlog.check(0.11, 1, math.inf)
    assert refused.value.retry_after_s == pytest.approx(backlog.predicted_wait(0.11) - 0.85)


def test_what_does_not_come_to_an_idle_device_is_no_burst(entry: MakeEntry) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    burst(backlog, 0.0, [entry()])
    fill(backlog, [entry() for _ in range(32)], 1.0)
    backlog.check(1.0, 1, math.inf)
    fill(backlog, [entry() for _ in range(4)], 1.0)
    with pytest.raises(Overloaded):
        backlog.check(1.0, 1, math.inf)


def test_a_burst_ends_at_its_deadline(entry: MakeEntry) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    burst(backlog, 0.0, [entry() for _ in range(60)])
    with pytest.raises(Overloaded):
        backlog.check(0.0, 1, deadline=1.5)


def refused(backlog: Backlog, now: float, waiting: Sequence[Entry]) -> bool:
    """Whether one more than these would be refused."""
    fill(backlog, waiting, now)
    try:
        backlog.check(now, 1, math.inf)
    except Overloaded:
        return True
    finally:
        drain(backlog, now)
    return False


def test_a_queue_that_was_too_long_is_kept_shorter_for_a_second(entry: MakeEntry) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    eight_batches, six_batches = [entry() for _ in range(32)], [entry() for _ in range(24)]
    assert not refused(backlog, 0.0, eight_batches)
    assert refused(backlog, 1.0, [entry() for _ in range(40)])
    assert refused(backlog, 1.5, eight_batches)
    assert not refused(backlog, 2.4, six_batches)
    assert not refused(backlog, 2.6, eight_batches)


def test_who_need_not_wait_needs_no_margin(entry: MakeEntry) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=2)
    fill(backlog, [entry()])
    taken(backlog)
    with pytest.raises(Overloaded):
        backlog.check(0.0, 1, deadline=0.05)
    backlog.check(0.0, 1, deadline=0.15)


def test_a_second_burst_after_a_drained_one_is_a_burst(entry: MakeEntry) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    for now in (10.0, 20.0):
        burst(backlog, now, [entry() for _ in range(60)])
        drain(backlog, now)


def test_the_wait_that_is_tolerated_leaves_time_for_a_batch_within_a_second() -> None:
    assert Backlog(measured(TENTH_A_BATCH), streams=1).target_s == pytest.approx(0.85)
    assert Backlog(measured(SECOND_A_BATCH), streams=1).target_s == 0.5


def test_what_expired_or_is_gone_never_comes_out(entry: MakeEntry) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=1)
    late, left, good = entry("late", deadline=5.0), entry("left"), entry("good")
    fill(backlog, [late, left, good])
    left.future.cancel()
    assert backlog.take(5.0, 0) == ([good], [late])
    assert len(backlog) == 0


def test_nothing_but_what_is_gone_is_no_batch(entry: MakeEntry) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=1)
    left = entry()
    fill(backlog, [left])
    left.future.cancel()
    assert backlog.take(0.0, 0) == ([], [])
    assert backlog.predicted_wait(0.0) == 0.0


def test_batches_come_in_the_order_of_arrival(entry: MakeEntry) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=1)
    fill(backlog, [entry(i) for i in range(6)])
    assert [taken(backlog), taken(backlog), taken(backlog)] == [[0, 1, 2, 3], [4, 5], []]


def test_what_would_miss_its_deadline_overtakes_but_never_the_head(entry: MakeEntry) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=1)
    fill(backlog, [entry(i) for i in range(4)] + [entry(f"urgent {i}", deadline=1.5) for i in range(5)])
    assert taken(backlog) == [0, "urgent 0", "urgent 1", "urgent 2"]
    assert taken(backlog) == [1, "urgent 3", "urgent 4", 2]


def test_the_urgent_overtake_only_those_that_can_wait(entry: MakeEntry) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=1)
    fill(backlog, [entry(i, deadline=1.5) for i in range(6)])
    assert taken(backlog) == [0, 1, 2, 3]


def test_a_deadline_that_one_more_batch_keeps_does_not_overtake(entry: MakeEntry) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=1)
    fill(backlog, [entry(i) for i in range(4)] + [entry("in time", deadline=2.0)])
    assert taken(backlog) == [0, 1, 2, 3]


@pytest.mark.parametrize(("four", "size"), [(0.16, 3), (0.29, 3), (0.31, 2), (0.399, 2)])
def test_three_are_padded_to_four_only_where_that_beats_two(entry: MakeEntry, four: float, size: int) -> None:
    backlog = Backlog(measured({1: 0.19, 2: 0.2, 4: four}), streams=1)
    fill(backlog, [entry(i) for i in range(3)])
    assert taken(backlog) == list(range(size))


def test_one_batch_runs_while_nothing_waits_and_no_other_runs(entry: MakeEntry) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=2)
    fill(backlog, [entry()])
    assert not backlog.one_running
    taken(backlog, 0.0, 0)
    assert backlog.one_running
    fill(backlog, [entry()])
    assert not backlog.one_running
    taken(backlog, 0.0, 1)
    assert not backlog.one_running
    backlog.finished(0)
    assert backlog.one_running


def test_free_streams_share_what_waits(entry: MakeEntry) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=3)
    fill(backlog, [entry(i) for i in range(6)])
    assert [taken(backlog, 0.0, stream) for stream in range(3)] == [[0, 1], [2, 3], [4, 5]]


# --- the queue and its threads ---


class Fake:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def served(*runs: Any, buckets: Sequence[int] = BUCKETS, **options: Any) -> Iterator[BatchQueue]:
    queue = BatchQueue(runs, CostCurve(buckets), **{"clock": Fake(), **options})
    queue.start()
    try:
        yield queue
    finally:
        queue.close()


def put(queue: BatchQueue, *items: Any) -> list[Entry]:
    entries = [queue.entry(item, math.inf) for item in items]
    for one in entries:
        queue.put(one)
    return entries


async def ended(entries: Sequence[Entry]) -> list[Any]:
    """Each entry's answer or exception."""
    done = await asyncio.gather(*(one.future for one in entries), return_exceptions=True)
    return [one.answer if isinstance(one, Done) else one for one in done]


def ask(queue: BatchQueue, *items: Any) -> list[Any]:
    async def asked() -> list[Any]:
        return await ended(put(queue, *items))

    return asyncio.run(asked())


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


def test_two_streams_run_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=30)

    def meet(items: Sequence[int]) -> list[int]:
        both.wait()
        return doubled(items)

    with served(meet, meet) as queue:
        assert ask(queue, 1, 2) == [2, 4]


def test_an_answer_tells_its_wait_and_its_batch() -> None:
    held, clock = Held(), Fake()

    async def go() -> Done:
        put(queue, 0)
        held.wait_for_batch()
        second, _ = put(queue, 1, 2)
        clock.now = 0.1
        held.gate.set()
        return await second.future

    with served(held, clock=clock) as queue:
        assert asyncio.run(go()) == Done(2, started=0.1, queue_s=0.1, batch_size=2)


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
        late = [queue.entry(item, 1.0) for item in (1, 2)]
        for one in late:
            queue.put(one)
        clock.now = 1.0
        held.gate.set()
        return await ended(late)

    with served(held, clock=clock) as queue:
        one, other = asyncio.run(go())
    assert isinstance(one, DeadlineExceeded)
    assert isinstance(other, DeadlineExceeded)
    assert one is not other  # a raised exception carries its traceback: two tasks must not share one
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


def test_a_batch_too_large_for_the_memory_is_halved_until_it_fits() -> None:
    clock = Fake()
    small = Small(2, clock)

    async def go() -> list[Any]:
        put(queue, 0)
        small.wait_for_batch()
        waiting = put(queue, 1, 2, 3, 4, 5, 6, 7, 8)
        small.gate.set()
        return await ended(waiting)

    with served(small, buckets=(1, 2, 4, 8), clock=clock) as queue:
        assert asyncio.run(go()) == [2, 4, 6, 8, 10, 12, 14, 16]
        assert queue.costs.as_dict() == pytest.approx({1: 0.001, 8: 0.007})
    assert list(map(len, small.batches)) == [1, 8, 4, 2, 2, 4, 2, 2]


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
    queue = BatchQueue([small, small], CostCurve((1, 2, 4, 8)), clock=clock)
    queue.start(lambda size: [1] * size)
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
        BatchQueue([small], CostCurve(BUCKETS)).start(lambda size: [13] * size)


def test_what_is_abandoned_is_answered_and_close_waits_for_no_stream_that_hangs() -> None:
    held, before = Held(), streams()
    queue = BatchQueue([held], CostCurve(BUCKETS), clock=Fake())
    queue.start()
    [stream] = set(streams()) - set(before)

    async def go() -> list[Any]:
        entries = put(queue, 0)
        await asyncio.to_thread(held.wait_for_batch)
        entries += put(queue, 1, 2)
        queue.abandon(NotReady("hangs"))
        answers = await ended(entries)
        with pytest.raises(NotReady):
            put(queue, 3)
        return answers

    assert [str(answer) for answer in asyncio.run(go())] == ["hangs"] * 3
    queue.close()
    assert stream.is_alive()
    held.gate.set()
    stream.join(30)


def test_the_longest_running_batch_is_told() -> None:
    held, clock = Held(), Fake()

    async def go() -> None:
        entries = put(queue, 0)
        await asyncio.to_thread(held.wait_for_batch)
        clock.now = 3.0
        assert queue.running_s() == 3.0
        held.gate.set()
        await ended(entries)

    with served(held, clock=clock) as queue:
        assert queue.running_s() == 0.0
        asyncio.run(go())


def test_the_queue_is_idle_once_it_tells_that_a_batch_is_over() -> None:
    told: list[bool] = []
    with served(doubled, finished=lambda: told.append(queue.outlook().idle)) as queue:
        assert ask(queue, 1) == [2]
    assert told == [True]


def test_an_item_whose_preparation_fails_is_answered_and_the_others_run() -> None:
    def prepare(item: int) -> None:
        if item == 2:
            raise NotReady("not this one")

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

    queue = BatchQueue([run, run], CostCurve(BUCKETS))
    queue.start(lambda size: [0] * size)
    assert ran == {f"topk-stream-{i}": [1, 1, 2, 2, 4, 4] for i in (0, 1)}
    assert list(queue.costs.as_dict()) == [1, 2, 4]
    queue.close()


def test_the_first_pass_of_the_warm_up_is_not_measured() -> None:
    clock, seconds = Fake(), iter([100.0, 1.0, 100.0, 2.0])

    def run(items: Sequence[int]) -> list[int]:
        clock.now += next(seconds)
        return doubled(items)

    queue = BatchQueue([run], CostCurve((1, 2)), clock=clock)
    queue.start(lambda size: [0] * size)
    assert queue.costs.as_dict() == {1: 1.0, 2: 2.0}
    queue.close()


def test_a_warm_up_that_fails_fails_the_start() -> None:
    def run(items: Sequence[int]) -> list[int]:
        if threading.current_thread().name == "topk-stream-1":
            raise MemoryError("too little memory")
        return doubled(items)

    queue = BatchQueue([run, run], CostCurve(BUCKETS))
    with pytest.raises(MemoryError, match="too little"):
        queue.start(lambda size: [0] * size)


def test_the_warm_up_measures_an_item_alone_apart_from_the_batches() -> None:
    clock = Fake()
    alone = Timed(clock, 5.0)
    queue = BatchQueue([doubled], CostCurve((1, 2)), run_alone=alone, clock=clock)
    queue.start(lambda size: [0] * size)
    assert alone.batches == [[0], [0]]
    assert queue.costs_alone.as_dict() == {1: 5.0}
    assert queue.costs.as_dict() == {1: 0.0, 2: 0.0}
    queue.close()


def test_a_warm_up_of_an_item_alone_that_fails_fails_the_start() -> None:
    alone = Fussy(MemoryError("too little memory"))
    alone.gate.set()
    queue = BatchQueue([doubled], CostCurve(BUCKETS), run_alone=alone)
    with pytest.raises(MemoryError, match="too little"):
        queue.start(lambda size: [13] * size)


def test_an_item_that_has_the_device_to_itself_is_run_alone() -> None:
    clock = Fake()
    alone = Timed(clock, 5.0)
    with served(doubled, doubled, run_alone=alone, clock=clock) as queue:
        assert ask(queue, 4) == [8]
        assert queue.costs_alone.as_dict() == {1: 5.0}
        assert queue.costs.as_dict() == {}
    assert alone.batches == [[4]]


def test_items_that_wait_together_are_not_run_alone() -> None:
    held, alone = Held(), Held()

    async def go() -> list[Any]:
        first = put(queue, 0)
        alone.wait_for_batch()
        pair = put(queue, 1, 2)
        alone.gate.set()
        held.gate.set()
        return await ended(first + pair)

    with served(held, run_alone=alone) as queue:
        assert asyncio.run(go()) == [0, 2, 4]
        assert list(queue.costs.as_dict()) == [2]
    assert (alone.batches, held.batches) == ([[0]], [[1, 2]])


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
        queue.admit(1, deadline=0.2)
        with pytest.raises(Overloaded) as refused:
            queue.admit(1, deadline=0.15)
        assert refused.value.retry_after_s == pytest.approx(0.05)
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
        entries = put(queue, item)
        all_put.wait()
        return await ended(entries)

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


def test_an_entry_that_was_never_put_can_be_settled_from_any_thread() -> None:
    async def go() -> None:
        entry = queue.entry(0, math.inf)
        await asyncio.to_thread(queue.settle, entry, KeyError("not put"))
        with pytest.raises(KeyError):
            await entry.future

    with served(doubled) as queue:
        asyncio.run(go())
