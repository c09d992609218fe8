"""A service of several processes, and its processes by name."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

import httpx2
import psutil
import pytest

from tests import tiny
from tests.conftest import CAT, Server

PHOTO = CAT.read_bytes()


class Service(Server):
    """``topk serve --workers 2`` with the tiny model, unless the options name another."""

    def __init__(self, *options: str, env: dict[str, str] | None = None) -> None:
        super().__init__(*tiny.model(), "--workers", "2", *options, env=env)

    def children(self, kind: str = "") -> list[psutil.Process]:
        """Its living processes of this kind, ``http`` or ``engine``."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            try:
                if f"app.workers.{kind}" in " ".join(child.cmdline()):
                    found.append(child)
            except psutil.NoSuchProcess:
                continue
        return found

    def predict(self, **headers: str) -> httpx2.Response:
        """On a connection of its own, which any of the HTTP processes may take."""
        return httpx2.post(f"{self.url}/v1/predict", content=PHOTO, headers=headers, timeout=60)


def wait_until(holds: Callable[[], object], tries: int = 3000) -> None:
    """Ask again until it holds."""
    pause = threading.Event()
    for _ in range(tries):
        if holds():
            return
        pause.wait(0.01)
    raise AssertionError("it never came to hold")


@contextlib.contextmanager
def stopped(*processes: psutil.Process) -> Iterator[None]:
    """They stand still inside. The first is the first to stop and to continue."""
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


def pass_time(seconds: float) -> None:
    """Until that much time has passed, which is all that some tests wait for."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until, tries=10_000)


@pytest.fixture
def start() -> Iterator[Callable[..., Service]]:
    """Services of a test's own, ended with it where it has not done so."""
    started: list[Service] = []

    def begin(*options: str, env: dict[str, str] | None = None) -> Service:
        started.append(Service(*options, env=env))
        return started[-1]

    yield begin
    for service in started:
        if service.process.returncode is None:
            service.stop(signal.SIGKILL)


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    """One for all tests that leave it as it was, with the embedded model."""
    service = Service("--model", "efficientnet_lite0")
    service.wait_for("ready")
    yield service
    assert service.stop() == 0
