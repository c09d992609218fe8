"""Predictions and truth -> figures: accuracy, confusions, calibration, accuracy by WordNet level. Needs only numpy.

Only the five best classes of each image are kept: 50 000 images take 4 MB, their whole rows would take 200 MB.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from app.commands.evaluate.intervals import Interval, wilson
from app.commands.evaluate.levels import Level, levels
from app.imagenet.labels import Label

BINS = 15
K = 5

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The ``truth`` [n] of n images, and their best classes ``answers`` and ``scores`` [n, k], highest score first.

    ``k`` is 5, or the number of classes if the model has fewer.
    """

    truth: Ints
    answers: Ints
    scores: Floats

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """[n] whether the best class is the truth."""
        return np.asarray(self.answers[:, 0] == self.truth)

    @property
    def right5(self) -> npt.NDArray[np.bool_]:
        """[n] whether the truth is among the best classes."""
        return np.asarray((self.answers == self.truth[:, None]).any(axis=1))


@dataclass(frozen=True, slots=True)
class ClassRow:
    """A true class: its ``n`` images, their top-1 and top-5 accuracy, and how often the class was predicted."""

    class_id: int
    label: str
    wnid: str | None
    n: int
    accuracy: float
    top5: float
    answered: int


@dataclass(frozen=True, slots=True)
class Pair:
    """A confusion: ``n`` images of ``truth`` were classified as ``answer``, a ``share`` of the images of ``truth``."""

    truth: str
    answer: str
    n: int
    share: float


@dataclass(frozen=True, slots=True)
class Bin:
    """The images whose best score is in (low, high]. Mean score and accuracy are 0 if there are none."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class AccuracyMetrics:
    """All fractions are between 0 and 1; intervals are Wilson's at 95 %. ``classes`` counts the true classes.

    ``top5`` is over the ``k`` best classes. ``confidence`` is the mean of the best scores. ``ece`` is the expected
    calibration error: the distance between score and accuracy in each bin, averaged over the images. For ``levels``
    and ``depths`` see ``levels.Levels``.
    """

    n: int
    classes: int
    k: int
    top1: float
    top1_interval: Interval
    top5: float
    top5_interval: Interval
    confidence: float
    ece: float
    bins: tuple[Bin, ...]
    per_class: tuple[ClassRow, ...]
    confused: tuple[Pair, ...]
    levels: tuple[Level, ...]
    depths: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON."""
        return asdict(self)


def score(outcomes: Outcomes, labels: Sequence[Label]) -> AccuracyMetrics:
    """The figures for at least one image."""
    n, right, right5 = len(outcomes.truth), outcomes.right, outcomes.right5
    bins = calibration(outcomes.scores[:, 0], right)
    nodes, depths = levels(outcomes.truth, outcomes.answers[:, 0], labels)
    return AccuracyMetrics(
        n=n,
        classes=len(np.unique(outcomes.truth)),
        k=outcomes.answers.shape[1],
        top1=float(right.mean()),
        top1_interval=wilson(int(right.sum()), n),
        top5=float(right5.mean()),
        top5_interval=wilson(int(right5.sum()), n),
        confidence=float(outcomes.scores[:, 0].mean(dtype=np.float64)),
        ece=sum(b.n * abs(b.accuracy - b.confidence) for b in bins) / n,
        bins=bins,
        per_class=_per_class(outcomes, labels),
        confused=_confused(outcomes, labels),
        levels=nodes,
        depths=depths,
    )


def calibration(scores: Floats, right: npt.NDArray[np.bool_]) -> tuple[Bin, ...]:
    """Fifteen bins of equal width, as for the expected calibration error of Guo et al. 2017 (arXiv:1706.04599)."""
    places = np.clip(np.ceil(scores.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    counts, rights, sums = (np.bincount(places, weights, BINS) for weights in (None, right, scores))
    of = np.maximum(counts, 1)
    return tuple(
        Bin(i / BINS, (i + 1) / BINS, int(counts[i]), float(sums[i] / of[i]), float(rights[i] / of[i]))
        for i in range(BINS)
    )


def _per_class(outcomes: Outcomes, labels: Sequence[Label]) -> tuple[ClassRow, ...]:
    """The true classes, lowest accuracy first; of equals, the one with more images first."""
    size = len(labels)
    counts, rights, rights5 = (
        np.bincount(outcomes.truth, weights, size) for weights in (None, outcomes.right, outcomes.right5)
    )
    answered = np.bincount(outcomes.answers[:, 0], minlength=size)
    rows = (
        ClassRow(
            class_id=i,
            label=labels[i].label,
            wnid=labels[i].wnid,
            n=int(counts[i]),
            accuracy=float(rights[i] / counts[i]),
            top5=float(rights5[i] / counts[i]),
            answered=int(answered[i]),
        )
        for i in np.flatnonzero(counts).tolist()
    )
    return tuple(sorted(rows, key=lambda row: (row.accuracy, row.top5, -row.n, row.class_id)))


def _confused(outcomes: Outcomes, labels: Sequence[Label]) -> tuple[Pair, ...]:
    """Confusions, most frequent first."""
    wrong = np.stack([outcomes.truth, outcomes.answers[:, 0]], axis=1)[~outcomes.right]
    pairs, counts = np.unique(wrong, axis=0, return_counts=True)
    of = np.bincount(outcomes.truth, minlength=len(labels))
    found = (
        Pair(labels[truth].label, labels[answer].label, n, n / float(of[truth]))
        for (truth, answer), n in zip(pairs.tolist(), counts.tolist(), strict=True)
    )
    return tuple(sorted(found, key=lambda pair: (-pair.n, -pair.share, pair.truth, pair.answer)))
