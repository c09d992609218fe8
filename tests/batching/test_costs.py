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
