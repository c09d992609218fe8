"""Shared by all tests: paths of the real weights and photographs, and a real server in its own process."""

import contextlib
import fcntl
import functools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpcore2
import httpx2
import pytest

REPOSITORY = Path(__file__).parents[1]
SHARED = Path(os.environ.get("TOPK_SHARED", REPOSITORY.parent / "shared")).resolve()
PHOTOGRAPHS = sorted((SHARED / "images" / "imagenet").glob("*/*.JPEG"))
RESNET50 = SHARED / "weights" / "resnet50.safetensors"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CAT = REPOSITORY / "docs" / "cat.jpg"
KSERVE = [
    "kserve==0.21.0",
    "kubernetes==35.0.0",
    "cloudcoil.models.keda==2.16.1.0",
    "cloudcoil.models.prometheus_operator==0.80.1.0",
]
SERVE = (sys.executable, "-m", "app", "serve", "--host", "127.0.0.1", "--port", "0", "--log-format", "json")

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
"""One set of a test's parameters that is slow."""


def pytest_configure(config: pytest.Config) -> None:
    """Give the run a model cache of its own. pytest-xdist's workers inherit it.

    All clients of a process share one TLS context: to load the certificates takes longer than several requests.

    A shell that runs pytest in the background makes it ignore SIGINT. Restore the default, which child processes
    inherit.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):  # pytest-xdist's workers have it
        cache = tempfile.TemporaryDirectory(prefix="topk-tests-")
        config.add_cleanup(cache.cleanup)
        os.environ["TOPK_CACHE_DIR"] = cache.name
    httpcore2.default_ssl_context = functools.cache(httpcore2.default_ssl_context)


def environment() -> dict[str, str]:
    """The environment for the processes that tests start: none of the user's settings, and this run's cache."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("TOPK_", "AIP_")) and k != "PORT"}
    return mine | {"TOPK_CACHE_DIR": os.environ["TOPK_CACHE_DIR"]}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import what is slow as a whole where it is not run.

    tests/production needs the packages of ``.[test-all]``, and test_attacks.py prepares its files for a second.
    """
    deselected = "not slow" in config.option.markexpr and collection_path.name in ("production", "test_attacks.py")
    return True if deselected else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run.

    A file that needs the embedded model comes first and those of tests/models next, which do not: while one of
    pytest-xdist's workers converts the model, the other does not wait for it.
    """
    items.sort(key=lambda item: item.path.name != "test_answers.py" and item.path.parent.name != "models")
    reasons = {}
    if not (RESNET50.is_file() and PHOTOGRAPHS):
        reasons["shared"] = f"no weights and photographs in {SHARED}"
    if not CHROMIUM:
        reasons["browser"] = "no Chromium is installed"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
        if item.get_closest_marker("gpu") and not _cuda():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def overloaded_ms(answer: httpx2.Response) -> int | None:
    """The ``retry_after_ms`` of an overload response; None for any other response."""
    if answer.status_code != 503 or answer.headers.get("content-type") != "application/problem+json":
        return None
    problem: dict[str, int | str] = answer.json()
    return int(problem["retry_after_ms"]) if problem["code"] == "overloaded" else None


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Server:
    """``topk serve`` as a process, on a free port. ``log`` contains its parsed log lines so far.

    ``under`` is a command that executes it in the same process, such as prlimit.
    """

    def __init__(self, *options: str, env: dict[str, str] | None = None, under: tuple[str, ...] = ()) -> None:
        self.log: list[dict[str, object]] = []
        self._seen = threading.Condition()
        self._silent = False  # True when it has closed its standard error, which it does at its end
        self.process = subprocess.Popen(
            [*under, *SERVE, *options],
            cwd=REPOSITORY,
            env=environment() | {"TOPK_DRAIN_DELAY_MS": "0"} | (env or {}),
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def url(self) -> str:
        """Its address. Waits until it is ready."""
        return str(self.wait_for("ready")["address"])

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def wait_for(self, event: str, seconds: float = 240, **fields: object) -> dict[str, object]:
        """The first log line of this event with these fields. Waits for it."""

        def match() -> dict[str, object] | None:
            return next((line for line in self.log if {"event": event, **fields}.items() <= line.items()), None)

        with self._seen:
            self._seen.wait_for(lambda: match() or self._silent, seconds)
        if found := match():
            return found
        raise AssertionError(f"no {event!r} in the log, which ends with {self.log[-5:]}")

    def metric(self, name: str, **labels: str) -> float:
        """The value of one of its metrics."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        for line in httpx2.get(f"{self.url}/metrics", timeout=60).text.splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(label in sample for label in wanted):
                return float(value)
        raise AssertionError(f"no metric {name} {labels}")

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """Send it a signal and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        code = self.process.wait(60)
        self._reader.join(10)
        assert self.process.stderr
        self.process.stderr.close()
        return code

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                entry = {"event": line.rstrip()}
            with self._seen:
                self.log.append(entry)
                self._seen.notify_all()
        with self._seen:
            self._silent = True
            self._seen.notify_all()


@pytest.fixture(scope="module")
def priority() -> Iterator[None]:
    """Raise the priority of a module's servers and clients, where the user may: the tests beside them then wait.

    For tests that put a server under load and measure it.
    """
    normal = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, normal - 5)
    yield
    os.setpriority(os.PRIO_PROCESS, 0, normal)


def convert_embedded() -> None:
    """Convert the embedded model, once per run: the first process converts it while the others wait."""
    from app.models import cache

    folder = Path(os.environ["TOPK_CACHE_DIR"])
    with open(folder / "converting", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        cache.converted("efficientnet_lite0", None, folder)


@pytest.fixture(scope="session")
def embedded_server() -> Iterator[Server]:
    """The embedded EfficientNet-Lite0. It needs neither a network nor ../shared."""
    convert_embedded()
    server = Server("--model", "efficientnet_lite0")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="session")
def keyed_server() -> Iterator[Server]:
    """The same model with the API key ``my-key``, Vertex AI's routes and a long request timeout."""
    convert_embedded()
    env = {"TOPK_API_KEYS": "my-key", "TOPK_REQUEST_TIMEOUT_MS": "60000"}
    env |= {"AIP_HEALTH_ROUTE": "/aip/health", "AIP_PREDICT_ROUTE": "/aip/predict"}
    server = Server("--model", "efficientnet_lite0", env=env)
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="session")
def resnet_server() -> Iterator[Server]:
    """ResNet-50 with the real weights of ../shared and the default settings."""
    server = Server("--model", "resnet50", "--weights", str(RESNET50))
    yield server
    assert server.stop() == 0


def _seeded(architecture: str, folder: Path) -> Path:
    import torchvision
    from safetensors.torch import save_file

    from tests.models.seeded import seeded

    path = folder / "seeded.safetensors"
    save_file(seeded(lambda: torchvision.models.get_model(architecture)).state_dict(), path)
    return path


@pytest.fixture(scope="session")
def ray_app() -> Iterator[ModuleType]:
    """The module of deploy/ray. Import Ray through this fixture: Ray reads the variables when it is first imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else one is written into the user's home
        yield pytest.importorskip("deploy.ray.app")


@pytest.fixture(scope="session")
def resnet18_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 with seeded random weights, as safetensors."""
    return _seeded("resnet18", tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def squeezenet_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a SqueezeNet, whose file is small."""
    return _seeded("squeezenet1_1", tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def squeezenet_folder(squeezenet_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SqueezeNet as a model folder named ``squeezenet1_1``. Tests must not change it; they copy it."""
    from app.models import folder, zoo

    path = tmp_path_factory.mktemp("folders") / "squeezenet1_1"
    folder.write(zoo.from_file("squeezenet1_1", None, squeezenet_weights), path)
    return path


@pytest.fixture(scope="session")
def kserve_python() -> Iterator[str]:
    """A Python with KServe's SDK, which needs older releases than topk, and half a gigabyte."""
    with tempfile.TemporaryDirectory(prefix="topk-kserve-") as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
        python = f"{folder}/bin/python"
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *KSERVE]
        ran = subprocess.run(pip, capture_output=True, text=True, timeout=280)
        assert ran.returncode == 0, ran.stderr
        yield python
