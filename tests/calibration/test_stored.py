"""calibration.json: written, read again, and refused if it is damaged or of another model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from app.calibration import Calibration, fit, stored
from app.calibration.stored import Identity
from app.errors import ModelError
from app.imagenet.labels import Label
from app.images import Preprocessing
from tests.calibration import made

LABELS = (Label("cat", "n02121808"), Label("dog", None))
PREPROCESSING = Preprocessing(256, 224, "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
MINE = Identity.of("ab" * 32, LABELS, PREPROCESSING)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return fit.fit(*made.logits(40, temperature=1.3), "2026-11-28T09:30:00+00:00")


@pytest.fixture
def folder(calibration: Calibration, tmp_path: Path) -> Path:
    stored.write(tmp_path, MINE, {"float32": calibration, "bfloat16": replace(calibration, temperature=2.0)})
    return tmp_path


def test_what_is_written_is_read(folder: Path, calibration: Calibration) -> None:
    found = stored.load(folder, MINE)
    assert list(found) == ["float32", "bfloat16"]
    assert found["bfloat16"].temperature == 2
    _same(found["float32"], calibration)
    assert [path.name for path in folder.iterdir()] == [stored.FILE]


def test_a_folder_without_the_file_has_no_calibration(tmp_path: Path) -> None:
    assert stored.load(tmp_path, MINE) == {}


def test_another_process_restores_a_calibration(calibration: Calibration) -> None:
    _same(stored.restore(orjson.loads(orjson.dumps(stored.dump(calibration)))), calibration)


@pytest.mark.parametrize(
    ("identity", "named"),
    [
        (Identity.of("cd" * 32, LABELS, PREPROCESSING), "other weights"),
        (Identity.of("ab" * 32, LABELS[::-1], PREPROCESSING), "other labels"),
        (Identity.of("ab" * 32, (LABELS[0], Label("dog", "n02084071")), PREPROCESSING), "other labels"),
        (Identity.of("ab" * 32, LABELS, replace(PREPROCESSING, crop=192)), "other preprocessing"),
        (Identity.of("ab" * 32, LABELS, PREPROCESSING, "ef" * 32), "another network"),
    ],
)
def test_a_calibration_of_another_model_is_refused(folder: Path, identity: Identity, named: str) -> None:
    with pytest.raises(ModelError, match=f"was measured with {named} than this model's; delete the file"):
        stored.load(folder, identity)


def _change(**changes: Any) -> Callable[[dict[str, Any]], None]:
    """Set members of the calibration in float32."""
    return lambda document: document["precisions"]["float32"].update(changes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_change(temperature=0), r"precisions\.float32\.temperature: Input should be greater than or equal to 0\.05"),
        (_change(temperature=21), r"temperature: Input should be less than or equal to 20"),
        (_change(temperature=None), r"temperature: Input should be a valid number"),
        (_change(penalty=-0.1), r"penalty: Input should be greater"),
        (_change(free=-1), r"free: Input should be greater"),
        (_change(scores=[0.5] * 19), r"scores: List should have at least 20 items"),
        (_change(scores=[None] * 40), r"scores: Input should be a valid number"),
        (_change(scores=[2.0, *[1.0] * 39]), r"must be ascending"),
        (_change(energies=[2.0, *[1.0] * 39]), r"must be ascending"),
        (_change(energies=[1.0] * 39), r"40 scores and 39 energies"),
        (_change(more=1), r"more: Extra inputs are not permitted"),
        (lambda document: document.update(format=2), r"format: Input should be 1"),
        (lambda document: document.update(precisions={}), r"precisions: Dictionary should have at least 1 item"),
        (lambda document: document.pop("labels"), r"labels: Field required"),
    ],
)
def test_a_wrong_number_is_refused(folder: Path, change: Callable[[dict[str, Any]], None], reason: str) -> None:
    document = orjson.loads((folder / stored.FILE).read_bytes())
    change(document)
    (folder / stored.FILE).write_bytes(orjson.dumps(document))
    with pytest.raises(ModelError, match=rf"calibration\.json is not a calibration: .*{reason}.*; delete it"):
        stored.load(folder, MINE)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"format": NaN}'])
def test_a_damaged_file_is_refused(folder: Path, content: bytes) -> None:
    (folder / stored.FILE).write_bytes(content)
    with pytest.raises(ModelError, match="is not a calibration"):
        stored.load(folder, MINE)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / stored.FILE).mkdir()
    with pytest.raises(ModelError, match=r"calibration\.json cannot be read: Is a directory"):
        stored.load(tmp_path, MINE)


def test_a_file_that_cannot_be_written_is_reported(calibration: Calibration, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"calibration\.json cannot be written: No such file"):
        stored.write(tmp_path / "absent", MINE, {"float32": calibration})


def _same(found: Calibration, expected: Calibration) -> None:
    for name in ("created", "temperature", "regularisation"):
        assert getattr(found, name) == getattr(expected, name)
    assert np.array_equal(found.scores, expected.scores)
    assert np.array_equal(found.energies, expected.energies)
