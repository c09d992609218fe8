"""Key-value pairs in an SQLite file. Used only on the thread that opened it."""

import contextlib
import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Self

WAIT_S = 30.0
"""How long to wait while another process writes."""


class StoreError(Exception):
    """The file cannot be opened, read or written."""


class StoreLocked(StoreError):
    """Another process has the file."""


class Store:
    """Bytes by key. What was committed survives the death of the process.

    An ``exclusive`` store belongs to one process at a time. A damaged file is replaced by an empty store.
    """

    def __init__(self, path: Path, exclusive: bool = False) -> None:
        """Open the file, or create it. Raises StoreError, StoreLocked."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = self._open(exclusive)
        except sqlite3.OperationalError as error:
            raise _store_error(error) from error
        except sqlite3.DatabaseError:
            self._replace(exclusive)
        except OSError as error:
            raise StoreError(error.strerror or str(error)) from error

    def get(self, key: bytes) -> bytes | None:
        """The value of a key. Raises StoreError."""
        try:
            row = self._database.execute("SELECT value FROM pairs WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise _store_error(error) from error
        return None if row is None else row[0]

    def put(self, key: bytes, value: bytes) -> None:
        """Set the value of a key; ``commit`` makes it durable. Raises StoreError."""
        try:
            self._database.execute("INSERT OR REPLACE INTO pairs VALUES (?, ?)", (key, value))
        except sqlite3.Error as error:
            raise _store_error(error) from error

    def commit(self) -> None:
        """Write what was put. Raises StoreError."""
        try:
            self._database.commit()
        except sqlite3.Error as error:
            raise _store_error(error) from error

    def close(self) -> None:
        """Commit if possible, and close the file."""
        with contextlib.suppress(sqlite3.Error):
            self._database.commit()
        self._database.close()

    def delete(self) -> None:
        """Close the file and delete it."""
        self._database.close()
        self._unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _open(self, exclusive: bool) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=0 if exclusive else WAIT_S)
        try:
            # The operating system keeps written data if the process dies, so waiting for the disk is not necessary.
            database.execute("PRAGMA synchronous = OFF")
            if exclusive:
                database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("BEGIN IMMEDIATE")
            database.execute("CREATE TABLE IF NOT EXISTS pairs (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
            database.commit()
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _replace(self, exclusive: bool) -> None:
        try:
            self._unlink()
            self._database = self._open(exclusive)
        except sqlite3.Error as error:
            raise _store_error(error) from error
        except OSError as error:
            raise StoreError(error.strerror or str(error)) from error

    def _unlink(self) -> None:
        for suffix in ("", "-journal"):  # SQLite would apply an old journal to a new file
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)


def _store_error(error: sqlite3.Error) -> StoreError:
    locked = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
    return (StoreLocked if locked else StoreError)(str(error))
