"""The program of the sandbox, ``python -m app.images.sandboxed DESCRIPTOR``: forks a child for each connection.

Connections arrive over the Unix socket DESCRIPTOR. On each connection the service sends pickled ``sandbox.Task``s,
and the child sends one result per task. The service never unpickles the output of a child. The child and the program
exit when their socket closes.
"""

import contextlib
import gc
import math
import os
import pickle
import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn

import orjson
from PIL import AvifImagePlugin, Image

from app import machine
from app.errors import TopkError
from app.images import decode_sized, heif_installed
from app.images.sandbox import ANSWER, CROP, ENDED, ERROR, SIZE, TAKEN, Task
from app.processes import signals

NICENESS = machine.COMPUTING + 7  # about a fifth of a core next to a busy stream
_STATM = Path("/proc/self/statm")


def main(descriptor: int) -> None:
    """Fork children until the socket closes."""
    signals.leave_to_parent()
    machine.return_memory()
    _load_decoders()
    os.nice(NICENESS)  # only now: the first image waits for the decoders
    control = socket.socket(fileno=descriptor)
    with selectors.DefaultSelector() as selector:
        wakeup, wakes = socket.socketpair()
        for end in (wakeup, wakes):
            end.setblocking(False)
        signal.set_wakeup_fd(wakes.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)  # the wake-up descriptor needs a handler
        selector.register(control, selectors.EVENT_READ)
        selector.register(wakeup, selectors.EVENT_READ)
        running: dict[int, socket.socket] = {}
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if wakeup in ready:
                wakeup.recv(4096)
                _reap(running)
            if control in ready and not _fork(control, running):
                signal.set_wakeup_fd(-1)
                return


def _load_decoders() -> None:
    """Load the decoders before the first fork, so that children share their memory.

    Each codec runs one thread, because further threads would need additional memory.
    """
    Image.init()
    heif_installed()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    gc.freeze()


def _fork(control: socket.socket, running: dict[int, socket.socket]) -> bool:
    """Fork a child for the next connection. Returns False if the socket is closed."""
    data, descriptors, _, _ = socket.recv_fds(control, 1, 1)
    if not data:
        return False
    if not descriptors:  # too many open files
        return True
    connection = socket.socket(fileno=descriptors[0])
    try:
        pid = os.fork()
    except OSError:  # too many processes
        connection.close()
        return True
    if pid == 0:
        _work(connection, (control, *running.values()))
    running[pid] = connection
    return True


def _reap(running: dict[int, socket.socket]) -> None:
    """Close the connections of children that have exited. If a child failed, first report the signal."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with running.pop(pid) as connection, contextlib.suppress(OSError):
            if status:
                number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
                connection.send(ANSWER.pack(ENDED, number, 0.0), socket.MSG_DONTWAIT)


def _work(connection: socket.socket, others: Iterable[socket.socket]) -> NoReturn:
    """Close the connections of other children, then decode tasks until this connection closes."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        _redirect_stderr()
        for other in others:
            other.close()
        for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
            resource.setrlimit(limit, (0, 0))
        file = connection.makefile("rb")
        while file.peek(1):
            task: Task = pickle.load(file)  # noqa: S301  # written by the service, which is trusted
            connection.sendall(ANSWER.pack(TAKEN, os.getpid(), 0.0))
            started = time.perf_counter()
            with _limits(task):
                kind, content = _result(task)
            connection.sendall(ANSWER.pack(kind, len(content), time.perf_counter() - started) + content)
            del task, content
        code = 0
    finally:
        os._exit(code)


def _redirect_stderr() -> None:
    """Discard stderr: some codecs print messages about a file, and stderr is the log of the service."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stderr.fileno())
    os.close(null)


def _result(task: Task) -> tuple[bytes, bytes]:
    try:
        crop, size = decode_sized(task.header, task.preprocessing, task.fast)
        return CROP, SIZE.pack(*size) + crop.tobytes()
    except TopkError as error:
        return ERROR, orjson.dumps({"error": type(error).__name__, "detail": error.detail})


@contextlib.contextmanager
def _limits(task: Task) -> Iterator[None]:
    """Let the kernel end this process if it exceeds the limits of the image.

    The memory limit applies to memory beyond what is in use already, and only on Linux.
    """
    with contextlib.suppress(OSError):
        used = int(_STATM.read_text().split()[0]) * resource.getpagesize()
        _set(resource.RLIMIT_AS, used + task.memory)
    # RLIMIT_CPU has whole seconds; the timer is exact
    _set(resource.RLIMIT_CPU, math.ceil(time.process_time() + task.processor_s) + 1)
    signal.setitimer(signal.ITIMER_PROF, task.processor_s)
    signal.setitimer(signal.ITIMER_REAL, max(task.deadline - time.monotonic(), 1e-3))
    yield
    for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
        signal.setitimer(timer, 0)
    _set(resource.RLIMIT_AS, resource.getrlimit(resource.RLIMIT_AS)[1])


def _set(kind: int, wanted: int) -> None:
    """Set a soft limit, at most the hard limit of this process."""
    hard = resource.getrlimit(kind)[1]
    within = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(kind, (within, hard))


if __name__ == "__main__":
    main(int(sys.argv[1]))
