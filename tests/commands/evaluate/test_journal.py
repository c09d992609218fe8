"""The journal of an interrupted run, whole or damaged."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from app.commands.evaluate.journal import Journal, Stamp
from app.commands.evaluate.source import TopClasses, Unreadable
from app.errors import EvaluationError

TOP = TopClasses((3, 1), (0.7000000476837158, 0.1))
SUBJECT = {"digest": "sha256:1", "precision": "float32", "preprocessing": {"mean": (0.5, 0.5, 0.5)}}


def left(folder: Path, *files: Path) -> Path:
    """The path of the journal after a run that was interrupted when these files were done."""
    with suppress(KeyboardInterrupt), Journal(folder, SUBJECT) as journal:
        for file in files:
            journal.add(file, Stamp.of(file), TOP)
        raise KeyboardInterrupt
    return journal.path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / os.fsdecode(b"odd \xff\n name.jpg")
    path.write_bytes(b"one")
    return path


def test_what_was_added_is_found_again(tmp_path: Path, file: Path) -> None:
    other = tmp_path / "broken.jpg"
    other.write_bytes(b"two")
    with suppress(KeyboardInterrupt), Journal(tmp_path, SUBJECT) as journal:
        journal.add(file, Stamp.of(file), TOP)
        journal.add(other, Stamp.of(other), Unreadable("undecodable_image", "broken"))
        raise KeyboardInterrupt
    with Journal(tmp_path, SUBJECT) as journal:
        assert journal.get(file, Stamp.of(file)) == TOP
        why = journal.get(other, Stamp.of(other))
        assert isinstance(why, Unreadable)
        assert (why.code, why.detail) == ("undecodable_image", "broken")


def test_a_run_that_ends_leaves_nothing(tmp_path: Path, file: Path) -> None:
    folder = tmp_path / "journals"
    assert left(folder, file).exists()
    with Journal(folder, SUBJECT):
        pass
    assert list(folder.iterdir()) == []


def test_a_changed_file_has_no_outcome(tmp_path: Path, file: Path) -> None:
    before = Stamp.of(file)
    left(tmp_path, file)
    file.write_bytes(b"longer")
    with Journal(tmp_path, SUBJECT) as journal:
        assert journal.get(file, Stamp.of(file)) is None
        assert journal.get(file, before._replace(changed=before.changed + 1)) is None
        assert journal.get(file, before) == TOP


def test_another_model_or_setting_has_its_own_journal(tmp_path: Path, file: Path) -> None:
    left(tmp_path, file)
    for other in ({"digest": "sha256:2"}, {"precision": "bfloat16"}):
        with Journal(tmp_path, SUBJECT | other) as journal:
            assert journal.get(file, Stamp.of(file)) is None


def test_an_outcome_is_on_disk_at_once(tmp_path: Path, file: Path) -> None:
    """A copy of the files is what a killed process leaves."""
    folder, copy = tmp_path / "journals", tmp_path / "copy"
    copy.mkdir()
    with suppress(KeyboardInterrupt), Journal(folder, SUBJECT) as journal:
        journal.add(file, Stamp.of(file), TOP)
        for path in folder.iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        raise KeyboardInterrupt
    with Journal(copy, SUBJECT) as journal:
        assert journal.get(file, Stamp.of(file)) == TOP


@pytest.mark.parametrize("content", [b"", b"torn" * 1000, b'{"form', b"\0\0\n", b"SQLite format 3\0"])
def test_a_damaged_journal_begins_anew(tmp_path: Path, file: Path, content: bytes) -> None:
    path = left(tmp_path, file)
    path.write_bytes(content)
    with suppress(KeyboardInterrupt), Journal(tmp_path, SUBJECT) as journal:
        assert journal.get(file, Stamp.of(file)) is None
        journal.add(file, Stamp.of(file), TOP)
        raise KeyboardInterrupt
    with Journal(tmp_path, SUBJECT) as journal:
        assert journal.get(file, Stamp.of(file)) == TOP


def test_a_torn_end_is_no_reason_to_fail(tmp_path: Path, file: Path) -> None:
    path = left(tmp_path, file)
    path.write_bytes(path.read_bytes()[:-100])
    with Journal(tmp_path, SUBJECT) as journal, suppress(EvaluationError):
        assert journal.get(file, Stamp.of(file)) in (None, TOP)


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path, SUBJECT), pytest.raises(EvaluationError, match="already running"):
        Journal(tmp_path, SUBJECT)


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, file: Path) -> None:
    with pytest.raises(EvaluationError, match="cannot be written"):
        Journal(file, SUBJECT)
