"""The main process: it binds the socket, and starts and monitors the engine process and the HTTP processes.

Everything runs on one event loop. The supervisor sends messages to each child over a socket pair. When either side
exits, the connection closes and the other side notices. Pings, answered by the child's event loop, detect a child that
runs but does not respond.
"""

import asyncio
import pickle
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog

from app.api.schemas.responses import Info
from app.processes import children, signals
from app.server.serving import drain_delay_s, prepare, report_ready
from app.settings import Settings
from app.workers.metrics import Snapshot, Totals
from app.workers.wire import Messages

log = structlog.get_logger("topk")

ENGINE, HTTP = "engine", "http"
_BUFFER_BYTES = 1 << 20
_SEND_S = 1  # a child is killed if its socket is full and it reads nothing for this long
_SUSPECT, _HUNG = 10, 30  # ticks without an answer to a ping
_WATCHDOG_S = 2.0  # minimum: a busy event loop answers late
_SAMPLES_S = 1.0
_LINGER_S = 10.0
_LONG_LIVED_S = 10.0
_PAUSES_S = (0.0, 0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # before a restart, by the number of exits in a row


def serve(settings: Settings) -> int:
    """Serve with ``settings.workers`` HTTP processes; the exit code.

    Raises ModelError for an invalid setting and a port in use.
    """
    listener = prepare(settings)
    return asyncio.run(Supervisor(settings, listener, drain_delay_s(settings)).run())


@dataclass(eq=False)
class Process:
    """A child process.

    ``samples`` are the metrics that it reported last. ``sampling`` is pending while new ones are requested.
    ``silent`` counts the ticks since the oldest unanswered ping.
    """

    kind: str
    popen: "subprocess.Popen[bytes]"
    messages: Messages
    started_at: float = field(default_factory=time.monotonic)
    started: bool = False
    ready: bool = False
    killed: bool = False
    silent: int = 0
    samples: Snapshot = field(default_factory=list)
    sampling: asyncio.Future[None] | None = None

    @property
    def watched(self) -> bool:
        """Whether its event loop must answer pings. Not while an engine loads or an HTTP process starts."""
        return not self.killed and (self.ready if self.kind == ENGINE else self.started)

    @property
    def suspect(self) -> bool:
        """Whether a ping has been unanswered for more than ``_SUSPECT`` ticks."""
        return self.silent > _SUSPECT

    def send(self, message: dict[str, Any], descriptor: int | None = None) -> None:
        """Send a message to the process. Kill it if that fails."""
        if self.killed:
            return
        try:
            self.messages.send(message, descriptor)
        except OSError:
            self.kill()

    def kill(self) -> None:
        """Kill the process. ``Supervisor`` cleans up when the connection closes."""
        self.killed = True
        self.popen.kill()


class Supervisor:
    """Call ``run`` once. Its event loop calls all other methods."""

    def __init__(self, settings: Settings, listener: socket.socket, drain_delay_s: float) -> None:
        self._settings = settings
        self._listener = listener
        self._port = listener.getsockname()[1]
        self._drain_delay_s = drain_delay_s
        self._processes: set[Process] = set()
        self._exits = {ENGINE: 0, HTTP: 0}
        self._totals = Totals()
        self._tasks: set[asyncio.Task[None]] = set()
        self._finished = asyncio.Event()
        self._was_ready = self._lost_process = False
        self._undrained: set[Process] = set()
        self._shutting_down = self._forced = False
        self._failure: str | None = None

    async def run(self) -> int:
        """Serve until a signal arrives or the model cannot be served. Returns the exit code."""
        self._loop = asyncio.get_running_loop()
        for number in signals.shutdown_signals():
            self._loop.add_signal_handler(number, self._signalled, number)
        for kind in [ENGINE, *[HTTP] * self._settings.workers]:
            self._start(kind)
        self._in_background(self._watch())
        await self._finished.wait()
        if self._failure:
            log.error(self._failure)
            return 1
        if self._forced:
            log.warning("stopped before all requests were answered")
            return 130
        log.info("stopped")
        return 0

    def _start(self, kind: str) -> None:
        if self._shutting_down:
            return
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", _SEND_S, 0))
        with theirs:
            process = Process(kind, self._spawn(kind, theirs.fileno()), Messages(ours))
        self._loop.add_reader(ours, self._readable, process)
        self._processes.add(process)
        for other in self._of(HTTP if kind == ENGINE else ENGINE):
            _connect(process, other)

    def _spawn(self, kind: str, control: int) -> "subprocess.Popen[bytes]":
        arguments, descriptors = [str(control)], [control]
        if kind == HTTP:
            arguments += [str(self._listener.fileno()), str(self._drain_delay_s)]
            descriptors.append(self._listener.fileno())
        popen = children.start(f"app.workers.{kind}", *arguments, descriptors=descriptors)
        assert popen.stdin
        with popen.stdin as stdin:
            stdin.write(pickle.dumps(self._settings))
        return popen

    def _readable(self, process: Process) -> None:
        try:
            messages = process.messages.read()
        except (EOFError, OSError):
            self._loop.remove_reader(process.messages.socket)
            self._in_background(self._clean_up(process))
            return
        for message, _ in messages:
            self._on_message(process, message)

    def _on_message(self, process: Process, message: dict[str, Any]) -> None:
        match message["do"]:
            case "started":
                process.started = True
            case "ready":
                process.ready = True
                self._check_ready(message.get("info"))
            case "refused":
                self._on_refused(message["detail"])
            case "draining":
                self._note_draining(process)
            case "metrics":
                self._in_background(self._send_metrics(process))
            case "samples":
                process.samples = message["samples"]
                self._end_sampling(process)
            case "pong":
                self._on_pong(process)

    def _check_ready(self, info: dict[str, Any] | None) -> None:
        serving = [process for process in self._of(HTTP) if process.ready]
        if self._shutting_down or not info or len(serving) < self._settings.workers:
            return
        if not self._was_ready:
            report_ready(Info.model_validate(info), self._settings, self._port)
        elif self._lost_process:
            log.info("ready again", model=info["model"])
        self._was_ready, self._lost_process = True, False

    async def _clean_up(self, process: Process) -> None:
        """Clean up after a child that has exited. Then start another one, or continue the shutdown."""
        code = await asyncio.to_thread(_wait, process.popen)
        process.messages.socket.close()
        self._processes.discard(process)
        self._totals.keep(process.samples)
        self._end_sampling(process)
        if self._shutting_down:
            self._note_draining(process)
            self._continue_shutdown()
            return
        long_lived = process.ready and time.monotonic() - process.started_at > _LONG_LIVED_S
        exits = self._exits[process.kind] = 1 if long_lived else self._exits[process.kind] + 1
        pause = _PAUSES_S[min(exits, len(_PAUSES_S) - 1)]
        log.error(f"the {process.kind} process exited and is restarted", code=code, pause_s=pause)
        self._lost_process = True
        if process.kind == ENGINE:
            for http in self._of(HTTP):
                http.ready = False
        self._loop.call_later(pause, self._start, process.kind)

    def _signalled(self, number: int) -> None:
        """Start the drain on the first signal. A second Ctrl-C stops at once."""
        if not self._shutting_down:
            self._shut_down("drain", self._drain_delay_s)
        elif number == signal.SIGINT:
            self._forced = True
            self._kill()

    def _on_refused(self, detail: str) -> None:
        if not self._failure:
            self._failure = detail
            self._shut_down("stop", 0.0)

    def _shut_down(self, how: str, delay_s: float) -> None:
        """Shut down: first the HTTP processes finish their requests, then the engine process stops."""
        self._shutting_down = True
        self._listener.close()  # the HTTP processes close their own copies
        for process in self._of(HTTP):
            if process.started:
                process.send({"do": how})
            else:
                process.kill()  # it has accepted no requests
        self._undrained = {process for process in self._of(HTTP) if process.started and how == "drain"}
        if how == "drain" and not self._undrained:
            log.info("draining", delay_s=delay_s)
        longest_request_s = (self._settings.upload_ms + self._settings.request_timeout_ms) / 1000
        self._loop.call_later(delay_s + longest_request_s + 2 * _LINGER_S, self._kill)
        self._continue_shutdown()

    def _note_draining(self, process: Process) -> None:
        """Note that a process drains. Once all do, log it."""
        if process in self._undrained:
            self._undrained.discard(process)
            if not self._undrained:
                log.info("draining", delay_s=self._drain_delay_s)

    def _continue_shutdown(self) -> None:
        if not self._of(HTTP):
            for engine in self._of(ENGINE):
                engine.send({"do": "stop"})
        if not self._processes:
            self._finished.set()

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()

    async def _watch(self) -> None:
        """Ping the children, and kill those whose event loops do not answer for ``watchdog_ms``.

        Silence is counted in ticks of this loop, not by a clock. While the supervisor is stopped or starved, it does
        not tick, so that time does not count against the children. At most one ping per child is unanswered. So pings
        never fill the socket of a stopped child.
        """
        tick_s = max(self._settings.watchdog_ms / 1000, _WATCHDOG_S) / _HUNG
        while True:
            for process in [process for process in self._processes if process.watched]:
                if not process.silent:
                    process.send({"do": "ping"})
                process.silent += 1
                if process.silent == _SUSPECT + 1:
                    self._suspect(process)
                elif process.silent == _HUNG + 1:
                    seconds = round(_HUNG * tick_s, 1)
                    log.error(f"the {process.kind} process is killed", pid=process.popen.pid, silent_s=seconds)
                    process.kill()
            await asyncio.sleep(tick_s)

    def _suspect(self, process: Process) -> None:
        log.warning(f"the {process.kind} process does not answer", pid=process.popen.pid)
        if process.kind == ENGINE:
            for http in self._of(HTTP):
                http.send({"do": "suspend"})

    def _on_pong(self, process: Process) -> None:
        """Handle a pong. If the child was suspect and is not killed, report that it answers again."""
        suspect, process.silent = process.suspect, 0
        if suspect and not process.killed:
            log.info(f"the {process.kind} process answers again", pid=process.popen.pid)
            if process.kind == ENGINE:
                for http in self._of(HTTP):
                    http.send({"do": "resume"})

    async def _send_metrics(self, requester: Process) -> None:
        """Request samples from the children, and send the sum to ``requester``.

        A child that has not answered the last request gets no further one. Its last known samples count.
        """
        polled = [process for process in self._processes if process.started and not process.suspect]
        for process in polled:
            if process.sampling is None:
                process.sampling = self._loop.create_future()
                process.send({"do": "samples"})
        if samplings := [process.sampling for process in polled if process.sampling]:
            await asyncio.wait(samplings, timeout=_SAMPLES_S)
        text = self._totals.render(process.samples for process in self._processes)
        requester.send({"do": "metrics", "text": text.decode()})

    @staticmethod
    def _end_sampling(process: Process) -> None:
        sampling, process.sampling = process.sampling, None
        if sampling:
            sampling.set_result(None)

    def _of(self, kind: str) -> list[Process]:
        return [process for process in self._processes if process.kind == kind]

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _connect(one: Process, other: Process) -> None:
    """Connect an engine and an HTTP process with a socket pair.

    The supervisor closes its copies, so that each process notices when the other one exits.
    """
    for process, end in zip((one, other), socket.socketpair(), strict=True):
        with end:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            process.send({"do": "connect"}, end.fileno())


def _wait(popen: "subprocess.Popen[bytes]") -> int:
    """The exit code of a process whose connection has closed. Blocks. Kills the process if it does not exit."""
    try:
        return popen.wait(_LINGER_S)
    except subprocess.TimeoutExpired:
        popen.kill()
        return popen.wait()
