"""Image files in folders."""

import os
from pathlib import Path

import pytest

from app.images.files import find_images, only_images
from tests.conftest import CAT


def test_images_are_found_at_any_depth_and_other_files_are_counted(tmp_path: Path) -> None:
    (tmp_path / "b" / "deeper").mkdir(parents=True)
    for name in ("b/deeper/1.JPG", "a.png", "b/2.webp"):
        (tmp_path / name).touch()
    (tmp_path / "photograph").write_bytes(CAT.read_bytes())
    (tmp_path / "b" / "notes.txt").write_text("no picture")
    (tmp_path / "Thumbs.db").touch()
    found = find_images(tmp_path)
    names = [path.relative_to(tmp_path).as_posix() for path in found.paths]
    assert names == ["a.png", "b/2.webp", "b/deeper/1.JPG", "photograph"]
    assert found.others == 2


def test_hidden_files_and_folders_are_ignored(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "1.jpg").touch()
    (tmp_path / ".2.jpg").touch()
    assert find_images(tmp_path) == ((), 0)


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert only_images([tmp_path / "pipe", tmp_path / "gone"]) == ((), 2)


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find_images(tmp_path / "none")
