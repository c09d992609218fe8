"""How long clients wait, learned. The time is passed in."""

import math

import pytest

from app.batching.patience import Patience

START = 50_000.0  # of a clock that has run for a while
PROXY = 7


@pytest.fixture
def patience() -> Patience:
    return Patience()


def observe(patience: Patience, now: float, answered: float = 0.0, left: float = 0.0, count: int = 50) -> None:
    """So many clients, each with a number of its own, that were answered or left after these seconds."""
    for caller in range(count):
        if answered:
            patience.answered(answered, caller, now)
        if left:
            patience.left(left, caller, now)


def leaves(patience: Patience, age: float, within: float) -> bool:
    """Whether a client of this age stays with less than nine chances of ten."""
    return any(start <= age < end for start, end in patience.leaving(within, 0.9, START + 0.1))


def test_clients_wait_for_ever_until_one_leaves(patience: Patience) -> None:
    assert patience.seconds(START) == math.inf
    observe(patience, START, answered=3.0)
    assert patience.seconds(START + 1) == math.inf
    assert patience.leaving(100.0, 1.0, START + 1) == []


@pytest.mark.parametrize("seconds", [0.07, 0.3, 0.5, 1.0, 3.0, 9.0, 60.0])
def test_it_is_as_long_as_clients_wait_that_all_wait_equally_long(patience: Patience, seconds: float) -> None:
    observe(patience, START, left=seconds)
    found = patience.seconds(START + 0.1)
    assert 0.93 * seconds <= found <= seconds
    assert not leaves(patience, age=0.0, within=0.9 * found)
    assert not leaves(patience, age=0.4 * found, within=0.5 * found)
    assert leaves(patience, age=0.9 * found, within=0.2 * found)


def test_nine_of_ten_stay_for_it(patience: Patience) -> None:
    observe(patience, START, answered=5.0, count=350)
    for place in range(70):
        patience.left((place + 1) / 35, place, START)  # a sixth of all, evenly over 2 s
    assert 1.0 < patience.seconds(START + 0.1) < 1.4


def test_a_few_who_leave_do_not_matter(patience: Patience) -> None:
    observe(patience, START, answered=2.0, count=100)
    observe(patience, START, left=0.4, count=5)
    assert patience.seconds(START + 0.1) == math.inf


def test_who_was_answered_before_says_nothing_about_longer_waits(patience: Patience) -> None:
    observe(patience, START, answered=0.1, count=1000)
    observe(patience, START, left=2.0, count=20)
    assert 1.8 < patience.seconds(START + 0.1) <= 2.0


def test_many_who_leave_at_once_do_not_make_the_others_refused(patience: Patience) -> None:
    observe(patience, START, left=0.1, count=80)
    observe(patience, START, answered=5.0, count=20)
    assert patience.seconds(START + 0.1) == math.inf
    assert leaves(patience, age=0.0, within=0.2)  # so their images run last
    assert not leaves(patience, age=0.12, within=4.0)


def test_clients_that_all_leave_at_once_count(patience: Patience) -> None:
    observe(patience, START, left=0.1, count=100)
    assert patience.seconds(START + 0.1) <= 0.1


def test_it_forgets_within_half_a_minute(patience: Patience) -> None:
    for second in range(60):
        observe(patience, START + second, left=0.5)
    assert patience.seconds(START + 65) <= 0.5
    assert patience.seconds(START + 60 + 35) == math.inf


def test_one_caller_cannot_make_others_refused_by_hanging_up(patience: Patience) -> None:
    for _ in range(1000):
        patience.left(0.5, PROXY, START)
    observe(patience, START, answered=2.0)
    assert patience.seconds(START + 0.1) == math.inf


def test_the_clients_behind_the_address_of_a_proxy_count(patience: Patience) -> None:
    for _ in range(30):
        patience.answered(0.2, PROXY, START)
        patience.left(0.5, PROXY, START)
    assert 0.45 < patience.seconds(START + 0.1) <= 0.5


def test_a_pause_of_days_is_no_overflow(patience: Patience) -> None:
    observe(patience, 1.0, left=0.5)
    observe(patience, 1e6, answered=0.1)
    assert patience.seconds(1e6 + 0.1) == math.inf


def test_callers_are_remembered_up_to_a_limit(patience: Patience) -> None:
    for caller in range(20_000):
        patience.answered(0.1, caller, START)
    assert len(patience._callers) <= 4096
