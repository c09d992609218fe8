"""The temperature and the regularisation that are chosen, and the whole fit."""

import numpy as np
import pytest

from app.calibration import conformal, fit
from app.calibration.calibration import LEAST_IMAGES, LEAST_TEMPERATURE, MOST_TEMPERATURE
from tests.calibration import made


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_the_temperature_is_found(temperature: float) -> None:
    logits, truth = made.logits(20_000, temperature=temperature)
    assert fit.temperature(logits, truth) == pytest.approx(temperature, rel=0.03)


def test_it_has_the_highest_likelihood() -> None:
    logits, truth = made.logits(300, temperature=1.7)
    best = fit.temperature(logits, truth)
    likelihoods = [_likelihood(logits, truth, best * factor) for factor in (1, 0.99, 1.01, 0.5, 2)]
    assert likelihoods[0] == max(likelihoods)


def test_it_is_not_affected_by_an_added_constant() -> None:
    logits, truth = made.logits(300)
    assert fit.temperature(logits + 50, truth) == pytest.approx(fit.temperature(logits, truth), rel=1e-3)


def test_it_stays_within_its_limits() -> None:
    logits, truth = made.logits(300)
    assert fit.temperature(logits * 1e-3, truth) == LEAST_TEMPERATURE
    assert fit.temperature(logits * 1e3, truth) == MOST_TEMPERATURE
    assert fit.temperature(-logits, truth) == MOST_TEMPERATURE  # worse than chance


def test_without_mistakes_it_is_one() -> None:
    logits, _ = made.logits(300, temperature=3)
    assert fit.temperature(logits, logits.argmax(axis=1)) == 1


def test_the_softmax_is_that_of_the_engines() -> None:
    logits, _ = made.logits(50)
    exact = np.exp(logits.astype(np.float64) / 1.7)
    assert fit.softmax(logits * 100, 170.0) == pytest.approx(exact / exact.sum(axis=1, keepdims=True), abs=1e-6)


def test_energies_are_the_log_of_the_sum_of_exponentials() -> None:
    logits, _ = made.logits(50)
    expected = np.log(np.exp(logits.astype(np.float64)).sum(axis=1)) - logits.mean(axis=1)
    assert fit.energies(logits) == pytest.approx(expected, rel=1e-5)
    assert fit.energies(logits + np.float32(500)) == pytest.approx(fit.energies(logits), rel=1e-4)


def test_folds_are_shuffled_and_each_image_is_held_out_once() -> None:
    folds = list(fit.split(103, 5, seed=1))
    assert sorted(np.concatenate([own for _, own in folds]).tolist()) == list(range(103))
    assert all(sorted([*others, *own]) == list(range(103)) for others, own in folds)
    assert {len(own) for _, own in folds} == {20, 21}
    assert folds[0][1].tolist() != sorted(folds[0][1])


def test_the_regularisation_makes_the_sets_of_a_long_tail_small() -> None:
    """The true class is among the first ten, but much of the probability is spread over a thousand.

    Without a penalty, sets run far into that tail (Angelopoulos et al. 2021, section 1).
    """
    random = np.random.default_rng(0)
    top = random.uniform(0.2, 0.9, (400, 1))
    probabilities = np.hstack([top, np.sort(random.dirichlet(np.ones(999), 400))[:, ::-1] * (1 - top)])
    truth = np.minimum(random.geometric(0.7, 400) - 1, 9)
    chosen = fit.choose(probabilities.astype(np.float32), truth)
    assert chosen.penalty > 0
    assert _size(probabilities, truth, chosen) < 4
    assert _size(probabilities, truth, conformal.Regularisation(0, 1)) > 50


def test_the_first_of_equal_regularisations_is_chosen() -> None:
    """All sets have one class."""
    truth = np.arange(60) % 3
    sure = np.full((60, 3), 0.001, np.float32)
    sure[np.arange(60), truth] = 0.998
    assert fit.choose(sure, truth) == (fit.PENALTIES[0], fit.FREE[0])


def test_a_fit_does_not_depend_on_the_order_of_the_images() -> None:
    logits, truth = made.logits(200, temperature=1.5)
    order = np.random.default_rng(0).permutation(200)
    one, other = fit.fit(logits, truth, "now"), fit.fit(logits[order], truth[order])
    assert one.temperature == pytest.approx(other.temperature, rel=1e-6)
    assert one.energies.tolist() == other.energies.tolist()
    assert one.created == "now"
    assert one.images == 200


def test_a_fit_covers_new_images() -> None:
    logits, truth = made.logits(6000, temperature=2)
    fitted = fit.fit(logits[:1000], truth[:1000])
    probabilities = fit.softmax(logits[1000:], fitted.temperature)
    for coverage in (0.9, 0.95):
        hits = [true in fitted.set(row, coverage) for row, true in zip(probabilities, truth[1000:], strict=True)]
        assert np.mean(hits) == pytest.approx(coverage, abs=0.02)


def test_most_images_that_were_fitted_are_typical() -> None:
    logits, truth = made.logits(200)
    fitted = fit.fit(logits, truth)
    values = [fitted.typicality(energy) for energy in fitted.energies.tolist()]
    assert min(values) == 2 / 201
    assert fitted.typicality(-100.0) == fitted.least_unknown


def test_impossible_calibrations_are_refused() -> None:
    with pytest.raises(ValueError, match=f"at least {LEAST_IMAGES} labelled photographs are needed, got 19"):
        fit.check(np.arange(LEAST_IMAGES - 1))
    with pytest.raises(ValueError, match="all photographs are of one class"):
        fit.check(np.full(100, 7))
    fit.check(np.arange(LEAST_IMAGES) % 2)


def _likelihood(logits: made.Floats, truth: made.Ints, temperature: float) -> float:
    rows = logits.astype(np.float64) / temperature
    return float((rows[np.arange(len(truth)), truth] - np.log(np.exp(rows).sum(axis=1))).mean())


def _size(probabilities: made.Floats, truth: made.Ints, regularisation: conformal.Regularisation) -> float:
    limit = conformal.threshold(np.sort(conformal.conformity(probabilities, truth, regularisation)), 0.9)
    return float(np.mean([len(conformal.prediction_set(row, limit, regularisation)) for row in probabilities]))
