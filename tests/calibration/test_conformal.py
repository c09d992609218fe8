"""Ranks, thresholds, sets and p-values, and what they promise on average."""

import numpy as np
import pytest

from app.calibration import conformal
from app.calibration.conformal import Regularisation

NONE = Regularisation(0.0, 1)
FIRM = Regularisation(0.5, 2)


@pytest.mark.parametrize(
    ("n", "coverage", "expected"),
    [
        (99, 0.99, 99),  # exactly what n supports
        (98, 0.99, 99),  # one too few
        (9, 0.9, 9),
        (200, 200 / 201, 200),
        (200, 0.9, 181),  # 180.9
        (99, 0.29, 29),  # 100 * 0.29 is 28.999999999999996
        (99, 0.07, 7),  # and 100 * 0.07 is 7.000000000000001
        (20, 1e-300, 1),
        (20, 1 - 1e-12, 21),
    ],
)
def test_the_rank_is_rounded_up(n: int, coverage: float, expected: int) -> None:
    assert conformal.rank(n, coverage) == expected


def test_the_threshold_is_the_score_of_that_rank() -> None:
    scores = np.arange(1.0, 100.0)
    assert conformal.threshold(scores, 0.99) == 99
    assert conformal.threshold(scores, 0.5) == 50
    with pytest.raises(ValueError, match=r"99 calibration images do not support a coverage of 0\.995"):
        conformal.threshold(scores, 0.995)


def test_conformity_adds_up_the_probabilities_and_the_penalties() -> None:
    row = np.array([[0.1, 0.5, 0.15, 0.25]])
    for true, plain, firm in ((1, 0.5, 0.5), (3, 0.75, 0.75), (2, 0.9, 1.4), (0, 1.0, 2.0)):
        assert conformal.conformity(row, np.array([true]), NONE) == pytest.approx([plain])
        assert conformal.conformity(row, np.array([true]), FIRM) == pytest.approx([firm])


def test_of_equal_probabilities_the_lower_class_comes_first() -> None:
    row = np.array([0.25, 0.25, 0.25, 0.25])
    assert conformal.prediction_set(row, 0.6, NONE).tolist() == [0, 1]
    assert conformal.conformity(np.tile(row, (4, 1)), np.arange(4), NONE).tolist() == [0.25, 0.5, 0.75, 1]


def test_a_class_at_the_threshold_is_in_the_set() -> None:
    """Else the calibration images themselves would not be covered."""
    row = np.random.default_rng(0).dirichlet(np.full(50, 0.3), 1).astype(np.float32)
    for true in range(50):
        limit = float(conformal.conformity(row, np.array([true]), FIRM)[0])
        assert conformal.prediction_set(row[0], limit, FIRM)[-1] == true


def test_no_set_is_empty() -> None:
    row = np.array([0.2, 0.7, 0.1])
    assert conformal.prediction_set(row, 0.0, NONE).tolist() == [1]
    assert conformal.prediction_set(row, -np.inf, FIRM).tolist() == [1]


def test_a_set_grows_with_the_threshold_up_to_all_classes() -> None:
    row = np.random.default_rng(1).dirichlet(np.ones(30))
    sizes = [len(conformal.prediction_set(row, limit, FIRM)) for limit in np.linspace(0, 20, 200)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert sizes[-1] == 30


def test_a_p_value_counts_the_new_image() -> None:
    scores = np.array([1.0, 2.0, 2.0, 3.0])
    values = [conformal.p_value(scores, score) for score in (0.5, 1.0, 2.0, 3.0, 9.0)]
    assert values == [1 / 5, 2 / 5, 4 / 5, 1, 1]


def test_p_values_of_exchangeable_images_are_uniform() -> None:
    """At each level, over 20 000 calibrations: at most the level, and not much less."""
    random = np.random.default_rng(2)
    values = []
    for scores in random.standard_normal((20_000, 100)):
        values.append(conformal.p_value(np.sort(scores[:99]), scores[99]))
    for level in (0.01, 0.05, 0.1, 0.5, 0.9):
        assert np.mean(np.array(values) <= level + 1e-9) == pytest.approx(level, abs=4 * (level / 20_000) ** 0.5)


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("regularisation", [NONE, FIRM])
def test_sets_of_exchangeable_images_cover_on_average(coverage: float, regularisation: Regularisation) -> None:
    """The classes are drawn from the probabilities, of a model without skill: no set covers by its least size."""
    random = np.random.default_rng(3)
    rows = random.dirichlet(np.full(10, 2.0), 2000)
    truth = (rows.cumsum(axis=1) < random.random((2000, 1))).sum(axis=1).clip(max=9)
    scores = conformal.conformity(rows, truth, regularisation)
    covered = []
    for _ in range(400):
        order = random.permutation(2000)
        limit = conformal.threshold(np.sort(scores[order[:199]]), coverage)
        covered.append(np.mean(scores[order[199:]] <= limit))
    assert np.mean(covered) == pytest.approx(coverage, abs=0.01)


def test_the_score_is_at_most_the_threshold_exactly_for_the_classes_of_the_set() -> None:
    rows = np.random.default_rng(4).dirichlet(np.full(20, 0.5), 30).astype(np.float32)
    for row in rows:
        scores = conformal.conformity(np.tile(row, (20, 1)), np.arange(20), FIRM)
        for limit in (0.5, 0.9, 1.3, 2.2):
            inside = set(np.flatnonzero(scores <= limit).tolist()) or {int(row.argmax())}
            assert set(conformal.prediction_set(row, limit, FIRM).tolist()) == inside
