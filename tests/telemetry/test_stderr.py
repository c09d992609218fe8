"""Log lines while standard error is slow, full or closed."""

import io
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from app.telemetry import stderr
from app.telemetry.stderr import StderrHandler

FULL = 65_536 // 100


class Pipe:
    """What the handler writes into, and what its reader gets."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()

    def fileno(self) -> int:
        return self.writing

    def read(self) -> list[str]:
        """All lines so far."""
        os.set_blocking(self.reading, False)
        return os.read(self.reading, 1 << 20).decode().splitlines()


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    pipe = Pipe()
    monkeypatch.setattr(stderr, "_PATIENCE_MS", 50)
    yield pipe
    os.close(pipe.writing)


def say(handler: StderrHandler, text: Any, times: int = 1) -> None:
    for _ in range(times):
        handler.handle(logging.LogRecord("topk", logging.INFO, __file__, 1, text, (), None))


def test_a_line_is_written_whole(pipe: Pipe) -> None:
    say(StderrHandler(pipe), "ü" * 10_000)
    assert pipe.read() == ["ü" * 10_000]


def test_a_reader_that_is_slow_gets_all(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stderr, "_PATIENCE_MS", 60_000)
    got: list[bytes] = []

    def read() -> None:
        while not b"".join(got).endswith(b"last\n"):
            got.append(os.read(pipe.reading, 1000))

    reader = threading.Thread(target=read)
    handler = StderrHandler(pipe)
    say(handler, "x" * 99, FULL // 2)
    reader.start()
    say(handler, "x" * 99, 10 * FULL)
    say(handler, "last")
    reader.join()
    assert b"".join(got).count(b"\n") == FULL // 2 + 10 * FULL + 1


def test_lines_are_dropped_and_counted_while_nobody_reads(pipe: Pipe) -> None:
    handler = StderrHandler(pipe)
    say(handler, "x" * 99, FULL + 100)
    kept = pipe.read()
    say(handler, "he reads again")
    dropped = FULL + 100 - len(kept)
    assert dropped >= 100
    assert pipe.read() == [
        f"{dropped} log lines before this one were dropped: standard error was not read",
        "he reads again",
    ]


def test_a_reader_that_has_gone_is_no_error(pipe: Pipe) -> None:
    os.close(pipe.reading)
    say(StderrHandler(pipe), "nobody hears this")  # a trace of what went wrong would have nowhere to go either


def test_without_a_file_it_is_written_to_as_it_is() -> None:
    text = io.StringIO()
    say(StderrHandler(text), "as it is")
    assert text.getvalue() == "as it is\n"
