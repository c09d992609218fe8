"""Features on disk: a database for each backbone as it computes them, a row for each image's bytes.

What one run has computed, even an interrupted one, the next one finds. Only on the thread that opened it.
"""

import contextlib
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import structlog

Floats = npt.NDArray[np.float32]

log = structlog.get_logger(__name__)

_COMMIT = 64  # rows
_WAIT_S = 30.0  # for another process that writes


class Store:
    """Features by the SHA-256 of the image's bytes. Where it cannot be kept, it is empty and forgets."""

    def __init__(self, folder: Path, key: str) -> None:
        self._path = folder.expanduser() / "features" / f"{key}.sqlite"
        self._added = 0
        self._database: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self._path, timeout=_WAIT_S)
            self._database.execute("CREATE TABLE IF NOT EXISTS features (digest BLOB PRIMARY KEY, row BLOB NOT NULL)")
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._database:
            with contextlib.suppress(sqlite3.Error):
                self._database.commit()
            self._database.close()

    def get(self, digests: Iterable[bytes]) -> dict[bytes, Floats]:
        """The rows that are there."""
        found = {}
        try:
            for digest in digests if self._database else ():
                assert self._database
                for (row,) in self._database.execute("SELECT row FROM features WHERE digest = ?", (digest,)):
                    found[digest] = np.frombuffer(row, np.float32)
        except sqlite3.Error as error:
            self._give_up(error)
        return found

    def add(self, digest: bytes, row: Floats) -> None:
        if not self._database:
            return
        try:
            self._database.execute("INSERT OR REPLACE INTO features VALUES (?, ?)", (digest, row.tobytes()))
            self._added += 1
            if self._added % _COMMIT == 0:
                self._database.commit()
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        log.warning("features are not kept", file=str(self._path), reason=str(error))
        if self._database:
            self._database.close()
        self._database = None
