"""Split conformal prediction: from the scores of n calibration images to prediction sets and p-values.

The sets are regularised adaptive prediction sets (Angelopoulos et al. 2021, arXiv:2009.14193) without randomisation.
Classes are added in the order of their probability. The conformity score of a class is the sum of the probabilities up
to and including its own, plus a penalty for each place beyond the first few. A set has the classes whose score is at
most the threshold. If a new image and the n calibration images are exchangeable, the set contains the true class with
the requested probability.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

_ROUNDING = 1e-9  # of (n + 1) * coverage: 10 * 0.9 must not become rank 10


class Regularisation(NamedTuple):
    """``penalty`` (lambda) is added for each place in the order of classes beyond the first ``free`` ones (k_reg)."""

    penalty: float = 0.0
    free: int = 1


def rank(n: int, coverage: float) -> int:
    """The rank, from 1, of the calibration score that is the threshold: ceil((n + 1) * coverage).

    It is more than ``n`` if n images do not support the coverage.
    """
    return max(1, math.ceil((n + 1) * coverage - _ROUNDING))


def threshold(scores: Doubles, coverage: float) -> float:
    """The threshold for a coverage from ascending calibration scores [n]. Raises ValueError if n is too small."""
    place = rank(len(scores), coverage)
    if place > len(scores):
        raise ValueError(f"{len(scores)} calibration images do not support a coverage of {coverage:g}")
    return float(scores[place - 1])


def conformity(probabilities: npt.NDArray[np.floating], truth: Ints, regularisation: Regularisation) -> Doubles:
    """The conformity scores [n] of the true classes, for probabilities [n, classes]."""
    scores = np.empty(len(truth))
    for i, (row, true) in enumerate(zip(probabilities, truth.tolist(), strict=True)):
        order = _order(row)
        scores[i] = _totals(row[order], regularisation)[np.flatnonzero(order == true)[0]]
    return scores


def prediction_set(probabilities: npt.NDArray[np.floating], threshold: float, regularisation: Regularisation) -> Ints:
    """The class ids of the set for probabilities [classes], highest first.

    The set has at least one class, so its coverage may exceed the requested one where the top-1 accuracy does.
    """
    order = _order(probabilities)
    totals = _totals(probabilities[order], regularisation)
    return order[: max(1, int(np.searchsorted(totals, threshold, side="right")))]


def p_value(scores: Doubles, score: float) -> float:
    """The conformal p-value of a score, from ascending calibration scores [n]: in 1 / (n + 1) to 1.

    It is the share of images, the new one included, with at most this score. If the images are exchangeable, it is at
    most p with a probability of at most p (Vovk et al. 2005, "Algorithmic Learning in a Random World").
    """
    return (1 + int(np.searchsorted(scores, score, side="right"))) / (len(scores) + 1)


def penalties(classes: int, regularisation: Regularisation) -> Doubles:
    """What each place [classes] in the order of the classes adds to the cumulative probability."""
    beyond = np.maximum(np.arange(1, classes + 1) - regularisation.free, 0)
    return np.asarray(regularisation.penalty * beyond, np.float64)


def _order(probabilities: npt.NDArray[np.floating]) -> Ints:
    """The class ids, highest probability first; of equals, the lower id first, as in the top-k."""
    return np.argsort(-probabilities, kind="stable")


def _totals(ordered: npt.NDArray[np.floating], regularisation: Regularisation) -> Doubles:
    """The conformity score at each place of the descending probabilities [classes]."""
    totals: Doubles = np.cumsum(ordered, dtype=np.float64) + penalties(len(ordered), regularisation)
    return totals
