"""What an interrupted run leaves, whole or torn."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from app.commands.evaluate.journal import Journal, Stamp
from app.commands.evaluate.source import Answer, Unreadable
from app.errors import EvaluationError

ANSWER = Answer((3, 1), (0.7000000476837158, 0.1))
SUBJECT = {"digest": "sha256:1", "precision": "float32", "preprocessing": {"mean": (0.5, 0.5, 0.5)}}


def left(folder: Path, *files: Path) -> Path:
    """A journal's path after a run that was interrupted when these were answered."""
    with suppress(KeyboardInterrupt), Journal(folder, SUBJECT) as journal:
        for file in files:
            journal.add(file, Stamp.of(file), ANSWER)
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
        journal.add(file, Stamp.of(file), ANSWER)
        journal.add(other, Stamp.of(other), Unreadable("undecodable_image", "broken"))
        raise KeyboardInterrupt
    with Journal(tmp_path, SUBJECT) as journal:
        assert journal.get(file, Stamp.of(file)) == ANSWER
        why = journal.get(other, Stamp.of(other))
        assert isinstance(why, Unreadable)
        assert (why.code, why.detail) == ("undecodable_image", "broken")


def test_a_run_that_ends_leaves_nothing(tmp_path: Path, file: Path) -> None:
    path = left(tmp_path, file)
    assert path.exists()
    with Journal(tmp_path, SUBJECT):
        pass
    assert not path.exists()


def test_a_changed_file_is_another(tmp_path: Path, file: Path) -> None:
    before = Stamp.of(file)
    left(tmp_path, file)
    file.write_bytes(b"longer")
    with Journal(tmp_path, SUBJECT) as journal:
        assert journal.get(file, Stamp.of(file)) is None
        assert journal.get(file, before._replace(changed=before.changed + 1)) is None
        assert journal.get(file, before) == ANSWER


def test_another_model_or_setting_never_mixes(tmp_path: Path, file: Path) -> None:
    left(tmp_path, file)
    for other in ({"digest": "sha256:2"}, {"precision": "bfloat16"}):
        with Journal(tmp_path, SUBJECT | other) as journal:
            assert journal.get(file, Stamp.of(file)) is None


@pytest.mark.parametrize("torn", [b'["half', b'["/a", 1, 2, [1], [0.5]]', b"\x00\x00\n", b"[1]\n", b"{}\n"])
def test_a_torn_line_is_cut_off_and_the_rest_holds(tmp_path: Path, file: Path, torn: bytes) -> None:
    path = left(tmp_path, file)
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    left(tmp_path)
    assert path.read_bytes() == whole
    with Journal(tmp_path, SUBJECT) as journal:
        assert journal.get(file, Stamp.of(file)) == ANSWER


@pytest.mark.parametrize("content", [b"", b'{"form', b"{}\n", b"[1]\n", b"null\n"])
def test_a_journal_of_nothing_known_begins_anew(tmp_path: Path, file: Path, content: bytes) -> None:
    path = left(tmp_path, file)
    path.write_bytes(content)
    left(tmp_path, file)
    with Journal(tmp_path, SUBJECT) as journal:
        assert len(journal) == 1


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    with Journal(tmp_path, SUBJECT), pytest.raises(EvaluationError, match="already running"):
        Journal(tmp_path, SUBJECT)


def test_a_folder_that_cannot_be_written_is_said_in_a_sentence(tmp_path: Path, file: Path) -> None:
    with pytest.raises(EvaluationError, match="cannot be written"):
        Journal(file, SUBJECT)
