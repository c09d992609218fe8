"""Answers and their truth -> figures: accuracy, confusions, calibration, and accuracy by WordNet level. Only numpy.

What is kept of an image is its five best classes: 50 000 images take 4 MB, their whole rows would take 200.
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
    """What came of ``n`` images: ``truth`` [n], and their best classes ``answers`` and ``scores`` [n, k], best first.

    ``k`` is 5, or the number of classes where that is less.
    """

    truth: Ints
    answers: Ints
    scores: Floats

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """[n] whether the first answer is the truth."""
        return np.asarray(self.answers[:, 0] == self.truth)

    @property
    def right5(self) -> npt.NDArray[np.bool_]:
        """[n] whether the truth is among the answers."""
        return np.asarray((self.answers == self.truth[:, None]).any(axis=1))


@dataclass(frozen=True, slots=True)
class ClassRow:
    """A class of the truth: its images, the share answered with it, with it among the five, and how often it came."""

    class_id: int
    label: str
    wnid: str | None
    n: int
    accuracy: float
    top5: float
    answered: int


@dataclass(frozen=True, slots=True)
class Pair:
    """``n`` images of ``truth`` were answered with ``answer``: that ``share`` of the images of ``truth``."""

    truth: str
    answer: str
    n: int
    share: float


@dataclass(frozen=True, slots=True)
class Bin:
    """The images whose first score lies in (low, high]; mean score and accuracy are 0 where there are none."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Metrics:
    """All fractions are 0 to 1; intervals are Wilson's at 95 %. ``classes`` is how many the truth holds.

    ``top5`` is over the ``k`` best classes, 5 or all there are. ``confidence`` is the mean of the first scores, ``ece``
    the expected calibration error: how far they are from the accuracy, bin by bin, in the mean over the images. For
    ``levels`` and ``depths`` see ``levels.Levels``.
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
        """As JSON."""
        return asdict(self)


def score(outcomes: Outcomes, labels: Sequence[Label]) -> Metrics:
    """The figures of at least one image."""
    n, right, right5 = len(outcomes.truth), outcomes.right, outcomes.right5
    bins = calibration(outcomes.scores[:, 0], right)
    nodes, depths = levels(outcomes.truth, outcomes.answers[:, 0], labels)
    return Metrics(
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
    """Fifteen bins of equal width, as Guo et al. 2017 (arXiv:1706.04599) have for the expected calibration error."""
    places = np.clip(np.ceil(scores.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    counts, rights, sums = (np.bincount(places, weights, BINS) for weights in (None, right, scores))
    of = np.maximum(counts, 1)
    return tuple(
        Bin(i / BINS, (i + 1) / BINS, int(counts[i]), float(sums[i] / of[i]), float(rights[i] / of[i]))
        for i in range(BINS)
    )


def _per_class(outcomes: Outcomes, labels: Sequence[Label]) -> tuple[ClassRow, ...]:
    """The classes of the truth, worst first; of equals the one with more images."""
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
    """Wrong answers by how often they came."""
    wrong = np.stack([outcomes.truth, outcomes.answers[:, 0]], axis=1)[~outcomes.right]
    pairs, counts = np.unique(wrong, axis=0, return_counts=True)
    of = np.bincount(outcomes.truth, minlength=len(labels))
    found = (
        Pair(labels[truth].label, labels[answer].label, n, n / float(of[truth]))
        for (truth, answer), n in zip(pairs.tolist(), counts.tolist(), strict=True)
    )
    return tuple(sorted(found, key=lambda pair: (-pair.n, -pair.share, pair.truth, pair.answer)))
