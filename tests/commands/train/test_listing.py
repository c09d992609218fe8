"""What a folder has to look like, and how plainly another one is refused."""

import os
from pathlib import Path

import pytest

from app.commands.train import listing
from app.errors import TrainingError


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def test_classes_are_folders_in_the_order_of_their_names(tmp_path: Path) -> None:
    listed = listing.read(put(tmp_path, "dog/b.jpg", "cat/1.jpg", "dog/a.jpg", "Cat/2.jpg"))
    assert listed.classes == ("Cat", "cat", "dog")
    assert [path.name for path in listed.files["dog"]] == ["a.jpg", "b.jpg"]


def test_what_is_hidden_is_not_seen(tmp_path: Path) -> None:
    listed = listing.read(put(tmp_path, "cat/1.jpg", "cat/.DS_Store", ".git/config", ".hidden", "cat/.thumbs/1.jpg"))
    assert {name: len(files) for name, files in listed.files.items()} == {"cat": 1}
    assert listed.strays == 0


def test_files_that_are_not_images_are_counted(tmp_path: Path) -> None:
    listed = listing.read(put(tmp_path, "cat/1.jpg", "cat/notes.txt", "dog/Thumbs.db"))
    assert ({name: len(files) for name, files in listed.files.items()}, listed.others) == ({"cat": 1, "dog": 0}, 2)


def test_files_beside_the_classes_are_counted(tmp_path: Path) -> None:
    assert listing.read(put(tmp_path, "cat/1.jpg", "README", "2.jpg")).strays == 2


def test_a_class_may_be_a_link_to_a_folder(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/1.jpg", "in/cat/2.jpg")
    (tmp_path / "in" / "dog").symlink_to(tmp_path / "elsewhere")
    assert listing.read(tmp_path / "in").classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "has no class folders: create one for each class"),
        (["1.jpg", "2.jpg"], "has no class folders: create one for each class; its 2 files have no class"),
        (["train/cat/1.jpg", "train/dog/2.jpg"], r"contains folders \(cat, dog\); .*train from .*train$"),
        (["cat/1.jpg", "cat/more/2.jpg", "dog/1.jpg"], r"the class folder .*cat contains folders \(more\)$"),
        (["bad\x1bname/1.jpg"], "cannot be a label"),
        ([" cat/1.jpg"], "cannot be a label"),
        ([os.fsdecode(b"\xff\xfe") + "/1.jpg"], "cannot be a label"),
    ],
    ids=["empty", "flat", "split", "nested", "control", "space", "no UTF-8"],
)
def test_other_folders_are_refused(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(TrainingError, match=words):
        listing.read(tmp_path)


def test_long_lists_are_cut() -> None:
    assert listing.shorten("ab") == "a, b"
    assert listing.shorten(map(str, range(12))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, and 2 more"
