"""What crosses from process to process comes out as it went in."""

import os
import socket
import struct

import numpy as np
import pytest

from app.engine import Row, Want
from app.engine.base import BEST
from app.errors import DeadlineExceeded, Internal, NotReady, Overloaded, TopkError
from app.workers import wire


def payload(frame: bytes) -> bytes:
    [(_, content)] = wire.Frames().feed(frame)
    return content


@pytest.mark.parametrize(
    "want", [Want(k=5), Want(features=True), Want(k=1000, logits=True, probabilities=True), Want(3, True, True, True)]
)
@pytest.mark.parametrize("stated", [False, True])
def test_a_task(want: Want, stated: bool) -> None:
    task = wire.ImageTask(2**40, 17, want.logits, want, 12345.678, 12345.5, stated, 2**32 - 1)
    other = wire.ImageTask(3, 4, False, Want(k=1), 5.0, 6.0, False, 7)
    file = wire.ImageTask(5, 6, False, Want(k=1), 7.0, 8.0, False, 9, wire.JpegFile(2**31, 2**16 - 1, 1, 8))
    assert wire.read_tasks(payload(wire.tasks([task, other, file]))) == [task, other, file]


def test_a_client_that_has_left() -> None:
    left = [(12345.678, 2**32 - 1), (1.5, 0)]
    [(kind, content)] = wire.Frames().feed(wire.left(left))
    assert (kind, wire.read_left(content)) == (wire.LEFT, left)


@pytest.mark.parametrize("explain", [None, BEST, 0, 21_999])
def test_a_task_names_the_class_to_explain(explain: int | None) -> None:
    task = wire.ImageTask(1, 2, False, Want(k=1, explain=explain), 5.0, 6.0, False, 7)
    assert wire.read_tasks(payload(wire.tasks([task]))) == [task]


@pytest.mark.parametrize("parts", [(), ("features",), ("logits", "probabilities"), ("features", "logits")])
def test_an_answer(parts: tuple[str, ...]) -> None:
    rows = {part: np.arange(7, dtype=np.float32) + i for i, part in enumerate(parts)}
    activation = np.arange(6, dtype=np.float32).reshape(2, 3) if parts else None
    outputs = np.array([3, 1], np.int64), np.array([0.5, 0.25], np.float32)
    row = Row(*outputs, **rows, energy=7.5, activation=activation)
    plain = Row(np.array([4], np.int64), np.array([0.75], np.float32))
    sent = [wire.Answer(8, 1.0, 0.5, 3, plain), wire.Answer(9, 1.5, 0.25, 4, row), wire.Answer(10, 2.0, 0.5, 3, row)]
    got = wire.read_answers(payload(wire.answers(sent)))
    assert [answer[:4] for answer in got] == [answer[:4] for answer in sent]
    for received, answer in zip(got, sent, strict=True):
        np.testing.assert_equal(received.row._asdict(), answer.row._asdict())


@pytest.mark.parametrize("error", [DeadlineExceeded("late"), NotReady("closing"), Internal("a defect")])
def test_an_error_keeps_its_class_and_words(error: TopkError) -> None:
    number, got = wire.read_failure(payload(wire.failure(3, error)))
    assert (number, type(got), got.detail) == (3, type(error), error.detail)


@pytest.mark.parametrize("kind", [Overloaded, NotReady])
def test_a_refusal_keeps_when_to_try_again(kind: type[Overloaded | NotReady]) -> None:
    _, got = wire.read_failure(payload(wire.failure(3, kind("full", 2.5))))
    assert got.headers == {"Retry-After": "3"}


def test_a_foreign_exception_is_internal_and_says_nothing() -> None:
    _, got = wire.read_failure(payload(wire.failure(3, RuntimeError("a secret"))))
    assert (type(got), "secret" in got.detail) == (Internal, False)


def test_frames_come_whole_however_they_are_cut() -> None:
    data = wire.cancel([1, 3]) + wire.frame(wire.MESSAGE, b"x" * 300) + wire.cancel([2])
    frames = wire.Frames()
    got = [frame for i in range(len(data)) for frame in frames.feed(data[i : i + 1])]
    assert got == list(wire.Frames().feed(data))
    assert [kind for kind, _ in got] == [wire.CANCEL, wire.MESSAGE, wire.CANCEL]


def test_descriptors_come_with_their_messages() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        reading, writing = os.pipe()
        sender, receiver = wire.Messages(ours), wire.Messages(theirs)
        sender.send({"do": "first"})
        sender.send({"do": "second"}, writing)
        os.close(writing)
        got: list[tuple[dict[str, str], int | None]] = []
        while len(got) < 2:
            got += receiver.read()
        assert [message["do"] for message, _ in got] == ["first", "second"]
        assert got[0][1] is None
        assert got[1][1] is not None
        os.write(got[1][1], b"through")
        os.close(got[1][1])
        assert os.read(reading, 100) == b"through"
        os.close(reading)
        ours.close()
        with pytest.raises(EOFError):
            receiver.read()


def test_a_broken_task_raises() -> None:
    with pytest.raises(struct.error):
        wire.read_tasks(b"short")
