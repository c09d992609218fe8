"""From the logits of labelled photographs to a calibration. Needs only numpy.

The temperature and the regularisation are chosen on the same photographs as the thresholds. They are three numbers, so
this changes the coverage by less than its own uncertainty; ``topk calibrate`` prints cross-fitted figures.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from app.calibration import conformal
from app.calibration.calibration import LEAST_IMAGES, LEAST_TEMPERATURE, MOST_TEMPERATURE, Calibration
from app.calibration.conformal import Doubles, Ints, Regularisation

Floats = npt.NDArray[np.float32]

PENALTIES = (0.1, 0.01, 0.02, 0.05, 0.2, 0.5, 1.0, 0.0)
FREE = (1, 2, 3, 5)
COVERAGES = (0.9, 0.95)
"""The coverages at which the mean size of the sets is compared."""

_FOLDS = 5
_COMPARED = 2000  # images for the choice of the regularisation
_CHUNK = 1024  # rows of logits that are computed with at once
_STEPS = 100
_PRECISE = 1e-7  # relative


def check(truth: Ints) -> None:
    """Raise ValueError if no model can be calibrated on images of these true classes [n]."""
    if len(truth) < LEAST_IMAGES:
        raise ValueError(f"at least {LEAST_IMAGES} labelled photographs are needed, got {len(truth)}")
    if len(np.unique(truth)) == 1:
        raise ValueError("all photographs are of one class; add those of the other classes that the service will see")


def fit(logits: Floats, truth: Ints, created: str = "") -> Calibration:
    """The calibration for logits [n, classes] of images of these true classes [n]."""
    best = temperature(logits, truth)
    probabilities = softmax(logits, best)
    chosen = choose(probabilities, truth)
    scores = np.sort(conformal.conformity(probabilities, truth, chosen))
    return Calibration(created, best, chosen, scores, np.sort(energies(logits)))


def temperature(logits: Floats, truth: Ints) -> float:
    """The temperature of the highest likelihood, within its limits (Guo et al. 2017, arXiv:1706.04599).

    The log-likelihood is concave in the inverse temperature, so its only maximum is where the derivative vanishes. A
    model that makes no mistake has no maximum: the temperature is then 1.
    """
    if (logits.argmax(axis=1) == truth).all():
        return 1.0
    low, high = 1 / MOST_TEMPERATURE, 1 / LEAST_TEMPERATURE
    if _slope(logits, truth, high)[0] >= 0:
        return LEAST_TEMPERATURE
    if _slope(logits, truth, low)[0] <= 0:
        return MOST_TEMPERATURE
    inverse = 1.0
    for _ in range(_STEPS):
        slope, curvature = _slope(logits, truth, inverse)
        low, high = (inverse, high) if slope > 0 else (low, inverse)
        newton = inverse + slope / curvature if curvature > 0 else low
        following = newton if low < newton < high else (low + high) / 2
        if abs(following - inverse) <= _PRECISE * inverse:
            break
        inverse = following
    return 1 / following


def softmax(logits: Floats, temperature: float) -> Floats:
    """The softmax of logits [n, classes] at a temperature, as the engines compute it in float32."""
    scaled: Floats = (logits - logits.max(axis=1, keepdims=True)) / np.float32(temperature)
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(axis=1, keepdims=True)
    return scaled


def energies(logits: Floats) -> Doubles:
    """The log-sum-exp [n] of logits [n, classes] minus their mean: high for images like those of the training.

    The mean is subtracted because the softmax determines logits only up to a constant, which differs between images: it
    says nothing about the classes. docs/trust.md compares both.
    """
    best = logits.max(axis=1, keepdims=True)
    return np.asarray(best[:, 0] + np.log(np.exp(logits - best).sum(axis=1)) - logits.mean(axis=1), np.float64)


def choose(probabilities: Floats, truth: Ints, seed: int = 0) -> Regularisation:
    """The regularisation with the smallest sets, for probabilities [n, classes] of images of these true classes [n].

    The threshold comes from four fifths of the images, and the sizes from the last one, in turns. Sizes are averaged
    over ``COVERAGES``. Of equals, the first one counts.
    """
    chosen = np.random.default_rng(seed).permutation(len(truth))[:_COMPARED]
    ordered, places = _ordered(probabilities[chosen], truth[chosen])
    folds = list(split(len(chosen), _FOLDS, seed))
    grid = [Regularisation(penalty, free) for free in FREE for penalty in PENALTIES]
    return min(grid, key=lambda one: round(_mean_size(ordered, places, one, folds), 3))


def split(n: int, folds: int, seed: int) -> Iterator[tuple[Ints, Ints]]:
    """Shuffled positions of n images: for each fold, those of the others, then its own."""
    parts = np.array_split(np.random.default_rng(seed).permutation(n), folds)
    for place, own in enumerate(parts):
        yield np.concatenate([part for other, part in enumerate(parts) if other != place]), own


def _slope(logits: Floats, truth: Ints, inverse: float) -> tuple[float, float]:
    """The derivative of the mean log-likelihood by the inverse temperature, and its negative second derivative."""
    slope = curvature = 0.0
    for start in range(0, len(truth), _CHUNK):
        rows = logits[start : start + _CHUNK].astype(np.float64)
        rows -= rows.max(axis=1, keepdims=True)
        weights = np.exp(rows * inverse)
        weights /= weights.sum(axis=1, keepdims=True)
        means = (weights * rows).sum(axis=1)
        slope += float((rows[np.arange(len(rows)), truth[start : start + _CHUNK]] - means).sum())
        curvature += float(((weights * rows**2).sum(axis=1) - means**2).sum())
    return slope / len(truth), curvature / len(truth)


def _ordered(probabilities: Floats, truth: Ints) -> tuple[Doubles, Ints]:
    """The cumulative probabilities [n, classes] in descending order, and the place [n] of the true class in it."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    cumulative = np.cumsum(np.take_along_axis(probabilities, order, 1), axis=1, dtype=np.float64)
    return cumulative, np.argmax(order == truth[:, None], axis=1)


def _mean_size(
    cumulative: Doubles, places: Ints, regularisation: Regularisation, folds: Sequence[tuple[Ints, Ints]]
) -> float:
    """The mean size of the sets of held-out images."""
    totals = cumulative + conformal.penalties(cumulative.shape[1], regularisation)
    scores = totals[np.arange(len(places)), places]
    sizes = []
    for others, own in folds:
        known = np.sort(scores[others])
        for coverage in COVERAGES:
            place = min(conformal.rank(len(known), coverage), len(known))
            sizes.append(np.maximum((totals[own] <= known[place - 1]).sum(axis=1), 1).mean())
    return float(np.mean(sizes))
