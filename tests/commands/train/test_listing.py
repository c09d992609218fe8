"""What a folder has to look like, and how plainly another one is refused."""

import os
from collections import Counter
from pathlib import Path
from unicodedata import normalize

import pytest

from app.commands.filenames import shorten
from app.commands.train import listing
from app.errors import TrainingError
from app.images.files import Skipped
from tests.names import HUMAN, forbidden, open_folder


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
    assert {name: len(files) for name, files in listed.files.items()} == {"cat": 1, "dog": 0}
    assert listed.skipped == Skipped(others=1, system=Counter({"Thumbs.db": 1}))


def test_files_beside_the_classes_are_counted(tmp_path: Path) -> None:
    assert listing.read(put(tmp_path, "cat/1.jpg", "README", "2.jpg", "desktop.ini", "._cat")).strays == 2


def test_a_class_may_be_a_link_to_a_folder(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/1.jpg", "in/cat/2.jpg")
    (tmp_path / "in" / "dog").symlink_to(tmp_path / "elsewhere")
    assert listing.read(tmp_path / "in").classes == ("cat", "dog")


def test_folders_that_links_in_a_class_lead_to_belong_to_it(tmp_path: Path) -> None:
    put(tmp_path, "store/2024/1.jpg", "store/2024/may/2.jpg", "in/cat/3.jpg", "in/dog/4.jpg", "only/5.jpg")
    (tmp_path / "in" / "cat" / "old").symlink_to("../../store/2024")
    (tmp_path / "in" / "cow").mkdir()
    (tmp_path / "in" / "cow" / "all").symlink_to(tmp_path / "only")
    (tmp_path / "in" / "dog" / "loop").symlink_to("..")
    (tmp_path / "in" / "loop").symlink_to(".")
    listed = listing.read(tmp_path / "in")
    names = {name: [path.name for path in paths] for name, paths in listed.files.items()}
    assert names == {"cat": ["3.jpg", "1.jpg", "2.jpg"], "cow": ["5.jpg"], "dog": ["4.jpg"]}
    assert listed.skipped == Skipped(loops=2)


def test_folders_of_operating_systems_are_no_classes(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "dog/2.jpg")
    put(tmp_path, "__MACOSX/cat/._1.jpg", "__MACOSX/dog/._2.jpg", "@eaDir/cat/1.jpg")
    listed = listing.read(tmp_path)
    assert {name: len(files) for name, files in listed.files.items()} == {"cat": 1, "dog": 1}
    assert listed.skipped == Skipped(system=Counter({"@eaDir": 2, "__MACOSX": 1}))


@HUMAN
def test_a_human_name_is_a_label_in_its_composed_form(tmp_path: Path, name: str) -> None:
    listed = listing.read(put(tmp_path, f"{name}/1.jpg", "Tea/2.jpg"))
    assert set(listed.classes) == {normalize("NFC", name), "Tea"}


def test_one_name_in_two_forms_is_one_class(tmp_path: Path) -> None:
    put(tmp_path, *(f"{normalize(form, 'Café')}/{form}.jpg" for form in ("NFC", "NFD")), "Tea/1.jpg")
    listed = listing.read(tmp_path)
    assert listed.classes == (normalize("NFC", "Café"), "Tea")
    assert [len(files) for files in listed.files.values()] == [2, 1]


def test_a_class_that_may_not_be_read_is_reported() -> None:
    with open_folder() as folder:
        put(folder, "cat/1.jpg", "dog/2.jpg")
        with forbidden(folder / "dog"):
            listed = listing.read(folder)
        assert {name: len(files) for name, files in listed.files.items()} == {"cat": 1, "dog": 0}
        assert listed.skipped == Skipped(unreadable={folder / "dog": "Permission denied"})
        with forbidden(folder), pytest.raises(TrainingError, match="cannot be read: Permission denied"):
            listing.read(folder)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "has no class folders: create one for each class"),
        (["1.jpg", "2.jpg"], "has no class folders: create one for each class; its 2 files have no class"),
        (["train/cat/1.jpg", "train/dog/2.jpg"], r"contains folders \(cat, dog\); .*train from .*train$"),
        (["cat/1.jpg", "cat/more/2.jpg", "dog/1.jpg"], r"the class folder .*cat contains folders \(more\)$"),
        (["bad\x1bname/1.jpg"], "cannot be a label"),
        (["bad\x85name/1.jpg"], "cannot be a label"),
        (["bad\nname/1.jpg"], "cannot be a label"),
        (["bad\u2028name/1.jpg"], "cannot be a label"),
        (["bad\u202ename/1.jpg"], "cannot be a label"),
        ([" cat/1.jpg"], "cannot be a label"),
        (["cat\u3000/1.jpg"], "cannot be a label"),
        ([os.fsdecode(b"\xff\xfe") + "/1.jpg"], "cannot be a label"),
    ],
    ids=["empty", "flat", "split", "nested", "ESC", "C1", "line", "separator", "order", "space", "wide", "no UTF-8"],
)
def test_other_folders_are_refused(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(TrainingError, match=words):
        listing.read(tmp_path)


def test_long_lists_are_cut() -> None:
    assert shorten("ab") == "a, b"
    assert shorten(map(str, range(12))) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, and 2 more"
