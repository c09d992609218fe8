import pytest

from app.commands.bench.capacity import MOST_TRIALS, Trial, capacity, next_rate


def search(start: float, real: float, ceiling: float = float("inf")) -> list[Trial]:
    trials: list[Trial] = []
    while rate := next_rate(start, trials, ceiling):
        trials.append(Trial(rate, rate <= real))
    return trials


@pytest.mark.parametrize("real", [40.0, 74.0, 95.0, 100.0, 101.0, 133.0, 220.0])
def test_the_search_ends_close_to_the_real_capacity(real: float) -> None:
    trials = search(100.0, real)
    found = capacity(trials)
    assert found
    assert real / 1.07 < found <= real
    assert len(trials) <= MOST_TRIALS


def test_nothing_sustained_is_no_capacity() -> None:
    trials = search(100.0, 0.0)
    assert capacity(trials) is None
    assert len(trials) <= MOST_TRIALS


def test_nothing_beyond_the_ceiling_is_tried() -> None:
    trials = search(100.0, 1000.0, ceiling=150.0)
    assert max(trial.rate for trial in trials) == 150.0 == capacity(trials)


def test_a_rate_that_fails_below_a_sustained_one_is_noise() -> None:
    trials = [Trial(100, False), Trial(64, True), Trial(80, False), Trial(90, True)]
    assert next_rate(100, trials) == pytest.approx(94.9)
