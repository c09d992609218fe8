"""Features on disk: one file for each backbone and configuration, one row for each image's bytes.

A later run reuses what an earlier one has computed, even an interrupted one. Used only on the thread that opened it.
"""

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import structlog

from app.commands.store import Store, StoreError

Floats = npt.NDArray[np.float32]

log = structlog.get_logger(__name__)

_COMMIT = 64  # rows


class FeatureStore:
    """Features by the SHA-256 of the image's bytes. If the file cannot be used, it logs a warning and stays empty."""

    def __init__(self, folder: Path, key: str) -> None:
        self._path = folder.expanduser() / "features" / f"{key}.sqlite"
        self._added = 0
        self._store: Store | None = None

    def __enter__(self) -> Self:
        try:
            self._store = Store(self._path)
        except StoreError as error:
            self._give_up(error)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._store:
            self._store.close()

    def get(self, digests: Iterable[bytes]) -> dict[bytes, Floats]:
        """The stored rows of these images."""
        found = {}
        try:
            for digest in digests if self._store else ():
                assert self._store
                if (row := self._store.get(digest)) is not None:
                    found[digest] = np.frombuffer(row, np.float32)
        except StoreError as error:
            self._give_up(error)
        return found

    def add(self, digest: bytes, row: Floats) -> None:
        """Store a row."""
        if not self._store:
            return
        try:
            self._store.put(digest, row.tobytes())
            self._added += 1
            if self._added % _COMMIT == 0:
                self._store.commit()
        except StoreError as error:
            self._give_up(error)

    def delete(self) -> None:
        """Close the file and delete it."""
        if self._store:
            self._store.delete()

    def _give_up(self, error: Exception) -> None:
        log.warning("features are not stored", file=str(self._path), reason=str(error))
        if self._store:
            self._store.close()
        self._store = None
