import pytest

from app.commands.bench.capacity import MOST, Tried, capacity, next_rate


def search(start: float, real: float, ceiling: float = float("inf")) -> list[Tried]:
    tried: list[Tried] = []
    while rate := next_rate(start, tried, ceiling):
        tried.append(Tried(rate, rate <= real))
    return tried


@pytest.mark.parametrize("real", [40.0, 74.0, 95.0, 100.0, 101.0, 133.0, 220.0])
def test_the_search_ends_close_to_the_real_capacity(real: float) -> None:
    tried = search(100.0, real)
    found = capacity(tried)
    assert found
    assert real / 1.07 < found <= real
    assert len(tried) <= MOST


def test_nothing_held_is_no_capacity() -> None:
    tried = search(100.0, 0.0)
    assert capacity(tried) is None
    assert len(tried) <= MOST


def test_nothing_beyond_the_ceiling_is_tried() -> None:
    tried = search(100.0, 1000.0, ceiling=150.0)
    assert max(step.rate for step in tried) == 150.0 == capacity(tried)


def test_a_rate_that_fails_below_one_that_is_held_is_noise() -> None:
    tried = [Tried(100, False), Tried(64, True), Tried(80, False), Tried(90, True)]
    assert next_rate(100, tried) == pytest.approx(94.9)
