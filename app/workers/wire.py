"""The protocol between the processes, over Unix socket pairs: frames of a length, a kind and a payload.

Messages between the supervisor and its children are JSON, and each may carry a file descriptor. Frames for images are
packed structs and arrays; one frame holds the tasks or answers that are sent together. Nothing is unpickled: a process
that has decoded a malicious file must not run code in another one.
The thread that owns a socket reads and writes its frames.
"""

import socket
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import orjson

from app import errors
from app.engine import Row, Want
from app.engine.base import Floats
from app.errors import Internal, TopkError

MESSAGE, TASKS, CANCEL, LEFT, ANSWERS, FAILURE = range(6)

_FRAME = struct.Struct("=IB")
_TASK = struct.Struct("=QIBIiddIIHHB")
_CANCEL = struct.Struct("=Q")
_LEFT = struct.Struct("=dI")
_COUNT = struct.Struct("=I")
_ANSWER = struct.Struct("=QddIfIIIIII")
_READ = 1 << 16
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_DESCRIPTORS = 4  # maximum in one read
_NOTHING = -2  # in place of the class to explain, which is a class id or ``BEST``


class JpegFile(NamedTuple):
    """A ``Jpeg`` whose data lies in a slot: ``length`` bytes, or 0 if there is none."""

    length: int = 0
    width: int = 0
    height: int = 0
    orientation: int = 0


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
    file: JpegFile = JpegFile()  # rather than pixels


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


def tasks(tasks: Iterable[ImageTask]) -> bytes:
    return frame(TASKS, b"".join([_task(*task) for task in tasks]))


def _task(
    number: int,
    slot: int,
    tensor: bool,
    want: Want,
    deadline: float,
    received_at: float,
    stated: bool,
    caller: int,
    file: JpegFile,
) -> bytes:
    flags = want.features | want.logits << 1 | want.probabilities << 2 | tensor << 3 | stated << 4
    explain = _NOTHING if want.explain is None else want.explain
    return _TASK.pack(number, slot, flags, want.k, explain, deadline, received_at, caller, *file)


def read_tasks(payload: bytes) -> list[ImageTask]:
    return [
        ImageTask(
            number,
            slot,
            bool(flags & 8),
            _want(k, flags & 7, explain),
            deadline,
            received_at,
            bool(flags & 16),
            caller,
            JpegFile(*file),
        )
        for number, slot, flags, k, explain, deadline, received_at, caller, *file in _TASK.iter_unpack(payload)
    ]


@lru_cache
def _want(k: int, flags: int, explain: int) -> Want:
    return Want(k, bool(flags & 1), bool(flags & 2), bool(flags & 4), None if explain == _NOTHING else explain)


def cancel(numbers: Iterable[int]) -> bytes:
    return frame(CANCEL, b"".join(map(_CANCEL.pack, numbers)))


def read_cancel(payload: bytes) -> list[int]:
    return [number for (number,) in _CANCEL.iter_unpack(payload)]


def left(clients: Iterable[tuple[float, int]]) -> bytes:
    """Clients have left: when the image of each was received, and its caller."""
    return frame(LEFT, b"".join([_LEFT.pack(received_at, caller) for received_at, caller in clients]))


def read_left(payload: bytes) -> list[tuple[float, int]]:
    return list(_LEFT.iter_unpack(payload))


def answers(answers: Sequence[Answer]) -> bytes:
    """One array for each output: the class ids of all answers, then their scores, then the whole rows."""
    heads = []
    whole_rows: list[bytes] = []
    for number, started, inference_s, batch_size, row in answers:
        parts = row.features, row.logits, row.probabilities, row.activation
        sizes = [0 if part is None else part.size for part in parts]
        height = 0 if row.activation is None else len(row.activation)
        heads.append(
            _ANSWER.pack(number, started, inference_s, batch_size, row.energy, len(row.class_ids), height, *sizes)
        )
        whole_rows += [np.asarray(part, np.float32).tobytes() for part in parts if part is not None]
    class_ids = np.concatenate([answer.row.class_ids for answer in answers], dtype=np.int64)
    scores = np.concatenate([answer.row.scores for answer in answers], dtype=np.float32)
    outputs = class_ids.tobytes(), scores.tobytes(), *whole_rows
    return frame(ANSWERS, b"".join([_COUNT.pack(len(answers)), *heads, *outputs]))


def read_answers(payload: bytes) -> list[Answer]:
    (count,) = _COUNT.unpack_from(payload)
    at = _COUNT.size + count * _ANSWER.size
    heads = list(_ANSWER.iter_unpack(payload[_COUNT.size : at]))
    class_ids = np.frombuffer(payload, np.int64, sum(head[5] for head in heads), at)
    scores = np.frombuffer(payload, np.float32, len(class_ids), at + class_ids.nbytes)
    whole_rows = np.frombuffer(payload, np.float32, offset=at + class_ids.nbytes + scores.nbytes)
    answers, end, whole_end = [], 0, 0
    for number, started, inference_s, batch_size, energy, k, height, *sizes in heads:
        start, end = end, end + k
        parts: list[Floats | None] = [None] * len(sizes)
        for place, size in enumerate(sizes):
            if size:
                parts[place] = whole_rows[whole_end : whole_end + size]
                whole_end += size
        features, logits, probabilities, activation = parts
        if activation is not None:
            activation = activation.reshape(height, -1)
        row = Row(class_ids[start:end], scores[start:end], features, logits, probabilities, energy, activation)
        answers.append(Answer(number, started, inference_s, batch_size, row))
    return answers


def failure(number: int, error: Exception | None) -> bytes:
    """The frame for a task without an answer. ``error`` is None if the task was cancelled."""
    content: dict[str, Any] = {"number": number}
    if isinstance(error, TopkError):
        content |= {"error": type(error).__name__, "detail": error.detail}
        if error.retry_after_s is not None:
            content["retry_after_s"] = error.retry_after_s
    return frame(FAILURE, orjson.dumps(content))


def read_failure(payload: bytes) -> tuple[int, TopkError]:
    content = orjson.loads(payload)
    kind = getattr(errors, content.get("error", ""), Internal)
    detail = content.get("detail", "the image could not be classified")
    retry = [content["retry_after_s"]] if "retry_after_s" in content else []
    return content["number"], kind(detail, *retry)
