"""Folders and tables of images become class ids, or a sentence."""

from pathlib import Path
from unicodedata import normalize

import pytest

from app.commands.evaluate.read import find, read
from app.errors import EvaluationError
from app.imagenet.labels import Label, imagenet1k
from tests.names import HUMAN, forbidden, open_folder

LABELS = imagenet1k()


def folders(root: Path, *names: str, files: tuple[str, ...] = ("a.jpg",)) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for file in files:
            (root / name / file).write_bytes(b"x")
    return root


def test_folders_are_named_by_wnid_or_label_in_any_mixture(tmp_path: Path) -> None:
    root = folders(tmp_path, "n01440764", "goldfish", "Egyptian_cat", "TABBY")
    found = read(root, LABELS)
    names = {file.parent.name: LABELS[i].label for file, i in zip(found.files, found.truth.tolist(), strict=True)}
    assert names == {
        "n01440764": "tench",
        "goldfish": "goldfish",
        "Egyptian_cat": "Egyptian cat",
        "TABBY": "tabby",
    }
    assert found.notes == ()


def test_folders_are_named_by_index_where_no_name_is_a_label(tmp_path: Path) -> None:
    assert sorted(read(folders(tmp_path, "0", "999"), LABELS).truth) == [0, 999]


def test_a_number_that_is_a_label_is_that_label_with_a_note(tmp_path: Path) -> None:
    labels = (Label("7"), Label("1"), Label("0"))
    found = read(folders(tmp_path, "0", "1", "7"), labels)
    assert found.truth.tolist() == [2, 1, 0]
    assert found.notes == ("0: read as labels, not as class indices",)


def test_labels_that_differ_only_in_case_keep_their_meaning(tmp_path: Path) -> None:
    found = read(folders(tmp_path, "Cardigan", "cardigan"), LABELS)
    assert [LABELS[i].wnid for i in found.truth] == ["n02113186", "n02963159"]
    with pytest.raises(EvaluationError, match="CARDIGAN"):
        read(folders(tmp_path / "more", "CARDIGAN"), LABELS)


def test_names_of_no_class_are_listed_with_what_is_near(tmp_path: Path) -> None:
    root = folders(tmp_path, "goldfish", "fox terrier", "n02113625", "5")
    with pytest.raises(EvaluationError) as raised:
        read(root, LABELS)
    lines = raised.value.detail.splitlines()
    assert "3 names that match no class of the model" in lines[0]
    assert lines[1:] == [
        "  5",
        "  fox terrier (did you mean wire-haired fox terrier?)",
        "  n02113625 (did you mean n02113624, n02132136, n02117135?)",
    ]


def test_of_many_unknown_names_ten_are_listed(tmp_path: Path) -> None:
    root = folders(tmp_path, *(f"zz{i}" for i in range(13)))
    with pytest.raises(EvaluationError, match="and 3 more"):
        read(root, LABELS)


def test_files_below_and_beside_the_folders(tmp_path: Path) -> None:
    root = folders(tmp_path, "goldfish", "tench/deeper", ".cache", files=("b.jpg", "a.jpg", ".DS_Store"))
    (root / "notes.txt").write_text("x")
    (root / "goldfish" / "notes.txt").write_text("x")
    found = read(root, LABELS)
    assert [file.relative_to(root).as_posix() for file in found.files] == [
        "goldfish/a.jpg",
        "goldfish/b.jpg",
        "tench/deeper/a.jpg",
        "tench/deeper/b.jpg",
    ]
    assert [LABELS[i].label for i in found.truth] == ["goldfish", "goldfish", "tench", "tench"]
    assert found.notes == (
        "files next to the class folders have no class and are ignored",
        "skipped 1 file that is not an image, 2 system files and folders (.DS_Store)",
    )


def test_what_is_left_out_is_reported(tmp_path: Path) -> None:
    root = folders(tmp_path / "in", "goldfish", "__MACOSX/goldfish", "@eaDir/tench")
    folders(tmp_path / "store", "more")
    for name, target in {"old": "../../store/more", "loop": "..", "2023": "nowhere"}.items():
        (root / "goldfish" / name).symlink_to(target)
    (root / "Thumbs.db").touch()
    found = read(root, LABELS)
    assert [file.relative_to(root).as_posix() for file in found.files] == ["goldfish/a.jpg", "goldfish/old/a.jpg"]
    assert found.truth.tolist() == [1, 1]
    assert found.notes == (
        "skipped 3 system files and folders (@eaDir, Thumbs.db, __MACOSX), 1 link to a folder that contains it,"
        f" 1 broken link ({root}/goldfish/2023)",
    )


def test_folders_that_may_not_be_read_are_reported() -> None:
    with open_folder() as root:
        folders(root, "goldfish", "tench")
        with forbidden(root / "tench"):
            found = read(root, LABELS)
            assert found.notes == (f"could not read 1 file or folder: {root}/tench (Permission denied)",)
            assert found.truth.tolist() == [1]
        with (
            forbidden(root / "tench", root / "goldfish"),
            pytest.raises(EvaluationError, match=r"no folders with images; .*; could not read 2 files and folders: "),
        ):
            read(root, LABELS)
        with forbidden(root), pytest.raises(EvaluationError, match="cannot be read: Permission denied"):
            read(root, LABELS)


@HUMAN
@pytest.mark.parametrize(("label", "given"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_are_equal_in_either_form(tmp_path: Path, name: str, label: str, given: str) -> None:
    labels = (Label("Tea"), Label(normalize(label, name)))
    table = tmp_path / "list.csv"
    table.write_text(f"file,label\n1.jpg,{normalize(given, name)}\n", encoding="utf-8")
    assert read(table, labels).truth.tolist() == [1]
    assert read(folders(tmp_path / "in", normalize(given, name)), labels).truth.tolist() == [1]


@pytest.mark.parametrize("given", ["CRÈME BRÛLÉE", "crème_brûlée", "Crème\u202fBrûlée", "crème\u3000brûlée"])
def test_names_in_another_case_are_equal_in_either_form(tmp_path: Path, given: str) -> None:
    labels = (Label("Tea"), Label(normalize("NFD", "Crème brûlée")))
    for form in ("NFC", "NFD"):
        assert read(folders(tmp_path / form, normalize(form, given)), labels).truth.tolist() == [1]


@pytest.mark.parametrize(("written", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_table_names_files_in_either_form(tmp_path: Path, written: str, stored: str) -> None:
    there = tmp_path / normalize(stored, "Été") / normalize(stored, "crème.jpg")
    there.parent.mkdir()
    there.touch()
    table = tmp_path / "list.csv"
    table.write_text(f"file,label\n{normalize(written, 'Été/crème.jpg')},goldfish\nété.jpg,tench\n", encoding="utf-8")
    assert find(table).files == (there, tmp_path / "été.jpg")


def test_unknown_names_cannot_control_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError) as raised:
        read(folders(tmp_path, "a\x1b[2Jb\nc"), LABELS)
    assert raised.value.detail.splitlines()[1:] == ["  a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}c"]


def test_a_table_names_files_relative_to_itself(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text('\ufefffile,label,why\nx/1.jpg,goldfish,\n"/abs/2, b.jpg",n01440764,x\n', encoding="utf-8")
    found = read(table, LABELS)
    assert found.files == (tmp_path / "x/1.jpg", Path("/abs/2, b.jpg"))
    assert found.truth.tolist() == [1, 0]


def test_files_listed_twice_are_noted(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("file, label\na.jpg, goldfish\nb.jpg, tench\na.jpg, tench\n")
    found = find(table)
    assert found.names == ("goldfish", "tench", "tench")
    assert found.notes == ("1 file listed more than once, counted each time",)


def test_files_listed_twice_can_be_counted_once(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("file,label\na.jpg,goldfish\nb.jpg,tench\n./a.jpg,goldfish\na.jpg,goldfish\n")
    found = find(table, once=True)
    assert found.files == (tmp_path / "a.jpg", tmp_path / "b.jpg")
    assert found.names == ("goldfish", "tench")
    assert found.notes == ("1 file listed more than once, counted once",)


def test_a_file_that_is_to_count_once_has_one_label(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("file,label\na.jpg,goldfish\nb.jpg,tench\na.jpg,tench\n")
    with pytest.raises(EvaluationError, match=r"a\.jpg with the labels goldfish and tench; list it once"):
        find(table, once=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name,label\na,b\n", "header file,label"),
        (b"file;label\na;b\n", "got 'file;label'"),
        (b"file,label\na.jpg,goldfish\nb.jpg,  \n", "line 3"),
        (b"file,label\na\0.jpg,goldfish\n", "line 2"),
        (b"", "header file,label"),
        (b"file,label\n", "lists no files"),
        (b"file,label\na.jpg,goldfish\nb.jpg,\n", "line 3"),
        (b"file,label\n\xff.jpg,goldfish\n", "UTF-8"),
    ],
)
def test_a_file_that_is_not_a_table_is_one_plain_error(tmp_path: Path, content: bytes, words: str) -> None:
    table = tmp_path / "list.csv"
    table.write_bytes(content)
    with pytest.raises(EvaluationError, match=words):
        find(table)


def test_a_missing_folder_is_one_plain_error(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="no such folder or CSV file"):
        find(tmp_path / "none")
    (tmp_path / "goldfish").mkdir()
    with pytest.raises(EvaluationError, match="no folders with images"):
        find(tmp_path)
