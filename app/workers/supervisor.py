"""The main process: it binds the socket, starts the engine process and the HTTP processes, and watches over them.

All of it runs on one event loop. Each child is told what to do over a socket pair. The end of that connection shows
the supervisor that a child has ended, and a child that the supervisor has. A child that lives but does not answer is
found by pings, which its event loop answers.
"""

import asyncio
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import structlog

from app import models
from app.api.auth import Keys
from app.processes import children, signals
from app.server.serving import DRAIN_DELAY_MS, bind, say_ready
from app.settings import Settings
from app.settings.messages import unknown_names
from app.settings.variables import environment
from app.telemetry.logging import configure_logging
from app.workers.metrics import Snapshot, Totals
from app.workers.wire import Messages

log = structlog.get_logger("topk")

ENGINE, HTTP = "engine", "http"
_BUFFER_BYTES = 1 << 20
_SEND_S = 1  # a child whose socket is full and that reads nothing for this long is killed
_SUSPECT, _HUNG = 10, 30  # ticks without an answer to a ping
_WATCHDOG_S = 2.0  # at least: a busy event loop answers late
_SAMPLES_S = 1.0
_LINGER_S = 10.0
_LONG_LIVED_S = 10.0
_PAUSES_S = (0.0, 0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # before starting again what has died so often in a row


def serve(settings: Settings) -> int:
    """Serve with ``settings.workers`` HTTP processes; the exit code.

    Raises ModelError for an invalid setting and a port in use.
    """
    configure_logging(settings.log_format, settings.log_level)
    if unknown := unknown_names(environment()):
        log.warning("unknown settings are ignored", names=unknown)
    models.check(settings)
    log.info("API keys are required" if (keys := len(Keys(settings))) else "no API key is required", keys=keys)
    listener = bind(settings.host, settings.port)
    delay = settings.drain_delay_ms
    if delay is None:
        delay = 0 if sys.stderr.isatty() else DRAIN_DELAY_MS
    return asyncio.run(Supervisor(settings, listener, delay / 1000).run())


@dataclass(eq=False)
class Process:
    """A child. ``samples`` are the metrics it reported last, ``sampling`` is pending while it is asked for new ones.

    ``silent`` counts the ticks since the oldest ping that has no answer.
    """

    kind: str
    popen: "subprocess.Popen[bytes]"
    messages: Messages
    born: float = field(default_factory=time.monotonic)
    started: bool = False
    ready: bool = False
    killed: bool = False
    silent: int = 0
    samples: Snapshot = field(default_factory=list)
    sampling: asyncio.Future[None] | None = None

    @property
    def watched(self) -> bool:
        """Whether its event loop must answer pings: not while an engine loads, or an HTTP process starts."""
        return not self.killed and (self.ready if self.kind == ENGINE else self.started)

    @property
    def suspect(self) -> bool:
        """Whether a ping has been unanswered for clearly too long."""
        return self.silent > _SUSPECT

    def tell(self, message: dict[str, Any], descriptor: int | None = None) -> None:
        """Send it a message; kill it if it cannot be sent."""
        if self.killed:
            return
        try:
            self.messages.send(message, descriptor)
        except OSError:
            self.kill()

    def kill(self) -> None:
        """End it at once. It is buried when its connection ends."""
        self.killed = True
        self.popen.kill()


class Supervisor:
    """``run`` once. Everything else is called by its event loop."""

    def __init__(self, settings: Settings, listener: socket.socket, drain_delay_s: float) -> None:
        self._settings = settings
        self._listener = listener
        self._port = listener.getsockname()[1]
        self._drain_delay_s = drain_delay_s
        self._processes: set[Process] = set()
        self._deaths = {ENGINE: 0, HTTP: 0}
        self._totals = Totals()
        self._tasks: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()
        self._said_ready = self._died = False
        self._undrained: set[Process] = set()
        self._ending = self._forced = False
        self._failure: str | None = None

    async def run(self) -> int:
        """Serve until a signal comes or the model cannot be served; the exit code."""
        self._loop = asyncio.get_running_loop()
        for number in signals.shutdown_signals():
            self._loop.add_signal_handler(number, self._signalled, number)
        for kind in [ENGINE, *[HTTP] * self._settings.workers]:
            self._start(kind)
        self._do(self._watch())
        await self._over.wait()
        if self._failure:
            log.error(self._failure)
            return 1
        if self._forced:
            log.warning("stopped before all was answered")
            return 130
        log.info("stopped")
        return 0

    def _start(self, kind: str) -> None:
        if self._ending:
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
            self._do(self._bury(process))
            return
        for message, _ in messages:
            self._told(process, message)

    def _told(self, process: Process, message: dict[str, Any]) -> None:
        match message["do"]:
            case "started":
                process.started = True
            case "ready":
                process.ready = True
                self._check_ready(message.get("info"))
            case "refused":
                self._refused(message["detail"])
            case "draining":
                self._drained(process)
            case "metrics":
                self._do(self._tell_metrics(process))
            case "samples":
                process.samples = message["samples"]
                self._sampled(process)
            case "pong":
                self._answered(process)

    def _check_ready(self, info: dict[str, Any] | None) -> None:
        serving = [process for process in self._of(HTTP) if process.ready]
        if self._ending or not info or len(serving) < self._settings.workers:
            return
        if not self._said_ready:
            say_ready(info, self._settings, self._port)
        elif self._died:
            log.info("ready again", model=info["model"])
        self._said_ready, self._died = True, False

    async def _bury(self, process: Process) -> None:
        """What is to be done once a child has ended: start another, or go on ending."""
        code = await asyncio.to_thread(_wait, process.popen)
        process.messages.socket.close()
        self._processes.discard(process)
        self._totals.keep(process.samples)
        self._sampled(process)
        if self._ending:
            self._drained(process)
            self._go_on_ending()
            return
        kept = process.ready and time.monotonic() - process.born > _LONG_LIVED_S
        deaths = self._deaths[process.kind] = 1 if kept else self._deaths[process.kind] + 1
        pause = _PAUSES_S[min(deaths, len(_PAUSES_S) - 1)]
        log.error(f"the {process.kind} process has ended and is started again", code=code, pause_s=pause)
        self._died = True
        if process.kind == ENGINE:
            for http in self._of(HTTP):
                http.ready = False
        self._loop.call_later(pause, self._start, process.kind)

    def _signalled(self, number: int) -> None:
        """The first signal starts the drain; a second Ctrl-C ends it at once."""
        if not self._ending:
            self._end("drain", self._drain_delay_s)
        elif number == signal.SIGINT:
            self._forced = True
            self._kill()

    def _refused(self, detail: str) -> None:
        if not self._failure:
            self._failure = detail
            self._end("stop", 0.0)

    def _end(self, how: str, delay_s: float) -> None:
        """Have the HTTP processes finish what they have, then the engine."""
        self._ending = True
        self._listener.close()  # theirs are open as long as they want
        for process in self._of(HTTP):
            if process.started:
                process.tell({"do": how})
            else:
                process.kill()  # it has accepted nothing
        self._undrained = {process for process in self._of(HTTP) if process.started and how == "drain"}
        if how == "drain" and not self._undrained:
            log.info("draining", delay_s=delay_s)
        patience = (self._settings.upload_ms + self._settings.request_timeout_ms) / 1000
        self._loop.call_later(delay_s + patience + 2 * _LINGER_S, self._kill)
        self._go_on_ending()

    def _drained(self, process: Process) -> None:
        """A process says that it is draining: it is said once, when all do."""
        if process in self._undrained:
            self._undrained.discard(process)
            if not self._undrained:
                log.info("draining", delay_s=self._drain_delay_s)

    def _go_on_ending(self) -> None:
        if not self._of(HTTP):
            for engine in self._of(ENGINE):
                engine.tell({"do": "stop"})
        if not self._processes:
            self._over.set()

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()

    async def _watch(self) -> None:
        """Ping the children, and kill those whose event loops do not answer for ``watchdog_ms``.

        Silence is counted in ticks of this loop instead of by a clock: while the supervisor is stopped or starved it
        does not tick, and that time does not count against the children. One ping at a time is unanswered, so pings
        never fill the socket of a child that is stopped.
        """
        tick_s = max(self._settings.watchdog_ms / 1000, _WATCHDOG_S) / _HUNG
        while True:
            for process in [process for process in self._processes if process.watched]:
                if not process.silent:
                    process.tell({"do": "ping"})
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
                http.tell({"do": "suspend"})

    def _answered(self, process: Process) -> None:
        """A pong: a child that was suspected is trusted again, unless it is being killed."""
        suspect, process.silent = process.suspect, 0
        if suspect and not process.killed:
            log.info(f"the {process.kind} process answers again", pid=process.popen.pid)
            if process.kind == ENGINE:
                for http in self._of(HTTP):
                    http.tell({"do": "resume"})

    async def _tell_metrics(self, asker: Process) -> None:
        """Ask the children for their samples, and send the sum to the one that asks. One that hangs keeps its last.

        A child that has not answered the last such question is not asked again.
        """
        asked = [process for process in self._processes if process.started and not process.suspect]
        for process in asked:
            if process.sampling is None:
                process.sampling = self._loop.create_future()
                process.tell({"do": "samples"})
        if samplings := [process.sampling for process in asked if process.sampling]:
            await asyncio.wait(samplings, timeout=_SAMPLES_S)
        text = self._totals.render(process.samples for process in self._processes)
        asker.tell({"do": "metrics", "text": text.decode()})

    @staticmethod
    def _sampled(process: Process) -> None:
        sampling, process.sampling = process.sampling, None
        if sampling:
            sampling.set_result(None)

    def _of(self, kind: str) -> list[Process]:
        return [process for process in self._processes if process.kind == kind]

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _connect(one: Process, other: Process) -> None:
    """Give an engine and an HTTP process the two ends of a socket pair; ours are closed, so that each sees the end."""
    for process, end in zip((one, other), socket.socketpair(), strict=True):
        with end:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            process.tell({"do": "connect"}, end.fileno())


def _wait(popen: "subprocess.Popen[bytes]") -> int:
    """On a thread: the exit code of a process that has hung up."""
    try:
        return popen.wait(_LINGER_S)
    except subprocess.TimeoutExpired:
        popen.kill()
        return popen.wait()
