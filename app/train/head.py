"""The linear head: multinomial logistic regression on standardised features, by scikit-learn.

The loss is convex, so that there is one answer and no learning rate; the one choice, how strongly the weights are drawn
to zero, is made by stratified cross-validation on the log loss. It needs the extra ``train``.
"""

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.errors import TrainingError
from app.train.examples import FOLDS

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

GRID = tuple(float(10**exponent) for exponent in np.arange(-5, 2.5, 0.5))
"""Inverse strengths C of the regularisation, strong to weak: C times the summed log loss, plus half the squared norm."""

_PATIENCE = (
    2  # values of C in a row that are no better: the log loss has one minimum along them, and weak ones take long
)
_MOST = 10_000  # images of the cross-validation
_ITERATIONS = 1000


@dataclass(frozen=True, slots=True)
class Head:
    """A layer for raw features, ``weight`` [classes, dim] and ``bias`` [classes].

    ``c`` is the chosen element of ``GRID``, ``losses`` the cross-validated log loss of those that were tried.
    """

    weight: Floats
    bias: Floats
    c: float
    losses: tuple[float, ...]


def require() -> None:
    """Raise TrainingError where scikit-learn is not installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise TrainingError("training needs scikit-learn: pip install 'topk[train]'")


def fit(features: Floats, class_ids: Ints, seed: int, step: Callable[[str], None]) -> Head:
    """The head for ``features`` [n, dim] of classes 0 to the largest of ``class_ids`` [n], each there ``FOLDS`` times."""
    mean = features.mean(axis=0, dtype=np.float64)
    scale = features.std(axis=0, dtype=np.float64)
    scale[scale < 1e-6 * max(1.0, float(scale.max()))] = 1.0  # what never varies tells nothing
    standard = (features - mean) / scale
    c, losses = _choose(standard, class_ids, seed, step)
    step("the linear head")
    model = _fitted(standard, class_ids, c)
    weight, bias = _per_class(model)
    weight = weight / scale
    return Head(weight.astype(np.float32), (bias - weight @ mean).astype(np.float32), c, losses)


def _choose(
    standard: Doubles, class_ids: Ints, seed: int, step: Callable[[str], None]
) -> tuple[float, tuple[float, ...]]:
    """The best C and the losses of those tried."""
    from sklearn.model_selection import StratifiedKFold

    standard, class_ids = _some(standard, class_ids, seed)
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(standard, class_ids))
    losses: list[float] = []
    for c in GRID:
        step(f"cross-validation, C = {c:.1g}")
        losses.append(float(np.mean([_loss(standard, class_ids, c, *fold) for fold in folds])))
        if len(losses) - 1 - int(np.argmin(losses)) >= _PATIENCE:
            break
    return GRID[int(np.argmin(losses))], tuple(losses)


def _some(standard: Doubles, class_ids: Ints, seed: int) -> tuple[Doubles, Ints]:
    """Enough images to choose by: of each class the same share, ``FOLDS`` at the least."""
    if len(class_ids) <= _MOST:
        return standard, class_ids
    random, chosen = np.random.default_rng(seed), []
    for class_id in np.unique(class_ids):
        members = random.permutation(np.flatnonzero(class_ids == class_id))
        chosen.append(members[: max(FOLDS, round(len(members) * _MOST / len(class_ids)))])
    positions = np.sort(np.concatenate(chosen))
    return standard[positions], class_ids[positions]


def _loss(standard: Doubles, class_ids: Ints, c: float, seen: Ints, unseen: Ints) -> float:
    """Log loss a fold's unseen image."""
    from sklearn.metrics import log_loss

    model = _fitted(standard[seen], class_ids[seen], c)
    return float(log_loss(class_ids[unseen], model.predict_proba(standard[unseen]), labels=model.classes_))


def _fitted(standard: Doubles, class_ids: Ints, c: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so weakly regularised it is not chosen
        return LogisticRegression(C=c, max_iter=_ITERATIONS).fit(standard, class_ids)


def _per_class(model: Any) -> tuple[Doubles, Doubles]:
    """Weights and bias for each class. Of two classes scikit-learn has one row, the second against the first."""
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias
