"""A calibration goes with the model that `topk export` copies, unless the copy answers differently."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.calibration import stored
from app.models import folder
from tests import tiny
from tests.commands.runner import topk


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A copy of the tiny model, not calibrated."""
    return Path(shutil.copytree(tiny.model()[1], tmp_path / "target"))


def test_a_copy_of_the_model_keeps_its_calibration(target: Path) -> None:
    folder.copy_calibration(Path(tiny.calibrated()[1]), target)
    assert set(folder.load(target).calibrations) == set(tiny.PRECISIONS)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(digest="0" * 64),
        lambda document: document.update(precision="int8"),
        lambda document: document["preprocessing"].update(crop=192),
        lambda document: document["labels"].reverse(),
    ],
)
def test_another_model_gets_none(target: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = orjson.loads((target / "model.json").read_bytes())
    change(document)
    (target / "model.json").write_bytes(orjson.dumps(document))
    folder.copy_calibration(Path(tiny.calibrated()[1]), target)
    assert not (target / stored.FILE).exists()


def test_what_is_no_folder_has_none_to_copy(target: Path) -> None:
    folder.copy_calibration(Path("efficientnet_lite0"), target)
    folder.copy_calibration(Path(tiny.model()[1]), target)
    assert not (target / stored.FILE).exists()


@pytest.mark.slow
def test_an_export_of_a_calibrated_folder_is_calibrated(squeezenet_folder: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(squeezenet_folder, tmp_path / "source"))
    made = tiny.calibrate(source, "float32")
    ran = topk("export", source, "--out", tmp_path / "out", "--openvino-only")
    assert ran.returncode == 0, ran.stderr
    assert folder.load(tmp_path / "out").calibrations["float32"].temperature == made.temperature
