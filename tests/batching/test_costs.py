"""The cost curve: what a batch costs, and which size pays."""

import pytest

from app.batching import CostCurve
from tests.batching.jobs import BUCKETS, measured


def test_a_batch_costs_what_the_smallest_bucket_that_holds_it_costs() -> None:
    costs = measured({1: 1.0, 2: 1.5, 4: 2.0})
    assert [costs.bucket(n) for n in (1, 2, 3, 4, 9)] == [1, 2, 4, 4, 4]
    assert [costs.seconds(n) for n in (1, 2, 3, 4)] == [1.0, 1.5, 2.0, 2.0]


def test_an_unmeasured_bucket_costs_in_proportion_to_the_nearest() -> None:
    costs = CostCurve(BUCKETS)
    assert costs.seconds(4) == 0.0
    costs.observe(2, 3.0)
    assert (costs.seconds(1), costs.seconds(4)) == pytest.approx((1.5, 6.0), rel=0.01)


def test_an_early_measurement_counts_for_more_than_a_later_one() -> None:
    early, late = measured({1: 1.0}), measured({1: 1.0})
    for _ in range(100):
        late.observe(1, 1.0)
    for costs in (early, late):
        costs.observe(1, 2.0)
    assert 1.0 < late.seconds(1) < 1.15 < early.seconds(1) < 1.5


def test_later_measurements_move_the_average_by_a_share_of_the_difference() -> None:
    costs, distances = measured({1: 1.0}), []
    for _ in range(200):
        costs.observe(1, 1.0)
    for _ in range(100):
        costs.observe(1, 2.0)
        distances.append(2.0 - costs.seconds(1))
    assert 0.7 < distances[0] < 1.0  # one measurement does not count for much
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] == pytest.approx(0.0, abs=0.01)


def test_costs_of_another_curve_are_taken_over_as_they_are() -> None:
    costs = CostCurve(BUCKETS)
    costs.observe(1, 9.0)
    costs.restore({2: 0.15, 4: 0.2})
    assert costs.as_dict() == {2: 0.15, 4: 0.2}
    assert (costs.ceiling, costs.fastest) == (4, 0.15)


@pytest.mark.parametrize(("two", "ceiling"), [(0.155, 2), (0.16, 4)])
def test_the_ceiling_is_the_smallest_bucket_within_3_percent_of_the_best(two: float, ceiling: int) -> None:
    assert measured({1: 0.1, 2: two, 4: 0.305, 8: 0.61}).ceiling == ceiling


def test_the_ceiling_is_a_single_item_where_a_batch_gains_nothing() -> None:
    assert measured({1: 0.1, 2: 0.2, 4: 0.4}).ceiling == 1


def test_the_ceiling_is_the_largest_bucket_where_it_costs_no_more() -> None:
    assert measured({1: 5.0, 2: 5.0, 4: 5.1}).ceiling == 4


def test_a_bucket_that_is_not_measured_yet_is_no_better_than_the_measured_ones() -> None:
    costs = CostCurve(BUCKETS)
    assert costs.ceiling == 4
    costs.observe(1, 0.1)
    assert costs.ceiling == 1


def test_a_larger_bucket_that_was_never_measured_is_tried_once_enough_items_wait() -> None:
    costs = CostCurve(BUCKETS)
    costs.observe(1, 0.1)
    assert [costs.untried(n) for n in (1, 2, 3, 4)] == [None, 2, 2, 2]
    costs.observe(2, 0.12)
    assert [costs.untried(n) for n in (2, 3, 4)] == [None, None, 4]
    costs.observe(4, 0.2)
    assert costs.untried(4) is None


def test_a_larger_bucket_that_gains_nothing_is_not_tried_again() -> None:
    costs = CostCurve(BUCKETS)
    costs.observe(1, 0.1)
    costs.observe(2, 0.25)
    assert (costs.ceiling, costs.untried(4)) == (1, None)


def test_an_outlier_counts_as_twice_the_average_at_most() -> None:
    costs, doubled = measured({1: 0.1}), measured({1: 0.1})
    costs.observe(1, 25.0)
    doubled.observe(1, 0.2)
    assert costs.seconds(1) == pytest.approx(doubled.seconds(1))


@pytest.mark.parametrize(
    ("seconds", "best"),
    [({1: 0.1, 2: 0.12, 4: 0.2}, 4), ({1: 0.05, 2: 0.1, 4: 0.2}, 1), ({1: 0.1, 2: 0.12, 4: 0.27}, 2)],
)
def test_one_hiccup_does_not_change_the_ceiling_for_good(seconds: dict[int, float], best: int) -> None:
    costs = measured(seconds)
    assert costs.ceiling == best
    for _ in range(3):
        costs.observe(best, 10 * seconds[best])
    assert costs.ceiling != best
    ceilings = []
    for _ in range(4000):
        costs.observe(costs.ceiling, seconds[costs.ceiling])
        ceilings.append(costs.ceiling)
        assert all(costs.seconds(b) > 0.85 * seconds[best] * b / best for b in seconds)  # nothing better is hoped for
    assert ceilings[-1000:].count(best) > 600  # others are tried now and then
