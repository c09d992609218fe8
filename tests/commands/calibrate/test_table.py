"""What `topk calibrate` says of a calibration."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from app.calibration import fit
from app.calibration.conformal import Regularisation
from app.commands.calibrate import figures
from app.commands.calibrate.run import Calibrated, Measured, remarks
from app.commands.calibrate.table import print_calibration
from tests.calibration import made

LOGITS, TRUTH = made.logits(60)
MEASURED = Measured("float32", fit.fit(LOGITS, TRUTH), figures.measure(LOGITS, TRUTH))


@pytest.mark.parametrize(
    ("regularisation", "line"),
    [
        (Regularisation(0.1, 1), "penalty 0.1 for each class beyond the first"),
        (Regularisation(0.02, 2), "penalty 0.02 for each class beyond the first 2"),
        (Regularisation(0.0, 3), "no penalty"),
    ],
)
def test_the_penalty_is_printed(regularisation: Regularisation, line: str) -> None:
    calibration = replace(MEASURED.calibration, regularisation=regularisation)
    file = StringIO()
    print_calibration(
        Calibrated((replace(MEASURED, calibration=calibration),), (), Path("out")), Console(file=file, width=100)
    )
    assert f"prediction sets: {line}\n" in file.getvalue()


def test_a_model_without_mistakes_needs_more_photographs_of_the_same_kind() -> None:
    best = LOGITS.argmax(axis=1)
    [remark] = remarks(Measured("float32", fit.fit(LOGITS, best), figures.measure(LOGITS, best)))
    assert remark == (
        "float32: the model makes no mistake on these photographs, so the temperature stays at 1; calibrate with more"
        " photographs of the kind that the service receives"
    )
