"""Decodes images in child processes with limits on memory, processor time and wall time. Never on the event loop.

A single-threaded parent process (``sandboxed``) loads the decoders and forks the children. It never reads an image. A
child decodes images one at a time, with separate limits for each. If a child crashes or exceeds a limit, one image
fails. A new fork replaces the child within milliseconds.

The process pools of existing libraries are unsuitable. They import the main module into every child. They also end a
hanging child with SIGTERM, which service managers send to all processes of a service at once.
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
from app.images.pillow import Crop, Size
from app.processes import children

if TYPE_CHECKING:
    import subprocess

log = structlog.get_logger(__name__)

ANSWER = struct.Struct("=cId")
"""The header of a message from a child: its kind, a number, and the seconds that the decode took."""
TAKEN, CROP, ERROR, ENDED = b"t", b"c", b"e", b"s"
"""The message kinds and the meaning of their number.

- TAKEN: the child has received the task; the process id of the child.
- CROP: ``SIZE`` and a crop follow; their length in bytes.
- ERROR: an error follows as JSON; its length in bytes.
- ENDED: the child has exited; the signal that ended it, or 0.
"""

SIZE = struct.Struct("=II")
"""Width and height of the upright picture in pixels."""

ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
"""Environment variables of the sandbox processes.

Each further thread or arena would reserve address space that the memory limit does not cover.
"""

_GRACE_S = 5.0  # after a deadline, time for the kernel to end the child
_START_S = 30.0
_SHUTDOWN_S = 2.0
_RETRY_S = 1.0
_MAX_ERROR_BYTES = 4096
_MAX_TASKS = 100  # per child
_TIME_LIMIT_SIGNALS = (signal.SIGPROF, signal.SIGXCPU)
_CRASHED = "the image is corrupt: its decoder crashed"
_TIMED_OUT = "the deadline passed while the image was being decoded"


@dataclass(frozen=True, slots=True)
class Task:
    """One image and its limits.

    ``deadline`` is in seconds of ``time.monotonic``. ``processor_s`` limits the processor time, ``memory`` the bytes.
    """

    header: Header
    preprocessing: Preprocessing
    fast: bool
    deadline: float
    processor_s: float
    memory: int


class Sandbox:
    """A pool of decoder processes. Thread-safe.

    It starts on the first image or on ``start``. It ends on ``close`` or when this process exits.
    """

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
        """The process id of the parent process, or None if it is not running."""
        process = self._process
        return process.pid if process and process.poll() is None else None

    def start(self) -> None:
        """Start the parent process if it is not running. Does not wait until it has loaded the decoders.

        If the start fails, the first image tries again.
        """
        with self._lock, contextlib.suppress(OSError):
            self._running()

    def decode(self, task: Task) -> tuple[Crop, Size, float]:
        """Decode an image in a child process. Blocks.

        Returns a uint8 RGB crop of shape [crop, crop, 3], the size of the upright picture, and the seconds of the
        decode. Raises the errors of
        ``images.decode``, UndecodableImage also if the image exceeds its limits or crashes the decoder. Raises
        DeadlineExceeded, and Overloaded if no process is available.
        """
        child = self._child()
        if not child.accepts(task):  # it exited while it was idle
            child.close()
            child = self._child(new=True)
            if not child.accepts(task):
                child.close()
                raise _unavailable()
        try:
            kind, number, seconds, content = child.result(task)
        except TimeoutError:  # the limits did not end the child
            child.kill()
            raise DeadlineExceeded(_TIMED_OUT) from None
        except OSError as error:
            child.kill()
            raise _unavailable() from error
        if kind not in (CROP, ERROR):
            child.close()
            raise _exit_error(number if kind == ENDED else 0, task)
        self._keep(child)
        if kind == ERROR:
            raise _error(content)
        side = task.preprocessing.crop
        crop = np.frombuffer(content, np.uint8, offset=SIZE.size).reshape(side, side, 3)
        return crop, SIZE.unpack_from(content), seconds

    def close(self) -> None:
        """End all processes. Blocks briefly. A later image starts them again."""
        with self._lock:
            self._close_sockets()
            if self._process:
                with contextlib.suppress(Exception):
                    self._process.wait(_SHUTDOWN_S)
            self._kill()

    def _child(self, new: bool = False) -> "_Child":
        """Return an idle child, or fork a new one. Raises Overloaded if no child is available."""
        with self._lock:
            if self._idle and self.pid and not new:
                return self._idle.pop()
            ours, theirs = socket.socketpair()
            with theirs:
                for _ in range(2):  # the parent process may have exited since the last fork
                    try:
                        socket.send_fds(self._running(), [b"."], [theirs.fileno()])
                    except OSError as error:
                        log.warning("the sandbox process has exited and is restarted", reason=str(error))
                        self._kill()
                    else:
                        return _Child(ours)
            ours.close()
            raise _unavailable()

    def _keep(self, child: "_Child") -> None:
        """Return a child to the pool. After ``_MAX_TASKS`` images, close it to discard the state that they left."""
        with self._lock:
            if child.tasks < _MAX_TASKS and self.pid:
                self._idle.append(child)
            else:
                child.close()

    def _running(self) -> socket.socket:
        """Return the socket of the parent process. Starts the process if it is not running."""
        if self._control and self.pid:
            return self._control
        self._kill()
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

    def _kill(self) -> None:
        """Kill the parent process and its children, which form a process group."""
        self._close_sockets()
        process, self._process = self._process, None
        if process and process.poll() is None:  # if it has exited, its children end at their limits
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _close_sockets(self) -> None:
        """Close all sockets. The processes then exit."""
        for child in self._idle:
            child.close()
        self._idle.clear()
        if self._control:
            self._control.close()
            self._control = None


class _Child:
    """This process's end of the connection to a child. Used by one thread at a time."""

    def __init__(self, connection: socket.socket) -> None:
        self.tasks = 0
        self._pid = 0
        self._socket = connection
        self._file = connection.makefile("rb")

    def accepts(self, task: Task) -> bool:
        """Send a task. Returns False if the child has exited or does not confirm the task before the deadline."""
        self.tasks += 1
        self._socket.settimeout(max(0.0, task.deadline - time.monotonic()) + _GRACE_S)
        try:
            self._socket.sendall(pickle.dumps(task, pickle.HIGHEST_PROTOCOL))
            kind, self._pid, _ = self._head()
        except OSError:
            return False
        return kind == TAKEN

    def result(self, task: Task) -> tuple[bytes, int, float, bytes]:
        """Receive kind, number, seconds and content of the result. Raises TimeoutError or another OSError."""
        kind, number, seconds = self._head()
        size = {CROP: SIZE.size + task.preprocessing.crop**2 * 3, ERROR: min(number, _MAX_ERROR_BYTES)}.get(kind, 0)
        content = self._file.read(size) if kind in (CROP, ERROR) and number == size else b""
        if kind in (CROP, ERROR) and len(content) != number:
            return ENDED, 0, seconds, b""
        return kind, number, seconds, content

    def kill(self) -> None:
        """Kill a child that does not respond.

        The process id cannot belong to another process yet, because the connection is still open.
        """
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
            raise ConnectionResetError("the child closed its connection without a result")
        kind, number, seconds = ANSWER.unpack(head)
        return kind, number, seconds


def _unavailable() -> Overloaded:
    return Overloaded("no decoder process is available; retry later", retry_after_s=_RETRY_S)


def _error(content: bytes) -> TopkError:
    known = {kind.__name__: kind for kind in (UndecodableImage, UnsupportedMediaType, TooManyPixels)}
    try:
        body = orjson.loads(content)
        return known[body["error"]](str(body["detail"]))
    except (orjson.JSONDecodeError, LookupError, TypeError):  # a compromised decoder may send anything
        return UndecodableImage(_CRASHED)


def _exit_error(number: int, task: Task) -> TopkError:
    """Return the error for a child that exited without a result, by the signal that ended it."""
    if number == signal.SIGALRM:
        return DeadlineExceeded(_TIMED_OUT)
    if number in _TIME_LIMIT_SIGNALS:
        seconds = math.ceil(task.processor_s)
        return UndecodableImage(f"decoding the image takes more than {seconds} s of processor time")
    header = task.header
    log.warning(
        "a decoder crashed", signal=_signal_name(number), format=header.format, size=[header.width, header.height]
    )
    return UndecodableImage(_CRASHED)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "none"
