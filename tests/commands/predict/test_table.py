"""Sets and typicality of ``topk predict``, as text."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.calibration.conformal import Regularisation
from tests import tiny
from tests.commands.predict.conftest import CALIBRATION, calibrate
from tests.commands.runner import topk
from tests.conftest import CAT

ROW = re.compile(r"^\W*0\.\d{4} +[│|] +(\*?) +[│|]", re.MULTILINE)
SUMMARY = re.compile(r"^(\d+) % set: (\d+) class(?:es)?(.*); typicality (\S+)$", re.MULTILINE)


def summary(printed: str) -> tuple[str, ...]:
    found = SUMMARY.search(printed)
    assert found, printed
    return found.groups()


def test_the_classes_of_the_set_are_marked(calibrated: tuple[str, str]) -> None:
    printed = topk("predict", CAT, *calibrated, "--coverage", "0.6", "--top-k", "9").stdout
    coverage, count, cut, _ = summary(printed)
    assert (coverage, cut) == ("60", "")
    assert ROW.findall(printed) == ["*"] * int(count) + [""] * (9 - int(count))
    assert "unknown" not in printed


def test_classes_beyond_the_first_few_are_shown_if_they_are_in_the_set(calibrated: tuple[str, str]) -> None:
    printed = topk("predict", CAT, *calibrated, "--coverage", "0.95", "--top-k", "1").stdout
    _, count, _, _ = summary(printed)
    assert ROW.findall(printed) == ["*"] * int(count)
    assert int(count) > 1


@pytest.mark.slow
def test_a_large_set_is_cut(tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny.model()[1], tmp_path / "model"))
    everything = replace(CALIBRATION, regularisation=Regularisation(), scores=np.full(99, 2.0))
    printed = topk("predict", CAT, *calibrate(path, everything), "--coverage", "0.9").stdout
    assert summary(printed)[1:3] == ("1000", ", the first 20 of them shown")
    assert ROW.findall(printed) == ["*"] * 20


def test_an_unknown_image_is_called_unknown(tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny.model()[1], tmp_path / "model"))
    typical = replace(CALIBRATION, energies=np.linspace(1e6, 2e6, 99))
    printed = topk("predict", CAT, *calibrate(path, typical), "--unknown", "0.05").stdout
    assert "\ntypicality 0.01\nunknown: the typicality is at most 0.05\n" in printed
    assert "set" not in printed
