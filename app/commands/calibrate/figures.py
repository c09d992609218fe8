"""What a calibration is worth, cross-fitted: each photograph is judged by a calibration that has not seen it."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.calibration import conformal, fit
from app.commands.evaluate.intervals import Interval, wilson
from app.commands.evaluate.metrics import calibration as reliability

FOLDS = 5
COVERAGES = (0.9, 0.95, 0.99)

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Covered:
    """The ``share`` of photographs whose set has the true class, with its 95 % interval, and the mean ``size``."""

    coverage: float
    share: float
    interval: Interval
    size: float


@dataclass(frozen=True, slots=True)
class Figures:
    """``accuracy`` is that of the best class, with its 95 % interval; ``mistakes`` counts the others.

    ``ece_before`` and ``ece_after`` are the expected calibration errors without and with the temperature. ``covered``
    has the coverages that every fold supports.
    """

    images: int
    classes: int
    accuracy: float
    accuracy_interval: Interval
    mistakes: int
    ece_before: float
    ece_after: float
    covered: tuple[Covered, ...]

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON."""
        return asdict(self)


def measure(logits: Floats, truth: Ints, seed: int = 0) -> Figures:
    """The figures for logits [n, classes] of photographs of these true classes [n]."""
    n = len(truth)
    best_before, best_after = fit.softmax(logits, 1.0).max(axis=1), np.empty(n, np.float32)
    right = logits.argmax(axis=1) == truth
    hits: dict[float, list[bool]] = {}
    sizes: dict[float, list[int]] = {}
    folds = list(fit.split(n, FOLDS, seed))
    fewest = min(len(others) for others, _ in folds)
    supported = [coverage for coverage in COVERAGES if conformal.rank(fewest, coverage) <= fewest]
    for others, own in folds:
        fitted = fit.fit(logits[others], truth[others])
        probabilities = fit.softmax(logits[own], fitted.temperature)
        best_after[own] = probabilities.max(axis=1)
        for coverage in supported:
            found = [fitted.set(row, coverage) for row in probabilities]
            sizes.setdefault(coverage, []).extend(map(len, found))
            hits.setdefault(coverage, []).extend(t in s for t, s in zip(truth[own].tolist(), found, strict=True))
    return Figures(
        images=n,
        classes=len(np.unique(truth)),
        accuracy=float(right.mean()),
        accuracy_interval=wilson(int(right.sum()), n),
        mistakes=int(n - right.sum()),
        ece_before=_ece(best_before, right),
        ece_after=_ece(best_after, right),
        covered=tuple(_covered(coverage, hits[coverage], sizes[coverage]) for coverage in supported),
    )


def _covered(coverage: float, hits: list[bool], sizes: list[int]) -> Covered:
    return Covered(coverage, sum(hits) / len(hits), wilson(sum(hits), len(hits)), float(np.mean(sizes)))


def _ece(scores: Floats, right: npt.NDArray[np.bool_]) -> float:
    bins = reliability(scores, right)
    return sum(one.n * abs(one.accuracy - one.confidence) for one in bins) / len(scores)
