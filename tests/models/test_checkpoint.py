"""Checkpoints that would have to be unpickled: nothing of theirs runs unless they are trusted."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from app.errors import ModelError
from app.models import resolve, ultralytics
from app.settings import Settings
from tests.conftest import CAT, REPOSITORY, environment


class Hostile:
    """Unpickled, it makes a folder."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.made),)


@pytest.mark.parametrize("converted", [False, True])
def test_a_checkpoint_that_is_not_trusted_is_not_read(tmp_path: Path, converted: bool) -> None:
    torch.save({"model": Hostile(tmp_path / "made")}, tmp_path / "yolo11n-cls.pt")
    with pytest.raises(ModelError, match=r"runs any code .* If you trust it, set TOPK_TRUST_CHECKPOINT=true"):
        resolve(Settings(model=str(tmp_path / "yolo11n-cls.pt"), _env_file=None), converted)
    assert not (tmp_path / "made").exists()


def test_a_checkpoint_takes_no_other_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a checkpoint, which contains its weights"):
        resolve(Settings(model="yolo11n-cls.pt", weights=tmp_path, trust_checkpoint=True, _env_file=None))


def test_without_the_package_the_error_names_what_to_install() -> None:
    start = (
        "import sys, importlib.util as util; find = util.find_spec;"
        "util.find_spec = lambda name: None if name == 'ultralytics' else find(name);"
        "from app.commands.cli import main; main()"
    )
    command = [sys.executable, "-c", start, "predict", str(CAT), "--model", "yolo11n-cls.pt", "--trust-checkpoint"]
    ran = subprocess.run(
        command, cwd=REPOSITORY, env=environment() | {"COLUMNS": "200"}, capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert "the checkpoint yolo11n-cls.pt needs Ultralytics: pip install '.[ultralytics]'" in ran.stderr


def test_a_checkpoint_that_unpacks_to_more_than_it_is_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "yolo11n-cls.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(2**24))
    with pytest.raises(ModelError, match=r"yolo11n-cls\.pt unpacks to 16,777,216 bytes"):
        ultralytics.from_checkpoint(path)
