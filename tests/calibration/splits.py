"""Sets of photographs that the calibration has not seen: by topk, and by other methods for comparison."""

import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
from mapie.classification import SplitConformalClassifier
from mapie.conformity_scores import APSConformityScore, LACConformityScore
from sklearn.base import BaseEstimator, ClassifierMixin

from app.calibration import conformal, fit
from app.calibration.conformal import Regularisation
from tests.calibration.measured import Floats, Ints

SPLITS = 50

Mask = npt.NDArray[np.bool_]
Method = Callable[[Floats, Ints, Floats, float], Mask]
"""From probabilities [n, classes] and true classes [n] of the calibration, probabilities [m, classes] and a coverage to
sets, [m, classes]."""


def halves(n: int, splits: int = SPLITS) -> Iterator[tuple[Ints, Ints]]:
    """Positions of the photographs to calibrate with, and those of the others, by random halves."""
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(n)
        yield order[: n // 2], order[n // 2 :]


def regularised(known: Floats, truth: Ints, rows: Floats, coverage: float) -> Mask:
    """The sets of topk."""
    return _sets(known, truth, rows, coverage, fit.choose(known, truth))


def unregularised(known: Floats, truth: Ints, rows: Floats, coverage: float) -> Mask:
    """The same without a penalty."""
    return _sets(known, truth, rows, coverage, Regularisation(0.0, 1))


def plain_threshold(known: Floats, truth: Ints, rows: Floats, coverage: float) -> Mask:
    """The classes with a high score: MAPIE's LAC."""
    return _mapie(LACConformityScore(), known, truth, rows, coverage)


def mapie_aps(known: Floats, truth: Ints, rows: Floats, coverage: float) -> Mask:
    """MAPIE's adaptive prediction sets, with its defaults. Its RAPS needs two photographs of each class."""
    return _mapie(APSConformityScore(), known, truth, rows, coverage)


class Judged(NamedTuple):
    """The held-out photographs of all splits: their positions, whether the set has the true class, and its size."""

    positions: Ints
    hits: Mask
    sizes: Ints


def judge(method: Method, logits: Floats, truth: Ints, coverage: float, splits: int = SPLITS) -> Judged:
    """Calibrate on one half, with its temperature, and look at the sets of the other one, in turns."""
    judged = []
    for known, own in halves(len(truth), splits):
        probabilities = fit.softmax(logits, fit.temperature(logits[known], truth[known]))
        sets = method(probabilities[known], truth[known], probabilities[own], coverage)
        judged.append(Judged(own, sets[np.arange(len(own)), truth[own]], sets.sum(axis=1)))
    return Judged(*(np.concatenate(parts) for parts in zip(*judged, strict=True)))


def _sets(known: Floats, truth: Ints, rows: Floats, coverage: float, regularisation: Regularisation) -> Mask:
    limit = conformal.threshold(np.sort(conformal.conformity(known, truth, regularisation)), coverage)
    sets = np.zeros(rows.shape, bool)
    for i, row in enumerate(rows):
        sets[i, conformal.prediction_set(row, limit, regularisation)] = True
    return sets


class _Given(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A fitted classifier whose input is the probabilities."""

    def __init__(self, classes: int = 1000) -> None:
        self.classes = classes
        self.classes_ = np.arange(classes)

    def fit(self, _: Floats, __: Ints) -> Self:
        return self

    def predict_proba(self, rows: Floats) -> Floats:
        return rows

    def predict(self, rows: Floats) -> Ints:
        return np.asarray(rows.argmax(axis=1))


def _mapie(score: object, known: Floats, truth: Ints, rows: Floats, coverage: float) -> Mask:
    given = _Given(rows.shape[1])
    oracle = SplitConformalClassifier(
        given, confidence_level=coverage, prefit=True, conformity_score=score, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it expects photographs of all classes
        oracle.conformalize(_exact(known), truth)
        _, sets = oracle.predict_set(_exact(rows))
    return np.asarray(sets[:, :, 0], bool)


def _exact(rows: Floats) -> npt.NDArray[np.float64]:
    """The rows with a sum of 1, as MAPIE requires."""
    exact = rows.astype(np.float64)
    return exact / exact.sum(axis=1, keepdims=True)
