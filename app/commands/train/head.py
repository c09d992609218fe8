"""The linear head: multinomial logistic regression on standardised features, by scikit-learn.

The loss is convex, so that there is one answer and no learning rate; the one choice, how strongly the weights are drawn
to zero, is made by stratified cross-validation on the log loss. It needs the extra ``train``.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.commands.train.examples import FOLDS
from app.errors import TrainingError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

GRID = tuple(float(f"{10**exponent:.1g}") for exponent in np.arange(-4, 2.5, 0.5))
"""Inverse strengths C of the regularisation, strong to weak: the loss is C times the log losses' sum, and |w|^2 / 2."""

_PATIENCE = 2  # values of C in a row that are no better: the log loss has one minimum along them, weak ones take long
_MOST = 10_000  # images of the cross-validation
_ENOUGH = 2000  # unseen images to judge by: folds beyond those that have them tell nothing new, and take long
_TOLERANCE = 1e-8  # of the largest gradient at no weights at all, which falls with the number of classes
_ITERATIONS = 1000


@dataclass(frozen=True, slots=True)
class Head:
    """A layer for raw features, ``weight`` [classes, dim] and ``bias`` [classes].

    ``losses`` is the cross-validated log loss of each element of ``GRID`` that was tried.
    """

    weight: Floats
    bias: Floats
    losses: dict[float, float]

    @property
    def c(self) -> float:
        return _best(self.losses)

    @property
    def loss(self) -> float:
        """The least, which chose ``c``."""
        return self.losses[self.c]


def require() -> None:
    """Raise TrainingError where scikit-learn is not installed."""
    try:
        import sklearn.linear_model  # noqa: F401
    except ImportError as error:
        raise TrainingError("training needs scikit-learn: pip install '.[train]'") from error


def fit(features: Floats, class_ids: Ints, seed: int, step: Callable[[str], None]) -> Head:
    """The head for ``features`` [n, dim] of classes 0 to the largest of ``class_ids`` [n], ``FOLDS`` images of each.

    ``step`` is told what is being done.
    """
    from threadpoolctl import threadpool_limits

    mean = features.mean(axis=0, dtype=np.float64)
    scale = features.std(axis=0, dtype=np.float64)
    scale[scale < 1e-6 * max(1.0, float(scale.max()))] = 1.0  # what never varies tells nothing
    # Many small products: on 2 busy cores a single thread is 30 times as fast, and sums in the same order everywhere.
    with threadpool_limits(1):
        coordinates, basis = _rotated((features - mean) / scale)
        losses = _choose(coordinates, class_ids, seed, step)
        step("the linear head")
        weight, bias = _per_class(_fit(_model(), coordinates, class_ids, _best(losses)))
    weight = (weight if basis is None else weight @ basis.T) / scale
    return Head(weight.astype(np.float32), (bias - weight @ mean).astype(np.float32), losses)


def _rotated(standard: Doubles) -> tuple[Doubles, Doubles | None]:
    """Fewer images than features as coordinates [n, n] in a basis [dim, n] of what they span; others as they are.

    The regularised weights lie in that span, and a rotation changes neither loss nor norm: the same answer, soon.
    """
    if len(standard) >= standard.shape[1]:
        return standard, None
    basis, coordinates = np.linalg.qr(standard.T)
    return coordinates.T, basis


def _choose(x: Doubles, class_ids: Ints, seed: int, step: Callable[[str], None]) -> dict[float, float]:
    """The losses of the C that were tried."""
    from sklearn.model_selection import StratifiedKFold

    x, class_ids = _some(x, class_ids, seed)
    folds = [
        (_model(), seen, unseen)
        for seen, unseen in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, class_ids)
    ][: math.ceil(_ENOUGH * FOLDS / len(x))]
    losses: dict[float, float] = {}
    for c in GRID:
        step(f"cross-validation, C = {c:.1g}")
        losses[c] = float(np.mean([_loss(x, class_ids, c, *fold) for fold in folds]))
        if GRID.index(c) - GRID.index(_best(losses)) >= _PATIENCE:
            break
    return losses


def _best(losses: dict[float, float]) -> float:
    return min(losses, key=losses.__getitem__)


def _some(x: Doubles, class_ids: Ints, seed: int) -> tuple[Doubles, Ints]:
    """Enough images to choose by: of each class the same share, ``FOLDS`` at the least."""
    if len(class_ids) <= _MOST:
        return x, class_ids
    random, chosen = np.random.default_rng(seed), []
    for class_id in np.unique(class_ids):
        members = random.permutation(np.flatnonzero(class_ids == class_id))
        chosen.append(members[: max(FOLDS, round(len(members) * _MOST / len(class_ids)))])
    positions = np.sort(np.concatenate(chosen))
    return x[positions], class_ids[positions]


def _loss(x: Doubles, class_ids: Ints, c: float, model: Any, seen: Ints, unseen: Ints) -> float:
    """Log loss a fold's unseen image; ``model`` starts from where the C before this one ended."""
    from sklearn.metrics import log_loss

    _fit(model, x[seen], class_ids[seen], c)
    return float(log_loss(class_ids[unseen], model.predict_proba(x[unseen]), labels=model.classes_))


def _model() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=_ITERATIONS, warm_start=True)


def _fit(model: Any, x: Doubles, class_ids: Ints, c: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what does not converge is hardly regularised
        return model.set_params(C=c, tol=_TOLERANCE * _slope(x, class_ids)).fit(x, class_ids)


def _slope(x: Doubles, class_ids: Ints) -> float:
    """The largest gradient of the mean log loss where all weights are 0 and all classes are as likely."""
    truth = np.eye(class_ids.max() + 1)[class_ids]
    return float(np.abs((truth - truth.mean(axis=0)).T @ x).max()) / len(x)


def _per_class(model: Any) -> tuple[Doubles, Doubles]:
    """Weights and bias for each class. Of two classes scikit-learn has one row, the second against the first."""
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias
