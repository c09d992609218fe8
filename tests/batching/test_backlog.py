"""The policy of the queue, with the time passed in."""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from app.batching import Backlog, CostCurve
from app.errors import Overloaded
from tests.batching.jobs import Numbered, job, measured


@pytest.fixture
def make() -> Iterator[Callable[..., Numbered]]:
    loop = asyncio.new_event_loop()
    yield lambda number=0, deadline=math.inf, **fields: job(number, deadline, loop, **fields)
    loop.close()


Make = Callable[..., Numbered]
SECOND_A_BATCH = {1: 1.0, 2: 1.0, 4: 1.0}
TENTH_A_BATCH = {1: 0.1, 2: 0.1, 4: 0.1}
NOW = 1000.0  # of a clock that has run for a while


def fill(backlog: Backlog, jobs: Sequence[Numbered], now: float = 0.0) -> None:
    for one in jobs:
        backlog.put([one], now)


def taken(backlog: Backlog, now: float = 0.0, stream: int = 0) -> list[Any]:
    batch, _ = backlog.take(now, stream)
    return [one.number for one in batch]


def retry_s(backlog: Backlog, now: float, deadline: float = math.inf) -> float:
    """The seconds after which a refused item may come again."""
    with pytest.raises(Overloaded) as refused:
        backlog.check(now, 1, deadline)
    assert refused.value.retry_after_s is not None
    return refused.value.retry_after_s


def lose_patience(backlog: Backlog, make: Make, seconds: float) -> None:
    """Many clients have hung up after so many seconds."""
    for caller in range(50):
        backlog.left(make(received_at=NOW - 1 - seconds, caller=caller), NOW - 1)


def admitted(backlog: Backlog, make: Make, now: float = NOW, most: int = 1000) -> int:
    """The number of items that are put before one is refused."""
    for count in range(most):
        try:
            backlog.check(now, 1, math.inf)
        except Overloaded:
            return count
        idle = backlog.idle
        fill(backlog, [make(received_at=now)], now)
        if idle:
            taken(backlog, now)
    return most


def drain(backlog: Backlog, now: float) -> None:
    while len(backlog):
        backlog.finished(0)
        taken(backlog, now)
    backlog.finished(0)


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


def test_items_that_arrive_together_are_predicted_as_one_after_another(make: Make) -> None:
    predictions = []
    for together in (False, True):
        backlog = Backlog(measured(SECOND_A_BATCH), streams=2, ahead_s=lambda: 0.25)
        fill(backlog, [make()])
        taken(backlog)
        jobs = [make() for _ in range(20)]
        if together:
            backlog.put(jobs, 0.5)
        else:
            fill(backlog, jobs, 0.5)
        predictions.append([(one.waiting_since, one.predicted_s) for one in jobs])
    assert predictions[0] == predictions[1]


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
    backlog.check(0.0, 1, deadline=4.5)
    assert retry_s(backlog, 0.0, deadline=3.5) >= 0.5


def test_admission_refuses_until_the_answer_would_be_in_time(make: Make) -> None:
    retries = []
    for deadline in (0.15, 0.1):
        backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
        fill(backlog, [make()])
        taken(backlog)
        backlog.check(0.025, 1, deadline=0.225)
        retries.append(retry_s(backlog, 0.025, deadline))
    assert 0.05 <= retries[0] < retries[1]  # the answers would be 50 and 100 ms late
    assert 0.1 <= retries[1] < 0.2


@pytest.mark.parametrize(("n", "streams", "needed"), [(1, 1, 1.0), (4, 1, 1.0), (5, 1, 2.0), (8, 2, 1.0), (16, 2, 2.0)])
def test_admission_counts_the_batches_that_were_asked_for(n: int, streams: int, needed: float) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams, ahead_s=lambda: 1e-9)  # not idle
    backlog.check(0.0, n, deadline=needed + 0.5)  # not enough for one more batch
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


def test_while_nobody_hangs_up_items_wait_as_long_as_their_deadlines_allow(make: Make) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    assert admitted(backlog, make) == 1000
    backlog.check(NOW, 1, deadline=NOW + 60)
    with pytest.raises(Overloaded):
        backlog.check(NOW, 1, deadline=NOW + 24)


@pytest.mark.parametrize("idle", [True, False], ids=["idle", "busy"])
def test_items_wait_no_longer_than_clients_do(make: Make, idle: bool) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    lose_patience(backlog, make, 1.0)
    if not idle:
        fill(backlog, [make(received_at=NOW)], NOW)
        taken(backlog, NOW)
    assert 20 < admitted(backlog, make) <= 40  # four in a tenth of a second
    assert 0.6 < backlog.predicted_wait(NOW) <= 1.0


def test_a_stated_deadline_overrides_the_patience_of_others(make: Make) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    lose_patience(backlog, make, 0.5)
    fill(backlog, [make(received_at=NOW) for _ in range(80)], NOW)
    with pytest.raises(Overloaded):
        backlog.check(NOW, 1, deadline=NOW + 5)
    backlog.check(NOW, 1, deadline=NOW + 5, stated=True)
    with pytest.raises(Overloaded):
        backlog.check(NOW, 1, deadline=NOW + 1, stated=True)


def test_a_refused_client_may_come_again_when_the_wait_is_as_short_as_clients_stay(make: Make) -> None:
    def retry(patience: float) -> float:
        backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
        lose_patience(backlog, make, patience)
        fill(backlog, [make(received_at=NOW) for _ in range(80)], NOW)
        assert backlog.predicted_wait(NOW) == pytest.approx(2.0)
        return retry_s(backlog, NOW)

    short, long = retry(0.5), retry(1.5)
    assert short >= 1.5
    assert long >= 0.5
    assert short - long > 0.8


def test_refused_clients_come_again_one_after_another_within_their_patience(make: Make) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    lose_patience(backlog, make, 2.0)
    admitted(backlog, make)
    retries = [retry_s(backlog, NOW) for _ in range(200)]
    assert retries == sorted(retries)
    assert retries[4] > retries[0]
    assert retries[-1] <= 2.0


def test_the_queue_is_shorter_while_answers_come_later_than_predicted(make: Make) -> None:
    backlog = Backlog(measured({1: 0.01}), streams=1)
    lose_patience(backlog, make, 1.0)

    def compute(seconds: float) -> int:
        """Jobs that take so long; then the number of items that are admitted."""
        for _ in range(100):
            one = make(received_at=NOW, stated=True)
            fill(backlog, [one], NOW)
            taken(backlog, NOW)
            backlog.finished(0)
            backlog.computed(one, NOW + seconds)
        count = admitted(backlog, make)
        drain(backlog, NOW)
        return count

    punctual, late, again = compute(0.01), compute(1.0), compute(0.01)
    assert punctual / 2 < late < 0.9 * punctual
    assert again > 1.1 * late


def test_a_batch_that_takes_longer_than_clients_wait_is_still_run(make: Make) -> None:
    backlog = Backlog(measured(SECOND_A_BATCH), streams=1)
    lose_patience(backlog, make, 0.5)
    fill(backlog, [make(received_at=NOW)], NOW)
    taken(backlog, NOW)
    with pytest.raises(Overloaded):
        backlog.check(NOW + 0.1, 1, math.inf)
    backlog.check(NOW + 0.9, 1, math.inf)


def test_a_burst_ends_at_its_deadline(make: Make) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    fill(backlog, [make() for _ in range(60)])
    backlog.check(0.0, 1, deadline=2.0)
    with pytest.raises(Overloaded):
        backlog.check(0.0, 1, deadline=1.5)


def test_who_need_not_wait_needs_no_margin(make: Make) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=2)
    fill(backlog, [make()])
    taken(backlog)
    with pytest.raises(Overloaded):
        backlog.check(0.0, 1, deadline=0.05)
    backlog.check(0.0, 1, deadline=0.15)


def test_a_second_burst_after_a_drained_one_is_admitted_like_the_first(make: Make) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    lose_patience(backlog, make, 1.0)
    counts = []
    for now in (NOW, NOW + 5):
        counts.append(admitted(backlog, make, now))
        drain(backlog, now)
    assert counts[0] == counts[1] > 20


def learned(backlog: Backlog) -> bool:
    """Whether clients are known to leave."""
    return backlog.patience_s(NOW + 1) < math.inf


def test_who_states_a_deadline_says_nothing_about_the_others(make: Make) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    for caller in range(50):
        backlog.left(make(received_at=NOW - 1, caller=caller, stated=True), NOW)
    assert not learned(backlog)


def test_who_has_waited_until_the_deadline_was_patient(make: Make) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    for caller in range(50):
        backlog.left(make(deadline=NOW, received_at=NOW - 1, caller=caller), NOW)
    assert not learned(backlog)


@pytest.mark.parametrize(("stated", "counts"), [(False, True), (True, False)], ids=["silent", "stated"])
def test_the_hang_ups_of_a_caller_count_as_far_as_it_is_answered(make: Make, stated: bool, counts: bool) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    for caller in range(100, 200):
        backlog.computed(make(received_at=NOW - 2, caller=caller), NOW)
    for _ in range(50):
        backlog.computed(make(received_at=NOW - 0.1, caller=7, stated=stated), NOW)
        backlog.left(make(received_at=NOW - 1, caller=7), NOW)
    assert learned(backlog) == counts


@pytest.mark.parametrize(
    ("waits", "remaining", "counts"),
    [([0.3, 0.6, 0.9, 1.2], 0, False), ([1.0, 1.0, 1.0, 1.0], 0, True), ([0.3, 0.6, 0.9, 1.2], 4, True)],
    ids=["all after different waits", "all after the same wait", "some of many"],
)
def test_connections_that_close_together_count_as_one_client(
    make: Make, waits: list[float], remaining: int, counts: bool
) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    for _ in range(20):
        backlog.computed(make(received_at=NOW - 0.1, caller=7), NOW)
    fill(backlog, [make(received_at=NOW, caller=7) for _ in range(remaining)], NOW)
    for wait in waits:
        backlog.left(make(received_at=NOW - wait, caller=7), NOW)
    assert learned(backlog) == counts


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


def test_what_cannot_meet_its_deadline_any_more_comes_out_at_once(make: Make) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    late, good = make("late", deadline=NOW + 0.05), make("good", deadline=NOW + 0.5)
    fill(backlog, [late, good], NOW)
    assert backlog.take(NOW, 0) == ([good], [late])
    assert len(backlog) == 0


def test_who_will_probably_have_left_comes_last(make: Make) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    lose_patience(backlog, make, 1.0)
    fill(backlog, [make(f"old {i}", received_at=NOW - 0.97) for i in range(3)], NOW)
    fill(backlog, [make(i, received_at=NOW) for i in range(6)], NOW)
    order = []
    while len(backlog):
        order += taken(backlog, NOW)
    assert order == [0, 1, 2, 3, 4, 5, "old 0", "old 1", "old 2"]


def test_who_has_stated_a_deadline_is_expected_to_stay(make: Make) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    lose_patience(backlog, make, 1.0)
    old = make("old", deadline=NOW + 60, received_at=NOW - 0.97, stated=True)
    fill(backlog, [old, *(make(i, received_at=NOW) for i in range(4))], NOW)
    assert taken(backlog, NOW) == ["old", 0, 1, 2]


def test_those_who_come_last_hold_up_nobody_else(make: Make) -> None:
    backlog = Backlog(measured(TENTH_A_BATCH), streams=1)
    lose_patience(backlog, make, 1.0)
    fill(backlog, [make(received_at=NOW - 0.97) for _ in range(80)], NOW)
    fill(backlog, [make(received_at=NOW) for _ in range(4)], NOW)
    taken(backlog, NOW)
    assert len(backlog) == 80
    assert backlog.predicted_wait(NOW) == pytest.approx(0.1)
    backlog.check(NOW, 1, math.inf)


def test_fewer_run_at_once_if_a_full_batch_would_be_late_for_all(make: Make) -> None:
    backlog = Backlog(measured({1: 0.05, 4: 0.1}), streams=1)
    fill(backlog, [make(i, deadline=NOW + 0.08) for i in range(4)], NOW)
    assert taken(backlog, NOW) == [0]


def test_two_full_batches_fit_into_the_time_that_clients_wait(make: Make) -> None:
    sizes = []
    for patience in (None, 2.0, 0.5, 0.3, 0.01):
        backlog = Backlog(measured({1: 0.1, 2: 0.12, 4: 0.2, 8: 0.3}), streams=1)
        if patience:
            lose_patience(backlog, make, patience)
        fill(backlog, [make(received_at=NOW) for _ in range(16)], NOW)
        sizes.append(len(taken(backlog, NOW)))
    assert sizes == [8, 8, 4, 2, 1]


@pytest.mark.parametrize(("waiting", "patience", "size"), [(1, None, 1), (3, None, 2), (3, 0.3, 1), (3, 0.6, 2)])
def test_a_size_that_was_never_measured_is_tried_if_two_batches_would_be_in_time(
    make: Make, waiting: int, patience: float | None, size: int
) -> None:
    costs = CostCurve((1, 2, 4))
    costs.restore({1: 0.1})
    backlog = Backlog(costs, streams=1)
    if patience:
        lose_patience(backlog, make, patience)
    fill(backlog, [make(received_at=NOW) for _ in range(waiting)], NOW)
    assert len(taken(backlog, NOW)) == size
