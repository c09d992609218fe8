"""What a request wants of a calibration: a coverage, a limit of typicality, or both."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from app.calibration.calibration import Calibration
from app.calibration.conformal import Ints


@dataclass(frozen=True, slots=True)
class Promise:
    """``coverage`` and ``unknown`` are supported by the ``calibration``, or None if they are not wanted."""

    calibration: Calibration
    coverage: float | None
    unknown: float | None

    def set(self, probabilities: npt.NDArray[np.floating]) -> Ints:
        """The class ids of the prediction set for probabilities [classes], highest first. A coverage is wanted."""
        assert self.coverage is not None
        return self.calibration.set(probabilities, self.coverage)

    def is_unknown(self, typicality: float) -> bool | None:
        """Whether the typicality is at most ``unknown``; None if that is not wanted."""
        return None if self.unknown is None else typicality <= self.unknown


def promise(
    calibrations: Mapping[str, Calibration], precision: str, coverage: float | None, unknown: float | None
) -> Promise | None:
    """The promise for a model that is served in a precision; None if nothing is wanted.

    Raises ValueError with the reason, for the client, if the calibrations do not support it.
    """
    if coverage is None and unknown is None:
        return None
    calibration = calibrations.get(precision)
    if calibration is None:
        raise ValueError(f"{'unknown' if coverage is None else 'coverage'} {missing(calibrations, precision)}")
    if coverage is not None:
        calibration.check_coverage(coverage)
    if unknown is not None:
        calibration.check_unknown(unknown)
    return Promise(calibration, coverage, unknown)


def missing(calibrations: Mapping[str, Calibration], precision: str) -> str:
    """Why a precision has no calibration, as the end of a sentence."""
    if calibrations:
        return (
            f"needs a calibration in {precision}, in which the model is served; it has one in"
            f" {' and '.join(calibrations)}: run `topk calibrate` on a machine that computes {precision}"
        )
    return (
        "needs a calibrated model: run `topk calibrate DIR --model MODEL --out FOLDER` on labelled photographs, and"
        " serve FOLDER"
    )
