"""The coverages in the figures of a calibration."""

import pytest

from app.commands.calibrate.figures import measure
from tests.calibration import made


@pytest.mark.parametrize(
    ("images", "coverages"), [(20, [0.9]), (23, [0.9]), (24, [0.9, 0.95]), (123, [0.9, 0.95]), (124, [0.9, 0.95, 0.99])]
)
def test_a_coverage_is_reported_only_if_every_fold_supports_it(images: int, coverages: list[float]) -> None:
    """With 23 photographs, 18 or 19 are outside a fold, and a coverage of 95 % needs 19."""
    covered = measure(*made.logits(images)).covered
    assert [one.coverage for one in covered] == coverages
