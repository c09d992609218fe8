"""The digests of training images in a model folder."""

import hashlib
from pathlib import Path

import pytest

from app.commands import training_images
from app.errors import ModelError


def test_the_images_that_a_model_was_trained_on_are_counted(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("seen", "copy", "other", "gone")]
    for file, content in zip(files, (b"seen", b"seen", b"other"), strict=False):
        file.write_bytes(content)
    training_images.write(tmp_path, [hashlib.sha256(b"seen").digest(), hashlib.sha256(b"more").digest()])
    assert training_images.count(tmp_path, files) == 2
    assert (tmp_path / training_images.FILE).stat().st_size == 2 * 17


def test_a_copied_model_counts_the_same_images(tmp_path: Path) -> None:
    for name in ("model", "export", "untrained"):
        (tmp_path / name).mkdir()
    (tmp_path / "seen").write_bytes(b"seen")
    training_images.write(tmp_path / "model", [hashlib.sha256(b"seen").digest()])
    training_images.copy(tmp_path / "model", tmp_path / "export")
    assert training_images.count(tmp_path / "export", [tmp_path / "seen"]) == 1
    training_images.copy(tmp_path / "untrained", tmp_path / "export")
    assert training_images.count(tmp_path / "export", [tmp_path / "seen"]) == 1
    with pytest.raises(ModelError, match=r"cannot be copied to .*gone: No such file"):
        training_images.copy(tmp_path / "model", tmp_path / "gone")


def test_a_folder_that_does_not_say_counts_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert training_images.count(tmp_path, [tmp_path / "file"]) == 0
    (tmp_path / training_images.FILE).write_bytes(b"\xff")
    assert training_images.count(tmp_path, [tmp_path / "file"]) == 0
