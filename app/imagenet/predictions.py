"""Class ids and scores to predictions with labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.imagenet.labels import Label


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class of an image. ``score`` is its softmax probability, at the temperature of a calibrated model."""

    class_id: int
    wnid: str | None
    label: str
    score: float


def labelled(
    labels: Sequence[Label], class_ids: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]
) -> list[Prediction]:
    """The predictions of the classes ``class_ids`` [n] with ``scores`` [n]."""
    return [
        Prediction(class_id, labels[class_id].wnid, labels[class_id].label, score)
        for class_id, score in zip(class_ids.tolist(), scores.tolist(), strict=True)
    ]
