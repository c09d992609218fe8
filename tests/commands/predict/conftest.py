"""The tiny model, calibrated."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from app.calibration import Calibration, stored
from app.calibration.conformal import Regularisation
from app.models import folder
from tests import tiny

CALIBRATION = Calibration(
    created="2026-11-28T09:30:00+00:00",
    temperature=4.0,
    regularisation=Regularisation(0.01, 1),
    scores=np.linspace(0.5, 1, 99),
    energies=np.linspace(0, 200, 99),
)


def calibrate(path: Path, calibration: Calibration) -> tuple[str, str]:
    """Write a calibration into the folder of an uncalibrated model; returns the options that name it."""
    model = folder.load(path)
    identity = stored.Identity.of(model.digest, model.labels, model.preprocessing)
    stored.write(path, identity, dict.fromkeys(("float32", "bfloat16", "float16"), calibration))
    return "--model", str(path)


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """The options of ``topk`` for the tiny model with ``CALIBRATION``."""
    path = shutil.copytree(tiny.model()[1], tmp_path_factory.mktemp("calibrated") / tiny.NAME)
    return calibrate(path, CALIBRATION)
