"""MAPIE as an oracle: the same conformity scores, thresholds and sets.

MAPIE's ``conformalize`` subtracts a random part of the last probability, and chooses lambda and k_reg for each coverage
by itself. The methods beneath it are compared here, with a given lambda and k_reg and without randomisation. The sets
are those of ``include_last_label=False``: the class whose score is the first to exceed the threshold is not in the set,
unless it would be empty. That is the definition of ``conformal``; MAPIE's default adds this class, so its sets cover
more than requested.
"""

import numpy as np
import numpy.typing as npt
import pytest
from mapie.conformity_scores.sets import raps

from app.calibration import conformal, fit
from app.calibration.conformal import Doubles, Ints, Regularisation
from tests.calibration import made

REGULARISATIONS = [Regularisation(0.0, 1), Regularisation(0.01, 5), Regularisation(0.1, 1), Regularisation(0.5, 2)]
COVERAGES = (0.5, 0.9, 0.95, 0.99)
N = 302  # so that no (n + 1) * coverage is an integer, which MAPIE does not round


@pytest.fixture(scope="module")
def images() -> tuple[Doubles, Ints]:
    """Probabilities [604, 100] and true classes [604]."""
    logits, truth = made.logits(2 * N, classes=100, temperature=1.5)
    return fit.softmax(logits, 2.0).astype(np.float64), truth


def _scores(rows: Doubles, truth: Ints, regularisation: Regularisation) -> Doubles:
    classes = np.arange(rows.shape[1])
    sums, places = raps.RAPSConformityScore.get_true_label_cumsum_proba(truth, rows, classes)
    penalty, free = regularisation
    scores: Doubles = raps.RAPSConformityScore._regularize_conformity_score(np.array([free]), penalty, sums, places)
    return scores[:, :, 0]


def _sets(
    rows: Doubles, scores: Doubles, coverage: float, regularisation: Regularisation
) -> tuple[float, npt.NDArray[np.bool_]]:
    """The threshold, and the sets as a mask [n, classes]."""
    oracle = raps.RAPSConformityScore()
    alpha = np.array([1 - coverage])
    oracle.lambda_star, oracle.k_star = regularisation.penalty, np.array([regularisation.free])
    oracle.quantiles_ = raps._compute_classification_quantile(scores, alpha)
    found = oracle.get_prediction_sets(rows[:, :, None].copy(), scores, alpha, "prefit", include_last_label=False)
    return float(oracle.quantiles_[0]), found[:, :, 0]


@pytest.mark.parametrize("regularisation", REGULARISATIONS)
def test_the_conformity_scores_are_the_same(images: tuple[Doubles, Ints], regularisation: Regularisation) -> None:
    rows, truth = images
    mine = conformal.conformity(rows, truth, regularisation)
    assert mine == pytest.approx(_scores(rows, truth, regularisation)[:, 0], abs=1e-12)


@pytest.mark.parametrize("coverage", COVERAGES)
@pytest.mark.parametrize("regularisation", REGULARISATIONS)
def test_the_sets_are_the_same(images: tuple[Doubles, Ints], regularisation: Regularisation, coverage: float) -> None:
    rows, truth = images
    limit, theirs = _sets(rows[N:], _scores(rows[:N], truth[:N], regularisation), coverage, regularisation)
    mine = np.sort(conformal.conformity(rows[:N], truth[:N], regularisation))
    assert conformal.threshold(mine, coverage) == pytest.approx(limit, abs=1e-12)
    for row, their in zip(rows[N:], theirs, strict=True):
        found = conformal.prediction_set(row, conformal.threshold(mine, coverage), regularisation)
        assert sorted(found.tolist()) == np.flatnonzero(their).tolist()
