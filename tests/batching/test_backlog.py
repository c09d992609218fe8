"""The policy of the queue, with the time passed in."""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from app.batching import Backlog
from app.errors import Overloaded
from tests.batching.jobs import Numbered, job, measured


@pytest.fixture
def make() -> Iterator[Callable[..., Numbered]]:
    loop = asyncio.new_event_loop()
    yield lambda number=0, deadline=math.inf: job(number, deadline, loop)
    loop.close()


Make = Callable[..., Numbered]
SECOND_A_BATCH = {1: 1.0, 2: 1.0, 4: 1.0}
TENTH_A_BATCH = {1: 0.1, 2: 0.1, 4: 0.1}


def fill(backlog: Backlog, jobs: Sequence[Numbered], now: float = 0.0) -> None:
    for one in jobs:
        backlog.put(one, now)


def taken(backlog: Backlog, now: float = 0.0, stream: int = 0) -> list[Any]:
    batch, _ = backlog.take(now, stream)
    return [one.number for one in batch]


def test_nothing_waits_while_a_stream_is_free(make: Make) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=2)
    assert backlog.predicted_wait(0.0) == 0.0
    fill(backlog, [make()])
    taken(backlog)
    assert backlog.predicted_wait(0.0) == 0.0


def test_the_predicted_wait_ends_when_a_stream_comes_to_the_batch_that_will_hold_the_item(make: Make) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=2)
    for stream, now in enumerate((0.0, 0.5)):
        fill(backlog, [make()])
        taken(backlog, now, stream)
    waits = []
    for _ in range(3):
        waits.append(backlog.predicted_wait(0.75))
        fill(backlog, [make() for _ in range(4)])
    assert waits == [0.25, 0.75, 1.25]


def test_a_batch_that_overruns_its_prediction_counts_as_about_to_end(make: Make) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=1)
    fill(backlog, [make()])
    taken(backlog)
    assert backlog.predicted_wait(7.0) == 0.0


def test_a_finished_stream_is_free_again(make: Make) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=1)
    fill(backlog, [make()])
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


def test_admission_refuses_by_how_much_the_answer_would_be_late(make: Make) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    fill(backlog, [make()])
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


def test_an_idle_device_admits_whatever_was_measured(make: Make) -> None:
    costs = measured({1: 0.1})
    for _ in range(100):
        costs.observe(1, 25.0)
    assert costs.seconds(1) > 20
    backlog = Backlog(costs, streams=2)
    backlog.check(0.0, 1, deadline=1.0)
    backlog.check(0.0, 32, deadline=1.0)
    with pytest.raises(Overloaded):
        backlog.check(0.0, 1, deadline=0.09)  # not even at its best
    fill(backlog, [make()])
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


def test_preparation_counts_as_wait_and_outliers_are_damped(make: Make) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    for _ in range(200):
        backlog.prepared(0.01)
    assert backlog.prepare_s == pytest.approx(0.01, rel=0.01)
    fill(backlog, [make() for _ in range(4)])
    taken(backlog)
    assert backlog.predicted_wait(0.0) == pytest.approx(0.1 + 4 * 0.01, rel=0.01)
    backlog.prepared(25.0)
    assert backlog.prepare_s < 0.013


def burst(backlog: Backlog, now: float, jobs: Sequence[Numbered]) -> None:
    """All of them admitted and put at once, to an idle device."""
    for one in jobs:
        backlog.check(now, 1, math.inf)
        backlog.put(one, now)
        if backlog.predicted_wait(now) == 0:
            taken(backlog, now)


def drain(backlog: Backlog, now: float) -> None:
    while len(backlog):
        backlog.finished(0)
        taken(backlog, now)
    backlog.finished(0)


def test_a_burst_is_admitted_and_an_excess_is_refused(make: Make) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    burst(backlog, 0.0, [make() for _ in range(60)])
    backlog.check(0.1, 1, math.inf)
    with pytest.raises(Overloaded) as refused:
        backlog.check(0.11, 1, math.inf)
    assert refused.value.retry_after_s == pytest.approx(backlog.predicted_wait(0.11) - 0.85)


def test_what_does_not_come_to_an_idle_device_is_no_burst(make: Make) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    burst(backlog, 0.0, [make()])
    fill(backlog, [make() for _ in range(32)], 1.0)
    backlog.check(1.0, 1, math.inf)
    fill(backlog, [make() for _ in range(4)], 1.0)
    with pytest.raises(Overloaded):
        backlog.check(1.0, 1, math.inf)


def test_a_burst_ends_at_its_deadline(make: Make) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    burst(backlog, 0.0, [make() for _ in range(60)])
    with pytest.raises(Overloaded):
        backlog.check(0.0, 1, deadline=1.5)


def refused(backlog: Backlog, now: float, waiting: Sequence[Numbered]) -> bool:
    """Whether one more than these would be refused."""
    fill(backlog, waiting, now)
    try:
        backlog.check(now, 1, math.inf)
    except Overloaded:
        return True
    finally:
        drain(backlog, now)
    return False


def test_a_queue_that_was_too_long_is_kept_shorter_for_a_second(make: Make) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    eight_batches, six_batches = [make() for _ in range(32)], [make() for _ in range(24)]
    assert not refused(backlog, 0.0, eight_batches)
    assert refused(backlog, 1.0, [make() for _ in range(40)])
    assert refused(backlog, 1.5, eight_batches)
    assert not refused(backlog, 2.4, six_batches)
    assert not refused(backlog, 2.6, eight_batches)


def test_who_need_not_wait_needs_no_margin(make: Make) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=2)
    fill(backlog, [make()])
    taken(backlog)
    with pytest.raises(Overloaded):
        backlog.check(0.0, 1, deadline=0.05)
    backlog.check(0.0, 1, deadline=0.15)


def test_a_second_burst_after_a_drained_one_is_a_burst(make: Make) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    for now in (10.0, 20.0):
        burst(backlog, now, [make() for _ in range(60)])
        drain(backlog, now)


def test_the_wait_that_is_tolerated_leaves_time_for_a_batch_within_a_second() -> None:
    assert Backlog(measured(TENTH_A_BATCH), streams=1).target_s == pytest.approx(0.85)
    assert Backlog(measured(SECOND_A_BATCH), streams=1).target_s == 0.5


def test_what_expired_or_is_gone_never_comes_out(make: Make) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=1)
    late, left, good = make("late", deadline=5.0), make("left"), make("good")
    fill(backlog, [late, left, good])
    left.future.cancel()
    assert backlog.take(5.0, 0) == ([good], [late])
    assert len(backlog) == 0


def test_nothing_but_what_is_gone_is_no_batch(make: Make) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=1)
    left = make()
    fill(backlog, [left])
    left.future.cancel()
    assert backlog.take(0.0, 0) == ([], [])
    assert backlog.predicted_wait(0.0) == 0.0


def test_batches_come_in_the_order_of_arrival(make: Make) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=1)
    fill(backlog, [make(i) for i in range(6)])
    assert [taken(backlog), taken(backlog), taken(backlog)] == [[0, 1, 2, 3], [4, 5], []]


def test_what_would_miss_its_deadline_overtakes_but_never_the_head(make: Make) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=1)
    fill(backlog, [make(i) for i in range(4)] + [make(f"urgent {i}", deadline=1.5) for i in range(5)])
    assert taken(backlog) == [0, "urgent 0", "urgent 1", "urgent 2"]
    assert taken(backlog) == [1, "urgent 3", "urgent 4", 2]


def test_the_urgent_overtake_only_those_that_can_wait(make: Make) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=1)
    fill(backlog, [make(i, deadline=1.5) for i in range(6)])
    assert taken(backlog) == [0, 1, 2, 3]


def test_a_deadline_that_one_more_batch_keeps_does_not_overtake(make: Make) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=1)
    fill(backlog, [make(i) for i in range(4)] + [make("in time", deadline=2.0)])
    assert taken(backlog) == [0, 1, 2, 3]


@pytest.mark.parametrize(("four", "size"), [(0.16, 3), (0.29, 3), (0.31, 2), (0.399, 2)])
def test_three_are_padded_to_four_only_where_that_beats_two(make: Make, four: float, size: int) -> None:
    backlog = Backlog(measured({1: 0.19, 2: 0.2, 4: four}), streams=1)
    fill(backlog, [make(i) for i in range(3)])
    assert taken(backlog) == list(range(size))


def test_one_batch_runs_while_nothing_waits_and_no_other_runs(make: Make) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=2)
    fill(backlog, [make()])
    assert not backlog.one_running
    taken(backlog, 0.0, 0)
    assert backlog.one_running
    fill(backlog, [make()])
    assert not backlog.one_running
    taken(backlog, 0.0, 1)
    assert not backlog.one_running
    backlog.finished(0)
    assert backlog.one_running


def test_free_streams_share_what_waits(make: Make) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=3)
    fill(backlog, [make(i) for i in range(6)])
    assert [taken(backlog, 0.0, stream) for stream in range(3)] == [[0, 1], [2, 3], [4, 5]]
