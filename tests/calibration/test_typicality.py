"""The energy tells photographs from pictures that are none."""

import numpy as np
import pytest

from app.calibration import conformal, fit
from tests.calibration import pictures
from tests.calibration.figures import auroc
from tests.calibration.measured import measured

pytestmark = [pytest.mark.shared, pytest.mark.slow]


@pytest.mark.parametrize("kind", pictures.KINDS)
def test_generated_pictures_have_a_low_energy(kind: str) -> None:
    found = measured()
    photographs, others = fit.energies(found.photographs.logits), fit.energies(found.generated[kind].logits)
    assert auroc(photographs, others) > 0.95  # without the subtraction of the mean: 0.76 to 0.88


@pytest.mark.parametrize("kind", pictures.KINDS)
def test_most_generated_pictures_are_unknown(kind: str) -> None:
    found = measured()
    known = np.sort(fit.energies(found.photographs.logits))
    values = [conformal.p_value(known, one) for one in fit.energies(found.generated[kind].logits).tolist()]
    assert np.mean(np.array(values) <= 0.05) > 0.7
