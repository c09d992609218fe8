"""The listening process: it binds early, reports when it is ready, and drains on SIGTERM, Ctrl-C or SIGHUP.

On SIGTERM, uvicorn alone stops accepting connections at once, closes idle ones and dies by the signal, so a load
balancer would lose requests. Here the service first becomes unready, the socket stays open for the drain delay, and
accepted requests are finished. The exit code is 0.
"""

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI

from app import machine, models
from app.api.address import Forwarded
from app.api.auth import Keys
from app.api.info import describe
from app.api.schemas.responses import Info
from app.errors import ModelError
from app.main import create_app
from app.processes import signals
from app.readiness import Readiness
from app.server import connections
from app.settings import Settings
from app.settings.messages import unknown_names
from app.settings.variables import environment
from app.telemetry.logging import configure_logging

log = structlog.get_logger("topk")

DRAIN_DELAY_MS = 5_000
_BACKLOG = 4096  # if it overflows, clients retry only after a second; Linux's default limit
_ACCEPT_TURNS = 10  # of the event loop, to accept the connections in the socket's backlog


def serve(settings: Settings) -> int:
    """Serve until a signal arrives. Return the exit code.

    Raises ModelError for an invalid setting or a port in use.
    """
    machine.return_memory()
    listener = prepare(settings)
    readiness = Readiness()
    app = create_app(settings, readiness)
    server = Server(config(app, settings), readiness, drain_delay_s(settings))
    port = listener.getsockname()[1]
    readiness.on_ready = lambda: report_ready(describe(app.state.service.classifier), settings, port)
    readiness.on_failure = server.stop
    server.run([listener])
    if readiness.failure:
        log.error(readiness.failure.detail)
    elif server.force_exit:
        log.warning("stopped before all requests were answered")
    else:
        log.info("stopped")
    code = 1 if readiness.failure else 130 if server.force_exit else 0
    # A thread that loads or hangs may be in native code, which aborts when the interpreter exits.
    if readiness.failure or not readiness.was_ready:
        sys.stderr.flush()
        os._exit(code)
    return code


def prepare(settings: Settings) -> socket.socket:
    """Configure logging, check the settings, and return the bound socket. Raises ModelError."""
    configure_logging(settings.log_format, settings.log_level)
    if unknown := unknown_names(environment()):
        log.warning("unknown settings are ignored", names=unknown)
    if "null" in settings.cors_origins:
        log.warning(
            "TOPK_CORS_ORIGINS contains null, the origin of every page in a file or a sandboxed frame: all of them may"
            " call the API"
        )
    models.check(settings)
    log.info("API keys are required" if (keys := len(Keys(settings))) else "no API key is required", keys=keys)
    return bind(settings.host, settings.port)


def drain_delay_s(settings: Settings) -> float:
    """Seconds between the signal and the closing of the socket: by default 0 on a terminal, without load balancers."""
    if settings.drain_delay_ms is not None:
        return settings.drain_delay_ms / 1000
    return 0.0 if sys.stderr.isatty() else DRAIN_DELAY_MS / 1000


def config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """The configuration of uvicorn."""
    return uvicorn.Config(
        Forwarded(app, settings.trusted_proxies) if settings.trusted_proxies else app,
        # httptools accepts headers of any size, and drops the body of a request that offers an upgrade to HTTP/2, as
        # Java's client does
        http=connections.bounded(settings.upload_idle_ms / 1000, settings.keep_alive_ms / 1000),
        proxy_headers=False,  # ``Forwarded`` trusts only the configured proxies
        ws="none",
        access_log=False,
        backlog=_BACKLOG,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=(settings.upload_ms + settings.request_timeout_ms) // 1000 + 1,
    )


def bind(host: str, port: int) -> socket.socket:
    """A bound socket. Raises ModelError if the address is not available."""
    address = f"{_bracketed(host)}:{port}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        advice = "; choose another port" if error.errno == errno.EADDRINUSE else ""
        raise ModelError(f"cannot listen on {address}: {error.strerror or error}{advice}") from error
    return listener


class Server(uvicorn.Server):
    """uvicorn with a drain delay."""

    def __init__(self, config: uvicorn.Config, readiness: Readiness, drain_delay_s: float) -> None:
        super().__init__(config)
        self._readiness = readiness
        self._readiness.listening = False
        self._drain_delay_s = drain_delay_s
        self._close_at: float | None = None
        self._drain_logged = False

    def stop(self) -> None:
        """Stop without a drain delay."""
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals with ``handle_exit``. Unlike in uvicorn, they are not raised again after the shutdown."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in signals.shutdown_signals()}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start the drain on the first signal. A second Ctrl-C stops at once."""
        if self._readiness.draining and sig == signal.SIGINT:
            self.should_exit = self.force_exit = True
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # tracebacks of interrupted requests
            return
        self._readiness.drain()
        if self._close_at is None:
            # before the first model is ready, no load balancer sends requests
            delay = self._drain_delay_s if self._readiness.was_ready else 0.0
            self._close_at = time.monotonic() + delay

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._readiness.listening = self.started
        self._readiness.announce()

    async def on_tick(self, counter: int) -> bool:
        if self._close_at is not None:
            if not self._drain_logged:  # not in the signal handler, which must not take the log's lock
                self._drain_logged = True
                log.info("draining", delay_s=self._drain_delay_s)
            self.should_exit |= time.monotonic() >= self._close_at
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for _ in range(_ACCEPT_TURNS):
            await asyncio.sleep(0)
        if self._readiness.failure:
            for connection in list(self.server_state.connections):
                if isinstance(connection, connections.Connection):
                    connection.refuse_upload("The server restarts. Retry later.")
        await super().shutdown(sockets)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def report_ready(info: Info, settings: Settings, port: int) -> None:
    """Report the address and an example request: a log line, or a few lines on a terminal."""
    host = "localhost" if settings.host in ("0.0.0.0", "::") else _bracketed(settings.host)
    url = f"http://{host}:{port}{settings.root_path}"
    page = f"{url}/" if settings.root_path else url
    key = "-H 'X-API-Key: YOUR_KEY' " if settings.api_keys or settings.api_keys_file else ""
    curl = f"curl {key}-F file=@docs/cat.jpg {url}/v1/predict"
    if info.warning:
        log.warning(info.warning)
    if settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty()):
        facts = info.model_dump(include={"model", "weights", "device", "precision"})
        log.info("ready", **facts, address=url, try_it=curl)
        return
    lines = (
        f"{info.model} ({info.weights}) on {info.device} in {info.precision}",
        f"open  {page}",
        f"or    {curl}",
    )
    print("\n" + "\n".join(f"  {line}" for line in lines) + "\n", file=sys.stderr, flush=True)
