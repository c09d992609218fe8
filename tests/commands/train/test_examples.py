"""The same bytes once, the unreadable ones left out, enough for each class."""

from pathlib import Path
from unicodedata import normalize

import pytest

from app.commands.train import examples, listing
from app.commands.train.examples import TrainingSet
from app.errors import TrainingError
from tests.commands.train.test_listing import put
from tests.names import forbidden, open_folder


def read(folder: Path) -> TrainingSet:
    listed = listing.read(folder)
    return examples.read(listed, listed.classes, lambda: None)


def numbered(name: str, count: int) -> list[str]:
    return [f"{name}/{i}.jpg" for i in range(count)]


def test_every_file_is_an_example_of_its_class(tmp_path: Path) -> None:
    found = read(put(tmp_path, "cat/1.jpg", "dog/1.jpg", "dog/2.jpg"))
    assert [(example.path.name, example.class_id) for example in found.found] == [
        ("1.jpg", 0),
        ("1.jpg", 1),
        ("2.jpg", 1),
    ]
    assert found.warnings == []


def test_the_same_bytes_count_once(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "dog/1.jpg")
    (tmp_path / "cat" / "copy.jpg").write_bytes((tmp_path / "cat" / "1.jpg").read_bytes())
    found = read(tmp_path)
    assert [example.path.name for example in found.found] == ["1.jpg", "1.jpg"]
    assert found.warnings == ["ignored 1 duplicate of images in the same class"]


def test_the_same_bytes_in_two_classes_count_in_neither(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "cat/2.jpg", "dog/1.jpg")
    (tmp_path / "dog" / "torn.jpg").write_bytes((tmp_path / "cat" / "2.jpg").read_bytes())
    found = read(tmp_path)
    assert [example.path.name for example in found.found] == ["1.jpg", "1.jpg"]
    assert len(found.warnings) == 1
    assert "cat/2.jpg" in found.warnings[0]
    assert "dog/torn.jpg" in found.warnings[0]


def test_what_is_no_file_is_unreadable(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "dog/1.jpg")
    (tmp_path / "cat" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    found = read(tmp_path)
    assert len(found.found) == 2
    assert found.unreadable == {tmp_path / "cat" / "gone.jpg": "no such file"}
    assert "ignored 1 unreadable file: " in str(examples.unreadable(found))


@pytest.mark.parametrize(
    ("names", "held_out", "words"),
    [
        (numbered("cat", 9), True, "there is only one class, cat"),
        ([*numbered("cat", 5), *numbered("dog", 5)], True, "each class needs 6 images .*; cat has 5, dog has 5$"),
        ([*numbered("cat", 9), *numbered("dog", 4)], False, "each class needs 5 images .*; dog has 4$"),
    ],
    ids=["one class", "ten images", "few beside --val"],
)
def test_too_little_is_refused(tmp_path: Path, names: list[str], held_out: bool, words: str) -> None:
    found = read(put(tmp_path, *names))
    with pytest.raises(TrainingError, match=words):
        examples.check(found, held_out)


def test_an_empty_class_is_refused(tmp_path: Path) -> None:
    put(tmp_path, *numbered("cat", 9))
    (tmp_path / "dog").mkdir()
    with pytest.raises(TrainingError, match=r"dog has none$"):
        examples.check(read(tmp_path), True)


def test_too_little_that_can_be_read_is_refused_with_a_reason(tmp_path: Path) -> None:
    found = read(put(tmp_path, *numbered("cat", 9), *numbered("dog", 9)))
    found.leave_out({tmp_path / "dog" / f"{i}.jpg": "it is truncated" for i in range(5)})
    with pytest.raises(TrainingError, match=r"dog has 4 and 5 that cannot be read; .*dog/0\.jpg: it is truncated$"):
        examples.check(found, True)


def test_the_error_explains_why_a_class_has_no_images_left(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        put(tmp_path, *numbered(name, 6))
        for path in (tmp_path / name).iterdir():
            path.write_bytes(b"the same")
    with pytest.raises(TrainingError, match="cat has none, dog has none; ignored images that are in several classes"):
        examples.check(read(tmp_path), True)


def test_enough_is_enough(tmp_path: Path) -> None:
    examples.check(read(put(tmp_path, *numbered("cat", 6), *numbered("dog", 6))), True)


def test_an_unreadable_folder_explains_why_a_class_is_empty() -> None:
    with open_folder() as folder:
        put(folder, *numbered("cat", 9), *numbered("dog", 9))
        with forbidden(folder / "dog"):
            found = read(folder)
        with pytest.raises(TrainingError, match=r"dog has none; could not read 1 file or folder: .*dog \(Permission"):
            examples.check(found, True)


def test_unreadable_files_behind_a_link_count_for_their_class(tmp_path: Path) -> None:
    put(tmp_path, *(f"in/{name}" for name in (*numbered("cat", 9), *numbered("dog", 3))))
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "in" / "dog" / "more").symlink_to(tmp_path / "store")
    with pytest.raises(TrainingError, match="dog has 3 and 1 that cannot be read"):
        examples.check(read(tmp_path / "in"), True)


@pytest.mark.parametrize(("trained", "val"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_a_class_is_the_same_in_both_folders_in_any_form(tmp_path: Path, trained: str, val: str) -> None:
    put(tmp_path, f"train/{normalize(trained, 'Crème')}/1.jpg", "train/Tea/2.jpg")
    put(tmp_path, f"val/{normalize(val, 'Crème')}/3.jpg")
    classes = listing.read(tmp_path / "train").classes
    found = examples.read(listing.read(tmp_path / "val"), classes, lambda: None)
    assert [(found.classes[example.class_id], example.path.name) for example in found.found] == [
        (normalize("NFC", "Crème"), "3.jpg")
    ]


def test_classes_that_are_not_trained_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "cow/1.jpg")
    with pytest.raises(TrainingError, match="has classes that the training folder does not have: cow"):
        examples.read(listing.read(tmp_path), ("cat", "dog"), lambda: None)
