"""What the supervisor's children have in common: how they begin, are told what to do, and end when it has ended."""

import asyncio
import contextlib
import os
import pickle
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

from app import machine
from app.processes import signals
from app.settings import Settings
from app.telemetry.logging import configure_logging
from app.workers.wire import Messages

_ORPHANED = 1
Told = Callable[[dict[str, Any], int | None], object]


def begin(arguments: list[str]) -> tuple[socket.socket, Settings]:
    """The control socket, named by the first argument, and the settings, which come on standard input."""
    signals.leave_to_parent()
    settings: Settings = pickle.load(sys.stdin.buffer)  # noqa: S301  # our parent wrote it
    machine.return_memory()
    configure_logging(settings.log_format, settings.log_level)
    return socket.socket(fileno=int(arguments[1])), settings


class Child:
    """One child's end of its control socket. Told on a thread of its own; ``tell`` is for any thread."""

    def __init__(self, control: socket.socket) -> None:
        self._messages = Messages(control)
        self._telling = threading.Lock()

    def listen(self, told: Told) -> None:
        """Report the start; from now on ``told(message, descriptor)`` is called for each message.

        Call it on the event loop: that loop answers the supervisor's pings from now on.
        """
        self.tell({"do": "started"})
        arguments = (told, asyncio.get_running_loop())
        threading.Thread(target=self._listen, args=arguments, name="topk-control", daemon=True).start()

    def tell(self, message: dict[str, Any]) -> None:
        """Send the supervisor a message; nothing where it has ended, since so do we."""
        try:
            with self._telling:
                self._messages.send(message)
        except OSError:
            self.leave(_ORPHANED)

    @staticmethod
    def leave(code: int) -> None:
        """End at once, whatever threads are doing."""
        sys.stderr.flush()
        os._exit(code)

    def _listen(self, told: Told, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while True:
                for message, descriptor in self._messages.read():
                    if message["do"] == "ping":
                        with contextlib.suppress(RuntimeError):  # the loop is closed, and the process about to end
                            loop.call_soon_threadsafe(self.tell, {"do": "pong"})
                    else:
                        told(message, descriptor)
        except (EOFError, OSError):
            self.leave(_ORPHANED)
