"""The protocol between the processes, over Unix socket pairs: frames of a length, a kind and a payload.

Messages between the supervisor and its children are JSON, and each may carry a file descriptor. Frames for images are
packed structs. Nothing is unpickled: a process that has decoded a malicious file must not run code in another one.
The thread that owns a socket reads and writes its frames.
"""

import socket
import struct
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import orjson

from app import errors
from app.engine import Row, Want
from app.errors import Internal, Overloaded, TopkError

MESSAGE, TASK, CANCEL, LEFT, ANSWER, FAILURE = range(6)

_FRAME = struct.Struct("=IB")
_TASK = struct.Struct("=QIBIddI")
_CANCEL = struct.Struct("=Q")
_LEFT = struct.Struct("=dI")
_ANSWER = struct.Struct("=QddIIIII")
_READ = 1 << 16
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_DESCRIPTORS = 4  # maximum in one read
_FLOATS = 4  # bytes of a float32


class ImageTask(NamedTuple):
    """An image in ``slot``, and the outputs wanted by ``deadline`` (seconds of ``time.monotonic``).

    ``received_at``, ``stated`` and ``caller`` are those of the job.
    """

    number: int
    slot: int
    tensor: bool  # float32 [3, crop, crop] rather than uint8 [crop, crop, 3]
    want: Want
    deadline: float
    received_at: float
    stated: bool
    caller: int


class Answer(NamedTuple):
    """The result of a task. ``started`` is the start of its batch, in seconds of ``time.monotonic``."""

    number: int
    started: float
    inference_s: float
    batch_size: int
    row: Row


class Frames:
    """Splits a stream of bytes into frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield ``(kind, payload)`` of every frame that ``data`` completes."""
        self._data += data
        start = 0
        while len(self._data) - start >= _FRAME.size:
            length, kind = _FRAME.unpack_from(self._data, start)
            end = start + _FRAME.size + length
            if len(self._data) < end:
                break
            yield kind, bytes(self._data[start + _FRAME.size : end])
            start = end
        del self._data[:start]


class Messages:
    """JSON messages over a socket, some with a file descriptor. The owner closes ``socket``."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._frames = Frames()
        self._descriptors: deque[int] = deque()

    def send(self, message: dict[str, Any], descriptor: int | None = None) -> None:
        """Send a message, from one thread at a time. Raises OSError if the other end is closed."""
        send_message(self.socket, message, descriptor)

    def read(self) -> list[tuple[dict[str, Any], int | None]]:
        """Read once. Returns the complete messages, each with its descriptor or None. Raises EOFError, and OSError."""
        data, descriptors, _, _ = socket.recv_fds(self.socket, _READ, _DESCRIPTORS, _CLOSE_ON_EXEC)
        self._descriptors += descriptors
        if not data:
            raise EOFError
        messages = [orjson.loads(payload) for _, payload in self._frames.feed(data)]
        return [(m, self._descriptors.popleft() if m.get("descriptor") else None) for m in messages]


def send_message(sock: socket.socket, message: dict[str, Any], descriptor: int | None = None) -> None:
    """Send one whole message. Blocks."""
    if descriptor is None:
        sock.sendall(frame(MESSAGE, orjson.dumps(message)))
        return
    data = frame(MESSAGE, orjson.dumps(message | {"descriptor": True}))
    sent = socket.send_fds(sock, [data], [descriptor])
    sock.sendall(data[sent:])


def frame(kind: int, payload: bytes) -> bytes:
    return _FRAME.pack(len(payload), kind) + payload


def task(task: ImageTask) -> bytes:
    want = task.want
    flags = want.features | want.logits << 1 | want.probabilities << 2 | task.tensor << 3 | task.stated << 4
    numbers = task.number, task.slot, flags, want.k, task.deadline, task.received_at, task.caller
    return frame(TASK, _TASK.pack(*numbers))


def read_task(payload: bytes) -> ImageTask:
    number, slot, flags, k, deadline, received_at, caller = _TASK.unpack(payload)
    want = Want(k, bool(flags & 1), bool(flags & 2), bool(flags & 4))
    return ImageTask(number, slot, bool(flags & 8), want, deadline, received_at, bool(flags & 16), caller)


def cancel(number: int) -> bytes:
    return frame(CANCEL, _CANCEL.pack(number))


def read_cancel(payload: bytes) -> int:
    number: int = _CANCEL.unpack(payload)[0]
    return number


def left(received_at: float, caller: int) -> bytes:
    """A client has left whose image was received at this time."""
    return frame(LEFT, _LEFT.pack(received_at, caller))


def read_left(payload: bytes) -> tuple[float, int]:
    received_at, caller = _LEFT.unpack(payload)
    return received_at, caller


def answer(answer: Answer) -> bytes:
    row = answer.row
    parts = [np.asarray(part, np.float32) for part in (row.features, row.logits, row.probabilities) if part is not None]
    sizes = [0 if part is None else len(part) for part in (row.features, row.logits, row.probabilities)]
    head = _ANSWER.pack(
        answer.number, answer.started, answer.inference_s, answer.batch_size, len(row.class_ids), *sizes
    )
    ids, scores = np.asarray(row.class_ids, np.int64), np.asarray(row.scores, np.float32)
    return frame(ANSWER, b"".join([head, ids.tobytes(), scores.tobytes(), *(part.tobytes() for part in parts)]))


def read_answer(payload: bytes) -> Answer:
    number, started, inference_s, batch_size, k, *sizes = _ANSWER.unpack_from(payload)
    ids = np.frombuffer(payload, np.int64, k, _ANSWER.size)
    at = _ANSWER.size + ids.nbytes
    scores = np.frombuffer(payload, np.float32, k, at)
    at += scores.nbytes
    parts = []
    for size in sizes:
        parts.append(np.frombuffer(payload, np.float32, size, at) if size else None)
        at += size * _FLOATS
    return Answer(number, started, inference_s, batch_size, Row(ids, scores, *parts))


def failure(number: int, error: Exception | None) -> bytes:
    """The frame for a task without an answer. ``error`` is None if the task was cancelled."""
    content: dict[str, Any] = {"number": number}
    if isinstance(error, TopkError):
        content |= {"error": type(error).__name__, "detail": error.detail}
        if isinstance(error, Overloaded):
            content["retry_after_s"] = error.retry_after_s
    return frame(FAILURE, orjson.dumps(content))


def read_failure(payload: bytes) -> tuple[int, TopkError]:
    content = orjson.loads(payload)
    kind = getattr(errors, content.get("error", ""), Internal)
    detail = content.get("detail", "the image could not be classified")
    if kind is Overloaded:
        return content["number"], Overloaded(detail, content["retry_after_s"])
    return content["number"], kind(detail)
