"""What has been answered so far, on disk: an interrupted run goes on from there.

One JSON line an image, after a line that says of what. A file stands for itself as long as its size and its time of
change are the same. The last line of a killed process may be torn; it is cut off.
"""

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple, Self

from app.commands.evaluate.source import Answer, Unreadable
from app.errors import EvaluationError

_FORMAT = 1
Outcome = Answer | Unreadable


class Stamp(NamedTuple):
    """A file as it was read: size in bytes, and nanoseconds of its last change."""

    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Raises OSError."""
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns)


class Journal:
    """Outcomes of ``subject``, which names all that they depend on but the files. One process has it at a time."""

    def __init__(self, folder: Path, subject: dict[str, Any]) -> None:
        """Open it, or begin it. Raises EvaluationError."""
        self._first = json.dumps({"format": _FORMAT, **subject}, sort_keys=True).encode() + b"\n"
        name = hashlib.sha256(self._first).hexdigest()[:32]
        self.path = folder / f"{name}.jsonl"
        self._found: dict[str, tuple[Stamp, Outcome]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise EvaluationError("the same evaluation is already running") from None
            self._load()
        except OSError as error:
            raise EvaluationError(f"{self.path} cannot be written: {error.strerror}") from error

    def __len__(self) -> int:
        return len(self._found)

    def get(self, file: Path, stamp: Stamp) -> Outcome | None:
        """What was found of this file, if it is still the same."""
        was, outcome = self._found.get(os.path.abspath(file), (None, None))
        return outcome if was == stamp else None

    def add(self, file: Path, stamp: Stamp, outcome: Outcome) -> None:
        """Written before this returns, so that it outlives the process. Raises EvaluationError."""
        line = [
            os.path.abspath(file),
            *stamp,
            *(outcome if isinstance(outcome, Answer) else (outcome.code, outcome.detail)),
        ]
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise EvaluationError(f"{self.path} cannot be written: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Left for the next run where this one fails or is interrupted, else removed: all is told."""
        if kind is None:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def _load(self) -> None:
        self._file.seek(0)
        whole = 0
        for line in self._file:
            try:
                if whole and line.endswith(b"\n"):
                    self._take(*json.loads(line))
                elif line != self._first:
                    break
            except (ValueError, TypeError):
                break
            whole += len(line)
        self._file.truncate(whole)
        if not whole:
            self._file.write(self._first)
            self._file.flush()

    def _take(self, file: str, size: int, changed: int, first: Any, second: Any) -> None:
        outcome = Unreadable(first, second) if isinstance(first, str) else Answer(tuple(first), tuple(second))
        self._found[file] = Stamp(size, changed), outcome
