"""What a number of images supports."""

import numpy as np
import pytest

from app.calibration import Calibration
from app.calibration.conformal import Regularisation


def _of(images: int) -> Calibration:
    ascending = np.linspace(0, 1, images)
    return Calibration("", 1.0, Regularisation(0.1, 1), ascending, ascending)


@pytest.mark.parametrize("images", [20, 99, 200, 50_000])
def test_the_limits_that_are_reported_are_supported(images: int) -> None:
    one = _of(images)
    one.check_coverage(one.most_coverage)
    one.check_unknown(one.least_unknown)
    assert one.typicality(-1.0) == one.least_unknown


def test_a_larger_coverage_is_refused_with_the_limit() -> None:
    _of(99).check_coverage(0.99)
    with pytest.raises(ValueError, match=r"coverage must be at most 0\.99, because .* on 99 images, got 0\.991"):
        _of(99).check_coverage(0.991)
    with pytest.raises(ValueError, match=r"at most 0\.989898, .* got 0\.99"):
        _of(98).check_coverage(0.99)


def test_a_smaller_unknown_is_refused_with_the_limit() -> None:
    _of(99).check_unknown(0.01)
    with pytest.raises(ValueError, match=r"unknown must be at least 0\.01, because .* on 99 images, got 0\.009"):
        _of(99).check_unknown(0.009)


def test_the_limit_in_a_refusal_is_supported() -> None:
    """It is rounded to six digits, to the safe side."""
    for images in range(20, 400):
        one = _of(images)
        one.check_coverage(float(_refused(one.check_coverage, 0.9999).split("most ")[1].split(",")[0]))
        one.check_unknown(float(_refused(one.check_unknown, 0.0001).split("least ")[1].split(",")[0]))


def _refused(check: object, value: float) -> str:
    with pytest.raises(ValueError, match="must be at") as error:
        check(value)  # type: ignore[operator]
    return str(error.value)
