"""The signals that end the service, and who acts on them: the process that was started, never a child of it.

A terminal's Ctrl-C and a service manager's SIGTERM reach all processes at once.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def heeded() -> list[signal.Signals]:
    """Those that end us. Under nohup, SIGHUP is ignored and stays so."""
    return [sig for sig in ENDING if sig != signal.SIGHUP or signal.getsignal(sig) != signal.SIG_IGN]


@contextmanager
def held_back() -> Iterator[None]:
    """While a child is started: it inherits that they wait, until it calls ``leave_to_parent``."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent() -> None:
    """What a child begins with."""
    for sig in ENDING:
        signal.signal(sig, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
