"""Key-value pairs on disk."""

import sqlite3
from pathlib import Path

import pytest

from app.commands.store import Store, StoreError, StoreLocked


def test_what_was_put_is_found_again(tmp_path: Path) -> None:
    with Store(tmp_path / "folder" / "pairs.sqlite") as store:
        store.put(b"key", b"old")
        store.put(b"key", b"\0new")
    with Store(store.path) as store:
        assert store.get(b"key") == b"\0new"
        assert store.get(b"other") is None


def test_what_was_committed_is_there_without_an_orderly_end(tmp_path: Path) -> None:
    store = Store(tmp_path / "pairs.sqlite")
    store.put(b"committed", b"1")
    store.commit()
    store.put(b"pending", b"2")
    copy = tmp_path / "copy.sqlite"
    copy.write_bytes(store.path.read_bytes())
    with Store(copy) as other:
        assert other.get(b"committed") == b"1"
        assert other.get(b"pending") is None
    store.close()


@pytest.mark.parametrize("content", [b"", b"no database" * 100])
def test_a_damaged_file_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pairs.sqlite").write_bytes(content)
    with Store(tmp_path / "pairs.sqlite") as store:
        store.put(b"key", b"value")
    with Store(store.path) as store:
        assert store.get(b"key") == b"value"


def test_an_exclusive_store_belongs_to_one(tmp_path: Path) -> None:
    with Store(tmp_path / "pairs.sqlite", exclusive=True), pytest.raises(StoreLocked):
        Store(tmp_path / "pairs.sqlite", exclusive=True)
    with Store(tmp_path / "pairs.sqlite", exclusive=True) as store:
        store.delete()
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_another_process_writes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.commands.store.WAIT_S", 0.0)
    with Store(tmp_path / "pairs.sqlite") as store:
        other = sqlite3.connect(store.path)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="locked"):
            store.put(b"key", b"value")
        with pytest.raises(StoreError, match="locked"):
            store.get(b"key")
        other.close()


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"Not a directory|File exists"):
        Store(tmp_path / "file" / "pairs.sqlite")
    with pytest.raises(StoreError, match="unable to open"):
        Store(tmp_path)
