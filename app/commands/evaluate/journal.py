"""The outcomes so far, on disk, so that an interrupted run can resume.

A file counts as unchanged while its size and modification time are the same.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple, Self

from app.commands.evaluate.source import TopClasses, Unreadable
from app.commands.store import Store, StoreError, StoreLocked
from app.errors import EvaluationError

_FORMAT = 2
ImageOutcome = TopClasses | Unreadable


class Stamp(NamedTuple):
    """A file as it was read: size in bytes, and modification time in nanoseconds."""

    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Raises OSError."""
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns)


class Journal:
    """Outcomes by file. One process at a time can open the journal of a ``subject``.

    ``subject`` names everything that the outcomes depend on, except the files.
    """

    def __init__(self, folder: Path, subject: dict[str, Any]) -> None:
        """Open the journal, or create it. Raises EvaluationError."""
        identity = json.dumps({"format": _FORMAT, **subject}, sort_keys=True).encode()
        self.path = folder / f"{hashlib.sha256(identity).hexdigest()[:32]}.sqlite"
        try:
            self._store = Store(self.path, exclusive=True)
        except StoreLocked:
            raise EvaluationError("the same evaluation is already running; wait for it, or stop it") from None
        except StoreError as error:
            raise EvaluationError(f"{self.path} cannot be written: {error}") from error

    def get(self, file: Path, stamp: Stamp) -> ImageOutcome | None:
        """The outcome of a file, or None if there is none or the file has changed. Raises EvaluationError."""
        try:
            value = self._store.get(_key(file))
        except StoreError as error:
            raise EvaluationError(f"{self.path} cannot be read: {error}; delete it") from error
        if value is None:
            return None
        size, changed, first, second = json.loads(value)
        if Stamp(size, changed) != stamp:
            return None
        return Unreadable(first, second) if isinstance(first, str) else TopClasses(tuple(first), tuple(second))

    def add(self, file: Path, stamp: Stamp, outcome: ImageOutcome) -> None:
        """Write an outcome. It survives the death of the process once this returns. Raises EvaluationError."""
        members = outcome if isinstance(outcome, TopClasses) else (outcome.code, outcome.detail)
        try:
            self._store.put(_key(file), json.dumps([*stamp, *members]).encode())
            self._store.commit()
        except StoreError as error:
            raise EvaluationError(f"{self.path} cannot be written: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Delete the journal if the run has succeeded; else keep it for the next run."""
        if kind is None:
            self._store.delete()
        else:
            self._store.close()


def _key(file: Path) -> bytes:
    return os.fsencode(os.path.abspath(file))
