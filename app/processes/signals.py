"""The signals that shut the service down. Only the main process acts on them; its children ignore them.

Ctrl-C on a terminal and SIGTERM from a service manager reach all processes at once.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

SHUTDOWN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def shutdown_signals() -> list[signal.Signals]:
    """The signals to handle. Under nohup, SIGHUP is ignored and stays ignored."""
    return [sig for sig in SHUTDOWN if sig != signal.SIGHUP or signal.getsignal(sig) != signal.SIG_IGN]


@contextmanager
def blocked() -> Iterator[None]:
    """Block the signals while a child is started. The child inherits the block until it calls ``leave_to_parent``."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SHUTDOWN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent() -> None:
    """Ignore the shutdown signals. The first call in a child process."""
    for sig in SHUTDOWN:
        signal.signal(sig, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SHUTDOWN)
