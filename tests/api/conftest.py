"""A server in this process, so that a test can hold its device still; real sockets all the same."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import structlog

from app import engine
from app.engine import Rows, Want
from app.main import create_app, start_loading
from app.readiness import Readiness
from app.server.serving import Server, bind, config
from app.settings import Settings
from tests import tiny
from tests.conftest import convert_embedded

EMBEDDED = "efficientnet_lite0"

structlog.configure(processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()])


class HeldEngine:
    """A real engine behind a gate: ``forward`` reports its batch, then waits until the gate is open."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.images = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def forward(self, images: Sequence[Any], wants: Sequence[Want], alone: bool = False) -> Rows:
        self.images += len(images)
        self.entered.release()
        assert self.gate.wait(60)
        return self._engine.forward(images, wants, alone)


def held(*arguments: Any) -> Any:
    """An engine as the settings name it, behind a gate."""
    return HeldEngine(engine.create(*arguments))


class InProcess:
    """An app being served: its address, its state, its engine behind a gate (open until a test closes it)."""

    def __init__(self, app: Any, port: int) -> None:
        self.app = app
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.engine: HeldEngine = app.state.service.classifier.engine

    def outcome(self, name: str) -> float:
        """Images that ended in this outcome so far."""
        return self.app.state.service.metrics.registry.get_sample_value("topk_images_total", {"outcome": name}) or 0.0

    @contextmanager
    def held(self) -> Iterator[HeldEngine]:
        """The device stands still inside."""
        self.engine.images = 0
        self.engine.entered = threading.Semaphore(0)
        self.engine.gate.clear()
        try:
            yield self.engine
        finally:
            self.engine.gate.set()


@contextmanager
def served(**options: Any) -> Iterator[InProcess]:
    """An app with these settings; its model is the tiny one unless they name another."""
    options = {"model": tiny.model()[1], "host": "127.0.0.1", "port": 0} | options
    settings = Settings(_env_file=None, **options)
    ready = threading.Event()
    readiness = Readiness(on_ready=ready.set, on_failure=ready.set)
    app = create_app(settings, readiness, partial(start_loading, create=held))
    listener = bind(settings.host, settings.port)
    server = Server(config(app, settings), readiness, 0)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        assert ready.wait(280)
        assert not readiness.failure
        yield InProcess(app, listener.getsockname()[1])
    finally:
        server.stop()
        thread.join(30)


@pytest.fixture(scope="session")
def app_server() -> Iterator[InProcess]:
    """The embedded model with the default settings."""
    convert_embedded()
    with served(model=EMBEDDED) as server:
        yield server


@pytest.fixture(scope="session")
def small_limits() -> Iterator[InProcess]:
    """API keys, and limits small enough to meet."""
    limits: dict[str, Any] = {
        "api_keys": "first-key,second-key",
        "max_upload_bytes": 1_000_000,
        "max_body_bytes": 1_500_000,
        "max_batch_images": 4,
        "max_inflight_bytes": 3_000_000,
        "upload_idle_ms": 400,
        "upload_ms": 1200,
        "cors_origins": "https://page.example",
    }
    convert_embedded()
    with served(model=EMBEDDED, **limits) as server:
        yield server


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Ask again until it holds: for what a server counts a moment after it has answered."""

    def wait(holds: Callable[[], bool], seconds: float = 20) -> None:
        pause = threading.Event()
        for _ in range(int(seconds / 0.001)):
            if holds():
                return
            pause.wait(0.001)
        raise AssertionError("it never came to hold")

    return wait
