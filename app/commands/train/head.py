"""The linear head: multinomial logistic regression on standardised features, by scikit-learn.

The loss is convex, so there is one solution and no learning rate. The strength of the regularisation is chosen by
stratified cross-validation on the log loss. Needs the extra ``train``.
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
"""Values of C, strongest regularisation first. The loss is C times the sum of log losses, plus |w|^2 / 2."""

_PATIENCE = 2  # values of C in a row without improvement; the log loss has one minimum, and weak values take long
_MAX_IMAGES = 10_000  # of the cross-validation
_VALIDATION_IMAGES = 2000  # more folds than these images need take long and add little
_TOLERANCE = 1e-8  # relative to the largest gradient at zero weights, which falls with the number of classes
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
        """The lowest log loss, that of ``c``."""
        return self.losses[self.c]


def require() -> None:
    """Raise TrainingError if scikit-learn is not installed."""
    try:
        import sklearn.linear_model  # noqa: F401
    except ImportError as error:
        raise TrainingError("training needs scikit-learn; run: pip install '.[train]'") from error


def fit(features: Floats, class_ids: Ints, seed: int, step: Callable[[str], None]) -> Head:
    """Fit a head to ``features`` [n, dim] with ``class_ids`` [n]: 0, 1, ..., at least ``FOLDS`` images of each.

    ``step`` is called with a description of each step.
    """
    from threadpoolctl import threadpool_limits

    mean = features.mean(axis=0, dtype=np.float64)
    scale = features.std(axis=0, dtype=np.float64)
    scale[scale < 1e-6 * max(1.0, float(scale.max()))] = 1.0  # a constant feature has no information
    # The products are small and many: on 2 busy cores, a single thread is 30 times as fast. It also fixes the order of
    # summation, so that results are the same on every machine.
    with threadpool_limits(1):
        coordinates, basis = _rotate((features - mean) / scale)
        losses = _choose(coordinates, class_ids, seed, step)
        step("the linear head")
        weight, bias = _per_class(_fit(_model(), coordinates, class_ids, _best(losses)))
    weight = (weight if basis is None else weight @ basis.T) / scale
    return Head(weight.astype(np.float32), (bias - weight @ mean).astype(np.float32), losses)


def _rotate(standard: Doubles) -> tuple[Doubles, Doubles | None]:
    """If there are fewer images than features: coordinates [n, n] in a basis [dim, n] of their span, which is faster.

    The regularised weights are in that span, and a rotation changes neither loss nor norm, so the solution is the same.
    """
    if len(standard) >= standard.shape[1]:
        return standard, None
    basis, coordinates = np.linalg.qr(standard.T)
    return coordinates.T, basis


def _choose(x: Doubles, class_ids: Ints, seed: int, step: Callable[[str], None]) -> dict[float, float]:
    """The cross-validated log loss of each C that was tried."""
    from sklearn.model_selection import StratifiedKFold

    x, class_ids = _subset(x, class_ids, seed)
    folds = [
        (_model(), seen, unseen)
        for seen, unseen in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(x, class_ids)
    ][: math.ceil(_VALIDATION_IMAGES * FOLDS / len(x))]
    losses: dict[float, float] = {}
    for c in GRID:
        step(f"cross-validation, C = {c:.1g}")
        losses[c] = float(np.mean([_loss(x, class_ids, c, *fold) for fold in folds]))
        if GRID.index(c) - GRID.index(_best(losses)) >= _PATIENCE:
            break
    return losses


def _best(losses: dict[float, float]) -> float:
    return min(losses, key=losses.__getitem__)


def _subset(x: Doubles, class_ids: Ints, seed: int) -> tuple[Doubles, Ints]:
    """At most ``_MAX_IMAGES`` images: the same share of each class, at least ``FOLDS``."""
    if len(class_ids) <= _MAX_IMAGES:
        return x, class_ids
    random, chosen = np.random.default_rng(seed), []
    for class_id in np.unique(class_ids):
        members = random.permutation(np.flatnonzero(class_ids == class_id))
        chosen.append(members[: max(FOLDS, round(len(members) * _MAX_IMAGES / len(class_ids)))])
    positions = np.sort(np.concatenate(chosen))
    return x[positions], class_ids[positions]


def _loss(x: Doubles, class_ids: Ints, c: float, model: Any, seen: Ints, unseen: Ints) -> float:
    """The mean log loss on the unseen images of a fold. ``model`` starts from the solution of the previous C."""
    from sklearn.metrics import log_loss

    _fit(model, x[seen], class_ids[seen], c)
    return float(log_loss(class_ids[unseen], model.predict_proba(x[unseen]), labels=model.classes_))


def _model() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=_ITERATIONS, warm_start=True)


def _fit(model: Any, x: Doubles, class_ids: Ints, c: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # only weakly regularised fits fail to converge
        return model.set_params(C=c, tol=_TOLERANCE * _initial_gradient(x, class_ids)).fit(x, class_ids)


def _initial_gradient(x: Doubles, class_ids: Ints) -> float:
    """The largest gradient of the mean log loss at zero weights and equal class probabilities."""
    truth = np.eye(class_ids.max() + 1)[class_ids]
    return float(np.abs((truth - truth.mean(axis=0)).T @ x).max()) / len(x)


def _per_class(model: Any) -> tuple[Doubles, Doubles]:
    """Weights and bias for each class. For two classes scikit-learn has one row: the second class against the first."""
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias
