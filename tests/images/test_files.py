"""Image files in folders."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.images.files import Skipped, find_images
from tests.conftest import CAT
from tests.names import forbidden, open_folder


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find_images(folder).paths]


@pytest.fixture
def public() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


def test_images_are_found_at_any_depth_and_other_files_are_counted(tmp_path: Path) -> None:
    put(tmp_path, "b/deeper/1.JPG", "a.png", "b/2.webp", "b/empty")
    (tmp_path / "photograph").write_bytes(CAT.read_bytes())
    (tmp_path / "b" / "notes.txt").write_text("no picture")
    assert found(tmp_path) == ["a.png", "b/2.webp", "b/deeper/1.JPG", "photograph"]
    assert find_images(tmp_path).skipped == Skipped(others=2)


def test_hidden_files_and_folders_are_ignored(tmp_path: Path) -> None:
    assert find_images(put(tmp_path, ".cache/1.jpg", ".2.jpg")) == ((), Skipped())


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert find_images(tmp_path) == ((), Skipped(others=1))


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find_images(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "counted"),
    [
        ("__MACOSX/cat/._1.jpg", "__MACOSX"),
        ("cat/._1.jpg", "._*"),
        (".DS_Store", ".DS_Store"),
        ("cat/Icon\r", "Icon\r"),
        (".AppleDouble/1.jpg", ".AppleDouble"),
        ("cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "@eaDir"),
        ("#recycle/1.jpg", "#recycle"),
        ("@Recycle/1.jpg", "@Recycle"),
        (".@__thumb/1.jpg", ".@__thumb"),
        ("cat/Thumbs.db", "Thumbs.db"),
        ("THUMBS.DB", "THUMBS.DB"),
        ("cat/desktop.ini", "desktop.ini"),
        ("Desktop.ini", "Desktop.ini"),
        ("$RECYCLE.BIN/$R1.jpg", "$RECYCLE.BIN"),
        ("System Volume Information/1.jpg", "System Volume Information"),
        ("lost+found/1.jpg", "lost+found"),
        (".Trash-1000/files/1.jpg", ".Trash-*"),
    ],
)
def test_files_of_operating_systems_are_recognised(tmp_path: Path, name: str, counted: str) -> None:
    put(tmp_path, "cat/1.jpg", name)
    assert found(tmp_path) == ["cat/1.jpg"]
    assert find_images(tmp_path).skipped == Skipped(system={counted: 1})  # type: ignore[arg-type]


def test_a_named_folder_is_read_whatever_its_name(tmp_path: Path) -> None:
    assert found(put(tmp_path / "@eaDir", "1.jpg")) == ["1.jpg"]


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    put(tmp_path, "store/2024/a.jpg", "store/2024/deep/b.jpg", "in/1.jpg", "chain/c.jpg")
    (tmp_path / "store" / "2024" / "on").symlink_to(tmp_path / "chain")
    (tmp_path / "in" / "old").symlink_to("../store/2024")
    (tmp_path / "again").symlink_to(tmp_path / "in")
    assert found(tmp_path / "again") == ["1.jpg", "old/a.jpg", "old/deep/b.jpg", "old/on/c.jpg"]
    assert find_images(tmp_path / "in").skipped == Skipped()


@pytest.mark.parametrize("target", [".", "..", "../..", "/"])
def test_a_link_to_a_folder_that_contains_it_is_not_followed(tmp_path: Path, target: str) -> None:
    put(tmp_path, "in/cat/1.jpg", "2.jpg", "in/3.jpg")
    (tmp_path / "in" / "cat" / "up").symlink_to(target)
    assert found(tmp_path / "in" / "cat") == ["1.jpg"]
    assert find_images(tmp_path / "in" / "cat").skipped == Skipped(loops=1)


def test_a_linked_folder_may_lead_back(tmp_path: Path) -> None:
    put(tmp_path, "in/cat/1.jpg", "in/dog/2.jpg", "store/3.jpg")
    (tmp_path / "in" / "cat" / "store").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "back").symlink_to(tmp_path / "in")
    assert found(tmp_path / "in" / "cat") == ["1.jpg", "store/3.jpg"]
    assert find_images(tmp_path / "in" / "cat").skipped == Skipped(loops=1)


def test_folders_that_lead_to_one_another_are_read_once(tmp_path: Path) -> None:
    names = [f"{i}" for i in range(9)]
    for name in names:
        put(tmp_path, f"store/{name}/{name}.jpg")
        for other in set(names) - {name}:
            (tmp_path / "store" / name / f"to-{other}").symlink_to(f"../{other}")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "first").symlink_to("../store/0")
    images = find_images(tmp_path / "in")
    assert sorted(path.name for path in images.paths) == [f"{name}.jpg" for name in names]
    assert images.skipped.loops + images.skipped.repeated == 9 * 8 - 8


def test_a_link_to_a_folder_in_the_same_tree_adds_nothing(tmp_path: Path) -> None:
    put(tmp_path, "z/1.jpg")
    (tmp_path / "a").symlink_to("z")
    assert found(tmp_path) == ["z/1.jpg"]
    assert find_images(tmp_path).skipped == Skipped(repeated=1)


def test_broken_links_are_recorded(tmp_path: Path) -> None:
    (tmp_path / "2024").symlink_to("gone")
    (tmp_path / "gone.jpg").symlink_to("gone")  # reading it gives the reason
    assert found(tmp_path) == ["gone.jpg"]
    assert find_images(tmp_path).skipped == Skipped(broken=[tmp_path / "2024"])
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    assert find_images(tmp_path).skipped.unreadable.keys() == {tmp_path / "one", tmp_path / "two"}


def test_folders_that_may_not_be_read_are_recorded(public: Path) -> None:
    put(public, "cat/1.jpg", "cat/secret/2.jpg", "dog/3.jpg")
    secret = public / "cat" / "secret"
    (public / "dog" / "link").symlink_to(secret)
    with forbidden(secret):
        assert found(public) == ["cat/1.jpg", "dog/3.jpg"]
        assert find_images(public).skipped == Skipped(repeated=1, unreadable={secret: "Permission denied"})
        with pytest.raises(PermissionError):
            find_images(secret)


def test_a_folder_whose_files_may_not_be_opened_is_not_silent(public: Path) -> None:
    put(public, "cat/1.jpg", "cat/photograph", "cat/below/2.jpg")
    (public / "cat" / "link").symlink_to("below")
    cat = public / "cat"
    with forbidden(cat, mode=0o444):
        images = find_images(public)
    assert images.paths == (cat / "1.jpg",)  # reading it gives the reason
    assert images.skipped.unreadable.keys() == {cat / "photograph", cat / "below", cat / "link"}
