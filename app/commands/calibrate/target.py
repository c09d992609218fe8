"""The model folder that a calibration is written into."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from app import models
from app.calibration import Calibration, stored
from app.commands import training_images
from app.errors import CalibrationError, ModelError
from app.models import folder
from app.settings import Settings


class CalibrationFolder:
    """``out``, or the model's own folder if that is None. Raises CalibrationError and ModelError."""

    def __init__(self, settings: Settings, out: Path | None, images: Path) -> None:
        self._settings = settings
        spec = Path(models.check(settings))
        self._source = spec if folder.is_folder(spec) else None
        if out is None and self._source is None:
            raise CalibrationError("--out is needed: a calibration is stored in a model folder, which --model is not")
        self.out = out or spec
        self.in_place = self._source is not None and self.out.resolve() == self._source.resolve()
        if not self.in_place:
            folder.check_target(self.out)
        elif not os.access(self.out, os.W_OK):
            raise ModelError(f"{self.out} cannot be written; choose another folder with --out")
        if images.is_dir() and self.out.resolve().is_relative_to(images.resolve()):
            raise CalibrationError(f"--out {self.out} is inside {images}, where it would become a class")

    def write(self, calibrations: Mapping[str, Calibration]) -> None:
        """Write the model, if it is not there already, and the calibrations, beside those of other precisions.

        Raises ModelError.
        """
        known: Mapping[str, Calibration] = {}
        if self.in_place:
            known = folder.load(self.out).calibrations
        else:
            self._write_model()
        stored.write(self.out, folder.identity(self.out), {**known, **calibrations})

    def _write_model(self) -> None:
        if self._source is None:
            folder.write(models.resolve(self._settings), self.out)
            return
        try:
            shutil.copytree(self._source, self.out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(stored.FILE))
        except (OSError, shutil.Error) as error:
            raise ModelError(f"{self.out} cannot be written: {error}") from error


def seen_in_training(settings: Settings, files: tuple[Path, ...]) -> int:
    """How many of the files the model was trained on."""
    return training_images.count(Path(models.check(settings)), files)
