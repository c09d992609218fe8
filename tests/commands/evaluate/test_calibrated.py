"""The evaluation of a calibrated model uses its calibrated scores."""

import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from app import models
from app.calibration import Calibration, stored
from app.calibration.conformal import Regularisation
from app.commands.evaluate import report
from app.commands.evaluate.evaluation import Evaluation, EvaluationPlan, evaluated
from app.commands.evaluate.progress import EvaluationProgress
from app.models import folder
from app.settings import Settings
from tests import tiny
from tests.conftest import SHARED


def evaluate(images: Path, model: Path) -> Evaluation:
    settings = Settings(_env_file=None, model=str(model))
    with evaluated(EvaluationPlan(images), settings, EvaluationProgress(Console(stderr=True))) as found:
        return found


def calibrate(path: Path, temperature: float) -> None:
    model = folder.load(path)
    identity = stored.Identity.of(model.digest, model.labels, model.preprocessing)
    ascending = np.linspace(0.1, 1, 200)
    made = Calibration("2026-11-28T09:30:00+00:00", temperature, Regularisation(), ascending, ascending)
    stored.write(path, identity, dict.fromkeys(("float32", "bfloat16"), made))


def test_the_scores_are_the_calibrated_ones(pictures: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny.model()[1], tmp_path / "model"))
    before = evaluate(pictures, path)
    calibrate(path, 20.0)
    after = evaluate(pictures, path)
    assert (after.answers.class_ids[:, 0] == before.answers.class_ids[:, 0]).all()
    assert after.metrics.confidence < before.metrics.confidence
    assert before.as_dict()["calibration"] is None
    assert after.as_dict()["calibration"]["temperature"] == 20
    assert "on 200 images; logits divided by 20" in report.page(after, 10**7)


def test_an_interrupted_evaluation_of_another_int8_network_is_not_resumed(pictures: Path, tmp_path: Path) -> None:
    """Two quantisations of the same weights, in folders of the same name."""
    first, second = (tmp_path / name / "model" for name in ("first", "second"))
    for path, network in ((first, tiny.network()), (second, tiny.network(hidden=True))):
        path.mkdir(parents=True)
        tiny.write_int8(path, network)
    settings, progress = Settings(_env_file=None, model=str(first)), EvaluationProgress(Console(stderr=True))
    with suppress(KeyboardInterrupt), evaluated(EvaluationPlan(pictures), settings, progress):
        raise KeyboardInterrupt
    asked = [evaluate(pictures, path).answers.classified for path in (second, first)]
    assert asked == [7, 0]


@pytest.mark.slow
@pytest.mark.shared
def test_the_calibration_error_falls(tmp_path: Path) -> None:
    """0.675 is the temperature of the embedded model in a trial of these photographs."""
    path = tmp_path / "model"
    folder.write(models.resolve(Settings(_env_file=None, model="efficientnet_lite0")), path)
    before = evaluate(SHARED / "images" / "imagenet", path).metrics
    calibrate(path, 0.675)
    after = evaluate(SHARED / "images" / "imagenet", path).metrics
    assert before.top1 == after.top1
    assert before.ece > 0.1
    assert after.ece < 0.06
