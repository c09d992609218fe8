"""Non-blocking logging to stderr: lines that the reader does not take are dropped and counted.

A pipe holds 64 KiB. A plain StreamHandler blocks while it is full, and with it the event loop. This handler writes only
what fits, in the thread that logs. So a line is in the pipe when the call returns, and nothing needs a flush when the
process ends by ``os._exit``, a crash or SIGKILL: the lines of a ``logging.handlers.QueueListener`` would be lost then,
and its ``stop`` would wait forever for a reader that has stalled.
"""

import io
import logging
import os
import select
from typing import TextIO

_CHUNK = 4096  # bytes, POSIX's PIPE_BUF: fits into any pipe that is ready for writing
_PATIENCE_MS = 1000  # for a reader that stalls; until it reads again, further lines do not wait


class StderrHandler(logging.StreamHandler[io.TextIOBase]):
    """For any thread: ``logging`` serialises the calls. A stream without a file descriptor is written to directly."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)  # type: ignore[arg-type]
        self._dropped = 0
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
            if self._dropped and self._write(self._report(record)):
                self._dropped = 0
            self._dropped += not self._write(record)
        except OSError:  # the reader has closed the pipe
            return
        except Exception:
            self.handleError(record)

    def _write(self, record: logging.LogRecord) -> bool:
        """Whether the whole line was written."""
        left = (self.format(record) + self.terminator).encode("utf-8", "backslashreplace")
        while left and self._poll.poll(0 if self._dropped else _PATIENCE_MS):
            left = left[os.write(self._file, left[:_CHUNK]) :]
        return not left

    def _report(self, record: logging.LogRecord) -> logging.LogRecord:
        message = f"{self._dropped} log lines before this one were dropped: standard error was not read"
        return logging.LogRecord(record.name, logging.WARNING, record.pathname, 0, message, (), None)
