"""The supervisor's child processes: start-up, and the control connection. A child exits when the supervisor exits."""

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
OnMessage = Callable[[dict[str, Any], int | None], object]


def begin(arguments: list[str]) -> tuple[socket.socket, Settings]:
    """Set up a child process. Returns the control socket, from the first argument, and the settings, from stdin."""
    signals.leave_to_parent()
    settings: Settings = pickle.load(sys.stdin.buffer)  # noqa: S301  # written by the supervisor
    machine.return_memory()
    configure_logging(settings.log_format, settings.log_level)
    return socket.socket(fileno=int(arguments[1])), settings


class Child:
    """The child's end of the control socket. A separate thread receives; any thread may call ``send``."""

    def __init__(self, control: socket.socket) -> None:
        self._messages = Messages(control)
        self._send_lock = threading.Lock()

    def listen(self, on_message: OnMessage) -> None:
        """Report the start, then call ``on_message(message, descriptor)`` for each message, on the receiving thread.

        Call this on the event loop that is to answer the supervisor's pings.
        """
        self.send({"do": "started"})
        arguments = (on_message, asyncio.get_running_loop())
        threading.Thread(target=self._receive, args=arguments, name="topk-control", daemon=True).start()

    def send(self, message: dict[str, Any]) -> None:
        """Send a message to the supervisor. Exits the process if the supervisor has exited."""
        try:
            with self._send_lock:
                self._messages.send(message)
        except OSError:
            self.exit_now(_ORPHANED)

    @staticmethod
    def exit_now(code: int) -> None:
        """Exit at once, without waiting for other threads."""
        sys.stderr.flush()
        os._exit(code)

    def _receive(self, on_message: OnMessage, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while True:
                for message, descriptor in self._messages.read():
                    if message["do"] == "ping":
                        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is about to exit
                            loop.call_soon_threadsafe(self.send, {"do": "pong"})
                    else:
                        on_message(message, descriptor)
        except (EOFError, OSError):
            self.exit_now(_ORPHANED)
