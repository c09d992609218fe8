"""Decodes pictures in child processes, within limits on memory, processor time and wall time. Never on the event loop.

One process (``sandboxed``) has loaded the decoders, has one thread, never sees a picture, and forks the children. A
child decodes one picture after another, each within limits of its own. One that crashes, or that the system ends at a
limit, costs one picture and is replaced by another fork, which takes milliseconds.

Process pools of libraries do not fit here. They import the main module into every child, and end a child that hangs by
SIGTERM, which a service manager sends to all processes of a service at once.
"""

import contextlib
import math
import os
import pickle
import signal
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import orjson
import structlog

from app.errors import DeadlineExceeded, Overloaded, TooManyPixels, TopkError, UndecodableImage, UnsupportedMediaType
from app.images.geometry import Preprocessing
from app.images.header import Header
from app.images.pillow import Crop
from app.processes import children

if TYPE_CHECKING:
    import subprocess

log = structlog.get_logger(__name__)

ANSWER = struct.Struct("=cId")
"""The head of an answer: its kind, a number, and the seconds that the decode took."""
TAKEN, CROP, ERROR, ENDED = b"t", b"c", b"e", b"s"
"""Kinds, and what their numbers are: the child has the task (process id); a crop, or an error as JSON, follows (bytes);
the child has ended (signal, 0 for none).
"""

ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
"""Of the processes: each thread would reserve address space, within which memory is not limited."""

_GRACE_S = 5.0  # by then the system has ended a child that is past its deadline
_START_S = 30.0
_LEAVE_S = 2.0
_RETRY_S = 1.0
_PAGE = 4096  # bytes of an error, at most
_PICTURES = 100  # that one child decodes
_TIME_LIMIT = (signal.SIGPROF, signal.SIGXCPU)
_CRASHED = "the image is corrupt: its decoder crashed"
_LATE = "the deadline passed while the image was decoded"


@dataclass(frozen=True, slots=True)
class Task:
    """One picture. ``deadline`` in seconds of ``time.monotonic``; ``processor_s`` and ``memory`` (bytes) are limits."""

    header: Header
    preprocessing: Preprocessing
    fast: bool
    deadline: float
    processor_s: float
    memory: int


class Sandbox:
    """Starts with the first picture, or with ``start``; ends with ``close``, or with this process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._idle: list[_Child] = []

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process that forks, where it runs."""
        process = self._process
        return process.pid if process and process.poll() is None else None

    def start(self) -> None:
        """Start the process that forks, unless it runs. Does not wait until it has loaded the decoders.

        Where it cannot be started, the first picture tries again.
        """
        with self._lock, contextlib.suppress(OSError):
            self._running()

    def decode(self, task: Task) -> tuple[Crop, float]:
        """The picture's crop, uint8 RGB of shape [crop, crop, 3], and the seconds that its decode took. Blocks.

        Raises the errors of ``images.decode``; UndecodableImage for a picture that exceeds its limits or crashes its
        decoder; DeadlineExceeded; Overloaded where no process can be had.
        """
        child = self._child()
        if not child.takes(task):  # it has ended while nothing was asked of it
            child.close()
            child = self._child(new=True)
            if not child.takes(task):
                child.close()
                raise _unavailable()
        try:
            kind, number, seconds, content = child.answer(task)
        except TimeoutError:  # not even its limits ended it
            child.kill()
            raise DeadlineExceeded(_LATE) from None
        except OSError as error:
            child.kill()
            raise _unavailable() from error
        if kind not in (CROP, ERROR):
            child.close()
            raise _ended(number if kind == ENDED else 0, task)
        self._keep(child)
        if kind == ERROR:
            raise _error(content)
        side = task.preprocessing.crop
        return np.frombuffer(content, np.uint8).reshape(side, side, 3), seconds

    def close(self) -> None:
        """End all processes. Blocks for a moment. A later picture starts them again."""
        with self._lock:
            self._hang_up()
            if self._process:
                with contextlib.suppress(Exception):
                    self._process.wait(_LEAVE_S)
            self._end()

    def _child(self, new: bool = False) -> "_Child":
        """A child that waits for a picture. Raises Overloaded where none can be had."""
        with self._lock:
            if self._idle and self.pid and not new:
                return self._idle.pop()
            ours, theirs = socket.socketpair()
            with theirs:
                for _ in range(2):  # the process that forks may have ended since the last time
                    try:
                        socket.send_fds(self._running(), [b"."], [theirs.fileno()])
                    except OSError as error:
                        log.warning("the sandbox has ended and is started again", reason=str(error))
                        self._end()
                    else:
                        return _Child(ours)
            ours.close()
            raise _unavailable()

    def _keep(self, child: "_Child") -> None:
        """Take a child back. It is replaced after a while, and with it whatever a picture may have left in it."""
        with self._lock:
            if child.pictures < _PICTURES and self.pid:
                self._idle.append(child)
            else:
                child.close()

    def _running(self) -> socket.socket:
        """The socket of the process that forks, which is started unless it runs."""
        if self._control and self.pid:
            return self._control
        self._end()
        ours, theirs = socket.socketpair()
        ours.settimeout(_START_S)
        with theirs:
            self._process = children.start(
                "app.images.sandboxed",
                str(theirs.fileno()),
                descriptors=[theirs.fileno()],
                environment=ENVIRONMENT,
                own_group=True,
            )
        assert self._process.stdin
        self._process.stdin.close()
        self._control = ours
        return ours

    def _end(self) -> None:
        """Kill the process and all of its children, which are a process group."""
        self._hang_up()
        process, self._process = self._process, None
        if process and process.poll() is None:  # children of one that has ended do so at their limits
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _hang_up(self) -> None:
        """Close all sockets, at which the processes end by themselves."""
        for child in self._idle:
            child.close()
        self._idle.clear()
        if self._control:
            self._control.close()
            self._control = None


class _Child:
    """Our end of a child's connection. From one thread at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self.pictures = 0
        self._pid = 0
        self._socket = connection
        self._file = connection.makefile("rb")

    def takes(self, task: Task) -> bool:
        """Hand a task over; False where the child has ended, or does not take it until the deadline has passed."""
        self.pictures += 1
        self._socket.settimeout(max(0.0, task.deadline - time.monotonic()) + _GRACE_S)
        try:
            self._socket.sendall(pickle.dumps(task, pickle.HIGHEST_PROTOCOL))
            kind, self._pid, _ = self._head()
        except OSError:
            return False
        return kind == TAKEN

    def answer(self, task: Task) -> tuple[bytes, int, float, bytes]:
        """Kind, number, seconds and content of the answer. Raises TimeoutError, and OSError where there is none."""
        kind, number, seconds = self._head()
        size = {CROP: task.preprocessing.crop**2 * 3, ERROR: min(number, _PAGE)}.get(kind, 0)
        content = self._file.read(size) if kind in (CROP, ERROR) and number == size else b""
        if kind in (CROP, ERROR) and len(content) != number:
            return ENDED, 0, seconds, b""
        return kind, number, seconds, content

    def kill(self) -> None:
        """End a child that does not answer; it cannot be another process yet, since its connection is open."""
        if self._pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._pid, signal.SIGKILL)
        self.close()

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def _head(self) -> tuple[bytes, int, float]:
        head = self._file.read(ANSWER.size)
        if len(head) < ANSWER.size:
            raise ConnectionResetError("the child closed its connection without an answer")
        kind, number, seconds = ANSWER.unpack(head)
        return kind, number, seconds


def _unavailable() -> Overloaded:
    return Overloaded("no process is available to decode this image", retry_after_s=_RETRY_S)


def _error(content: bytes) -> TopkError:
    known = {kind.__name__: kind for kind in (UndecodableImage, UnsupportedMediaType, TooManyPixels)}
    try:
        told = orjson.loads(content)
        return known[told["error"]](str(told["detail"]))
    except (orjson.JSONDecodeError, LookupError, TypeError):  # its decoder has been taken over
        return UndecodableImage(_CRASHED)


def _ended(number: int, task: Task) -> TopkError:
    """Why a child has no answer, by the signal that ended it."""
    if number == signal.SIGALRM:
        return DeadlineExceeded(_LATE)
    if number in _TIME_LIMIT:
        seconds = math.ceil(task.processor_s)
        return UndecodableImage(f"decoding the image takes more than {seconds} s of processor time")
    header = task.header
    log.warning("a decoder crashed", signal=_name(number), format=header.format, size=[header.width, header.height])
    return UndecodableImage(_CRASHED)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "none"
