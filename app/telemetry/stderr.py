"""Log lines to standard error, which hold nobody up: where nobody reads any more they are lost, and that is said.

A pipe holds 64 KiB; a writer then waits for as long as its reader sleeps, here with the event loop in its hands.
"""

import io
import logging
import os
import select
from typing import TextIO

_PIECE = 4096  # bytes, POSIX's PIPE_BUF: what fits whole into a pipe that can be written to
_PATIENCE_MS = 1000  # for a reader that has fallen asleep; once, then it has to wake up first


class Lines(logging.StreamHandler[io.TextIOBase]):
    """Any thread; ``logging`` lets one in at a time. What is no file is written to as it is."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)  # type: ignore[arg-type]
        self._lost = 0
        self._poll = select.poll()
        try:
            self._file = stream.fileno()
            self._poll.register(self._file, select.POLLOUT)
        except (OSError, ValueError, AttributeError):
            self._file = -1

    def emit(self, record: logging.LogRecord) -> None:
        if self._file < 0:
            super().emit(record)
            return
        try:
            if self._lost and self._write(self._loss(record)):
                self._lost = 0
            self._lost += not self._write(record)
        except OSError:  # closed by its reader: nobody will know
            return
        except Exception:
            self.handleError(record)

    def _write(self, record: logging.LogRecord) -> bool:
        """Whether all of its line was taken."""
        left = (self.format(record) + self.terminator).encode("utf-8", "backslashreplace")
        while left and self._poll.poll(0 if self._lost else _PATIENCE_MS):
            left = left[os.write(self._file, left[:_PIECE]) :]
        return not left

    def _loss(self, record: logging.LogRecord) -> logging.LogRecord:
        message = f"{self._lost} log lines before this were lost: nobody read them"
        return logging.LogRecord(record.name, logging.WARNING, record.pathname, 0, message, (), None)
