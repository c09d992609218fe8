"""A calibration: what labelled photographs have shown about a model in one precision."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.calibration import conformal
from app.calibration.conformal import Doubles, Ints, Regularisation

LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.05, 20.0
LEAST_IMAGES = 20
"""With fewer, no interval is narrow enough to be of use."""

_SHOWN = 10**6  # limits are shown with six digits


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured on n ``images`` in one precision.

    Logits are divided by ``temperature`` before the softmax (Guo et al. 2017, arXiv:1706.04599). ``scores`` are the
    conformity scores of the true classes, see ``conformal``. ``energies`` are the log-sum-exp of the logits minus their
    mean; without the mean, that is the energy of Liu et al. 2020 (arXiv:2010.03759), negated. Both are float64 [n],
    ascending. ``created`` is a date and time in ISO 8601.
    """

    created: str
    temperature: float
    regularisation: Regularisation
    scores: Doubles
    energies: Doubles

    @property
    def images(self) -> int:
        return len(self.scores)

    @property
    def most_coverage(self) -> float:
        """The largest coverage that the number of images supports: n / (n + 1)."""
        return self.images / (self.images + 1)

    @property
    def least_unknown(self) -> float:
        """The smallest typicality that an image can have: 1 / (n + 1)."""
        return 1 / (self.images + 1)

    def check_coverage(self, coverage: float) -> None:
        """Raise ValueError if the number of images does not support this coverage."""
        if conformal.rank(self.images, coverage) > self.images:
            most = math.floor(self.most_coverage * _SHOWN) / _SHOWN
            raise ValueError(
                f"coverage must be at most {most:g}, because the model is calibrated on {self.images} images,"
                f" got {coverage:g}"
            )

    def check_unknown(self, unknown: float) -> None:
        """Raise ValueError if no image can have a typicality as small as this."""
        if unknown < self.least_unknown * (1 - 1e-9):
            least = math.ceil(self.least_unknown * _SHOWN) / _SHOWN
            raise ValueError(
                f"unknown must be at least {least:g}, because the model is calibrated on {self.images} images,"
                f" got {unknown:g}"
            )

    def set(self, probabilities: npt.NDArray[np.floating], coverage: float) -> Ints:
        """The class ids of the prediction set for calibrated probabilities [classes], highest first.

        Raises ValueError if the number of images does not support the coverage.
        """
        limit = conformal.threshold(self.scores, coverage)
        return conformal.prediction_set(probabilities, limit, self.regularisation)

    def typicality(self, energy: float) -> float:
        """The p-value of an image: small values mean that it is unlike the images of the calibration."""
        return conformal.p_value(self.energies, energy)
