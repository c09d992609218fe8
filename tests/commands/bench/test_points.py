import dataclasses

import pytest

from app.commands.bench.client import Record
from app.commands.bench.loads import Closed, Open
from app.commands.bench.points import Point, Window, percentile_ms, point
from app.commands.bench.target import Batches

WINDOW = Window(10.0, 20.0)
FOUR = Closed(4)


def record(due: float, latency: float, status: int = 200, error: str = "", begun: float | None = None) -> Record:
    return Record(due, due if begun is None else begun, due + latency, status, error)


def made(*records: Record, load: Closed | Open = FOUR, window: Window = WINDOW) -> Point:
    return point(load, records, window, slo_s=0.5)


@pytest.mark.parametrize(
    ("percent", "expected"), [(1, 1000), (50, 5000), (51, 6000), (90, 9000), (91, 10000), (99, 10000), (100, 10000)]
)
def test_percentiles_are_nearest_ranks(percent: int, expected: float) -> None:
    assert percentile_ms([10, 3, 1, 7, 5, 2, 9, 4, 8, 6], percent) == expected


def test_one_value_is_every_percentile_and_none_is_none() -> None:
    assert percentile_ms([0.25], 1) == percentile_ms([0.25], 99) == 250
    assert percentile_ms([], 50) is None


def test_only_what_is_due_within_the_window_counts_whenever_it_ends() -> None:
    before, first, last, after = record(9.99, 1), record(10.0, 0.25), record(19.99, 5.0), record(20.0, 0.125)
    found = made(before, first, last, after)
    assert (found.requests, found.throughput) == (2, 0.2)
    assert (found.p50_ms, found.p99_ms) == (pytest.approx(250), pytest.approx(5000))


def test_goodput_is_what_is_2xx_and_within_the_slo() -> None:
    found = made(
        *(record(12.0, 0.25) for _ in range(30)),
        *(record(12.0, 0.5) for _ in range(10)),
        *(record(12.0, 0.75) for _ in range(5)),
        *(record(12.0, 0.125, 503) for _ in range(3)),
        record(12.0, 0.125, 500),
        record(12.0, 0.5, 0, "timeout"),
    )
    assert (found.requests, found.good, found.late, found.refused) == (50, 40, 5, 3)
    assert (found.throughput, found.goodput, found.good_share) == (4.5, 4.0, 0.8)
    assert found.statuses == {200: 45, 500: 1, 503: 3}
    assert found.errors == {"timeout": 1}
    assert (found.p50_ms, found.p99_ms, found.refused_p99_ms) == (250, 750, 125)


def test_latency_counts_from_the_scheduled_arrival() -> None:
    found = made(record(12.0, 0.75, begun=12.5), load=Open(1, 0.5))
    assert (found.p50_ms, found.goodput, found.behind_p99_ms) == (750, 0, 500)


def test_nothing_answered_leaves_figures_out() -> None:
    found = made(record(12.0, 0.5, 0, "timeout")).as_dict()
    assert found["requests"] == 1
    assert found["goodput"] == 0
    assert not {"p50_ms", "refused_p99_ms", "batch_size_mean"} & found.keys()


def test_the_load_and_the_statuses_are_plain_json() -> None:
    assert made(record(12.0, 0.25)).as_dict()["statuses"] == {"200": 1}
    assert made(load=Closed(4)).as_dict()["clients"] == 4
    assert made(load=Open(12.5, 1)).as_dict()["rate"] == 12.5


def test_the_mean_batch_is_of_what_ran_in_between() -> None:
    window = dataclasses.replace(WINDOW, before=Batches(100, 100), after=Batches(180, 110))
    assert made(window=window).batch_size_mean == 8
    assert made(window=dataclasses.replace(window, after=window.before)).batch_size_mean is None


def test_a_client_that_may_be_the_bottleneck_is_warned_of() -> None:
    assert not made(record(12.0, 0.25)).warnings(500)
    [busy] = made(window=dataclasses.replace(WINDOW, cpu_s=9.0)).warnings(500)
    assert "0.90 of a core" in busy
    [behind] = made(record(12.0, 0.25, begun=12.125)).warnings(500)
    assert "125 ms behind" in behind
