"""A device that hangs, in real processes: all who wait are answered, and the process ends so that another is started.

The network is made to hang by a picture's size: nothing else can be told from here to hang on purpose.
"""

import asyncio
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app import engine, loading, machine
from app.classifier import Classifier
from app.loading import hang
from app.settings import Settings
from tests import tiny
from tests.conftest import CAT, Server

PHOTO = CAT.read_bytes()
MODEL = (*tiny.model(), "--watchdog-ms", "2000", "--request-timeout-ms", "60000")
HANGING = """
import threading
from app.engine import openvino

forward = openvino.OpenVinoEngine.forward

def hang(self, images, wants, alone=False):
    if any(want.k == 7 for want in wants):
        threading.Event().wait()
    return forward(self, images, wants, alone)

openvino.OpenVinoEngine.forward = hang
"""


@pytest.fixture
def hanging(tmp_path: Path) -> dict[str, str]:
    """An environment whose processes hang when asked for seven classes."""
    (tmp_path / "sitecustomize.py").write_text(HANGING)
    return {"PYTHONPATH": str(tmp_path)}


def ask(url: str, top_k: int = 5) -> httpx2.Response:
    return httpx2.post(f"{url}/v1/predict?top_k={top_k}", content=PHOTO, timeout=60)


def test_a_device_that_hangs_ends_the_process_and_nobody_waits_in_vain(hanging: dict[str, str]) -> None:
    server = Server(*MODEL, env=hanging)
    assert ask(server.url).status_code == 200
    with ThreadPoolExecutor(16) as clients:
        hung = [clients.submit(ask, server.url, 7) for _ in range(16)]
        answers = [future.result() for future in hung]
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(503, "not_ready")}
    assert server.process.wait(30) == 1
    server.stop()
    assert any("the device has not responded for 2 s" in str(line["event"]) for line in server.log)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")
def test_an_engine_process_that_hangs_is_started_again(hanging: dict[str, str]) -> None:
    server = Server(*MODEL, "--workers", "1", env=hanging)
    assert ask(server.url).status_code == 200
    answer = ask(server.url, 7)
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    server.wait_for("ready again")
    assert ask(server.url).status_code == 200
    assert server.stop() == 0


def test_only_a_batch_over_the_limit_counts_as_hung() -> None:
    taken = iter([0.0, 0.01, 0.0, 0.02, 0.021])
    asyncio.run(hang(lambda: next(taken), limit_s=0.02))
    assert next(taken, None) is None


class OnDevice:
    """An engine of another device's name. Notes the niceness of the threads that run it."""

    def __init__(self, engine: Any, device: str) -> None:
        self._engine = engine
        self.device = device
        self.niceness: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def load(self) -> None:
        self._engine.load()
        self._note()

    def forward(self, *arguments: Any) -> engine.Rows:
        self._note()
        rows: engine.Rows = self._engine.forward(*arguments)
        return rows

    def _note(self) -> None:
        self.niceness.add(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no niceness of their own")
@pytest.mark.parametrize(("device", "nicer"), [("cpu", machine.COMPUTING), ("cuda:0", 0)])
def test_streams_yield_to_the_event_loop_except_on_cuda(device: str, nicer: int) -> None:
    classifier = Classifier(Settings(model=tiny.model()[1], _env_file=None))
    model, real = loading.resolve(classifier.settings)
    on_device = OnDevice(real, device)
    with ThreadPoolExecutor(1) as loader:
        loader.submit(loading.load_model, classifier, model, on_device).result()
    classifier.close()
    niceness = os.getpriority(os.PRIO_PROCESS, os.getpid())
    assert on_device.niceness == {min(19, niceness + nicer)}
