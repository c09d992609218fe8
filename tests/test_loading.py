"""A device that hangs or is lost, in real processes: all who wait are answered, and another process is started."""

import asyncio
import contextlib
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
from tests.api.wire import Wire
from tests.conftest import CAT, REPOSITORY, Server
from tests.workers.conftest import Service, wait_until

PHOTO = CAT.read_bytes()
MODEL = (*tiny.model(), "--watchdog-ms", "2000", "--request-timeout-ms", "60000")
FAILING = """
import sys, threading
from app.engine import device_errors, openvino

forward = openvino.OpenVinoEngine.forward

@device_errors()
def fail(self, images, wants, alone=False):
    if any(want.k == 7 for want in wants):
        print("hanging", file=sys.stderr, flush=True)
        threading.Event().wait()
    if any(want.k == 8 for want in wants):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return forward(self, images, wants, alone)

openvino.OpenVinoEngine.forward = fail
"""


@pytest.fixture
def failing(tmp_path: Path) -> dict[str, str]:
    """An environment whose devices hang when asked for seven classes, and are lost when asked for eight."""
    (tmp_path / "sitecustomize.py").write_text(FAILING)
    return {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}


def ask(url: str, top_k: int = 5) -> httpx2.Response:
    return httpx2.post(f"{url}/v1/predict?top_k={top_k}", content=PHOTO, timeout=60)


@pytest.mark.slow
def test_a_device_that_hangs_ends_the_process_and_nobody_waits_in_vain(failing: dict[str, str]) -> None:
    server = Server(*MODEL, env=failing)
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
def test_an_engine_process_that_hangs_is_started_again(failing: dict[str, str]) -> None:
    server = Server(*MODEL, "--workers", "1", env=failing)
    assert ask(server.url).status_code == 200
    answer = ask(server.url, 7)
    assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
    server.wait_for("ready again")
    assert ask(server.url).status_code == 200
    assert server.stop() == 0


def lose(server: Server) -> list[bytes]:
    """The responses to 16 requests, one of which runs and one of which loses the device."""
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(server.port)) for _ in range(16)]
        for wire, top_k in zip(wires, (7, *[8] * 15), strict=True):
            headers = f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg", "Connection: close"
            wire.head(f"/v1/predict?top_k={top_k}", *headers)
            wire.send(PHOTO[:-1])
        wires[0].send(PHOTO[-1:])
        server.wait_for("hanging")
        wait_until(lambda: server.metric("topk_inflight_bytes") == 16 * len(PHOTO) - 15)
        for wire in wires[1:]:
            wire.send(PHOTO[-1:])
        return [wire.read_all() for wire in wires]


def check_not_ready(response: bytes) -> None:
    head, _, body = response.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: " in head.lower()
    assert b'"code":"not_ready"' in body


def test_a_lost_device_ends_the_process_and_everyone_is_answered(failing: dict[str, str]) -> None:
    server = Server(*MODEL[:2], "--request-timeout-ms", "60000", "--upload-idle-ms", "60000", env=failing)
    with Wire(server.port) as uploading:
        uploading.head("/v1/predict", f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg")
        for response in lose(server):
            check_not_ready(response)
        assert uploading.status() == 503
        assert server.process.wait(30) == 1
    server.stop()
    [lost, *_] = [line for line in server.log if line["event"] == "the device is lost"]
    assert "an illegal memory access was encountered" in str(lost["exception"])
    assert not any(line["event"] == "batch failed" for line in server.log)
    assert server.log[-1]["event"] == "the device has failed, and only a new process can use it again"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers need Linux")
def test_an_engine_process_whose_device_is_lost_is_started_again(failing: dict[str, str]) -> None:
    service = Service("--request-timeout-ms", "60000", env=failing)
    assert service.predict().status_code == 200
    [engine] = service.children("engine")
    processes = service.children("http")
    for response in lose(service):
        check_not_ready(response)
    assert service.wait_for("the engine process exited and is restarted")["code"] == 1
    service.wait_for("ready again")
    assert {service.predict().status_code for _ in range(10)} == {200}
    assert service.children("http") == processes
    assert engine not in service.children("engine")
    assert service.metric("topk_requests_total", route="/v1/predict", status="503") == 16
    assert service.stop() == 0


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
