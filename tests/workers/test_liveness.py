"""Processes that live but do not answer: who is replaced, who is not, and what clients see meanwhile."""

import contextlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.api.wire import Wire
from tests.conftest import REPOSITORY
from tests.workers.conftest import PHOTO, Service, pass_time, stopped, wait_until

Start = Callable[..., Service]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("priority")]
LIMIT_MS = 2000
WATCHDOG = {"TOPK_WATCHDOG_MS": str(LIMIT_MS)}

# Asked for seven classes, the engine's event loop blocks; sent X-Block to /livez, that of an HTTP process does.
BLOCKING = """
import threading
from app.api import health
from app.workers import wire

read_tasks, check_alive = wire.read_tasks, health.check_alive

def read_and_block(payload):
    tasks = read_tasks(payload)
    if any(task.want.k == 7 for task in tasks):
        threading.Event().wait()
    return tasks

def check_and_block(request):
    if "x-block" in request.headers:
        threading.Event().wait()
    check_alive(request)

wire.read_tasks, health.check_alive = read_and_block, check_and_block
"""

# Loading holds the interpreter for longer than the limit, as an import or a compiler may. So does the start of an HTTP
# process.
SLOW = f"""
import ctypes, sys

def hold():
    ctypes.PyDLL(None).usleep({2 * LIMIT_MS} * 1000)  # without releasing the interpreter

if "app.workers.http" in sys.orig_argv:
    hold()
if "app.workers.engine" in sys.orig_argv:
    from app.classifier import Classifier
    load = Classifier.load

    def load_slowly(self):
        hold()
        load(self)

    Classifier.load = load_slowly
"""


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """An environment whose processes run this code first."""

    def environment(code: str) -> dict[str, str]:
        (tmp_path / "sitecustomize.py").write_text(code)
        return WATCHDOG | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}

    return environment


def readiness(service: Service) -> httpx2.Response:
    return httpx2.get(f"{service.url}/readyz", timeout=60)


def events(service: Service) -> str:
    return " ".join(str(line["event"]) for line in service.log)


def check_serving(service: Service) -> None:
    assert {service.predict().status_code for _ in range(10)} == {200}
    assert {readiness(service).status_code for _ in range(6)} == {200}
    assert service.stop() == 0


def test_a_stopped_engine_is_replaced_and_nobody_waits_in_vain(start: Start) -> None:
    service = start(env=WATCHDOG)
    service.wait_for("ready")
    [engine] = service.children("engine")
    others = service.children("http")
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(service.port)) for _ in range(8)]
        stack.enter_context(stopped(engine))
        for wire in wires:
            wire.head("/v1/predict", f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg")
            wire.send(PHOTO)
        service.wait_for("the engine process does not answer", pid=engine.pid)
        wait_until(lambda: readiness(service).status_code == 503)
        assert {wire.status() for wire in wires} == {503}
    service.wait_for("the engine process is killed", pid=engine.pid)
    service.wait_for("ready again")
    assert service.children("engine") != [engine]
    assert service.children("http") == others
    check_serving(service)


def test_an_engine_that_answers_again_in_time_is_kept_and_ready_again(start: Start) -> None:
    service = start(env={"TOPK_WATCHDOG_MS": "12000", "TOPK_REQUEST_TIMEOUT_MS": "60000"})
    service.wait_for("ready")
    children = service.children()
    [engine] = service.children("engine")
    with ThreadPoolExecutor(4) as pool:
        with stopped(engine):
            waiting = [pool.submit(service.predict) for _ in range(4)]
            service.wait_for("the engine process does not answer", pid=engine.pid)
            wait_until(lambda: {readiness(service).status_code for _ in range(8)} == {503})
            refusals = [readiness(service), *(service.predict() for _ in range(8))]
            assert {(answer.status_code, answer.json()["code"]) for answer in refusals} == {(503, "not_ready")}
            assert refusals[0].json()["detail"] == "the engine process does not answer"
            assert service.metric("topk_ready") == 0
        assert {answer.result().status_code for answer in waiting} == {200}
    service.wait_for("the engine process answers again", pid=engine.pid)
    wait_until(lambda: {readiness(service).status_code for _ in range(8)} == {200})
    assert service.metric("topk_ready") == 1
    assert service.children() == children
    check_serving(service)


def test_a_stopped_http_process_is_replaced_while_the_others_serve(start: Start) -> None:
    service = start(env=WATCHDOG)
    service.wait_for("ready")
    doomed, other = service.children("http")
    [engine] = service.children("engine")
    with stopped(doomed):
        service.wait_for("the http process is killed", pid=doomed.pid)
    service.wait_for("ready again")
    assert doomed not in service.children("http")
    assert other in service.children("http")
    assert len(service.children("http")) == 2
    assert service.children("engine") == [engine]
    check_serving(service)


@pytest.mark.parametrize("kind", ["engine", "http"])
def test_a_process_whose_event_loop_is_stuck_is_replaced(
    start: Start, changed: Callable[[str], dict[str, str]], kind: str
) -> None:
    service = start(env=changed(BLOCKING))
    service.wait_for("ready")
    before = service.children(kind)
    if kind == "engine":
        assert httpx2.post(f"{service.url}/v1/predict?top_k=7", content=PHOTO, timeout=60).status_code == 503
    else:
        with pytest.raises(httpx2.RemoteProtocolError):
            httpx2.get(f"{service.url}/livez", headers={"X-Block": "1"}, timeout=60)
    killed = service.wait_for(f"the {kind} process is killed")
    assert killed["pid"] in [process.pid for process in before]
    service.wait_for("ready again")
    check_serving(service)


@pytest.mark.parametrize("whole", [False, True], ids=["supervisor", "all"])
def test_time_for_which_the_supervisor_is_stopped_does_not_count(start: Start, whole: bool) -> None:
    service = start(env=WATCHDOG)
    service.wait_for("ready")
    children = service.children()
    with stopped(psutil.Process(service.process.pid), *(children if whole else [])):
        pass_time(2 * LIMIT_MS / 1000)
    pass_time(2 * LIMIT_MS / 1000)
    assert service.children() == children
    assert not any(words in events(service) for words in ("does not answer", "is killed", "process exited"))
    check_serving(service)


def test_a_load_and_a_start_that_take_longer_than_the_limit_are_waited_for(
    start: Start, changed: Callable[[str], dict[str, str]]
) -> None:
    began = time.monotonic()
    service = start(env=changed(SLOW))
    service.wait_for("ready")
    assert time.monotonic() - began > 2 * LIMIT_MS / 1000
    assert not any(words in events(service) for words in ("does not answer", "is killed", "process exited"))
    check_serving(service)


def test_questions_for_metrics_do_not_fill_the_socket_of_a_stopped_process(start: Start) -> None:
    service = start(env={"TOPK_WATCHDOG_MS": "600000"})
    service.wait_for("ready")
    [engine] = service.children("engine")
    with stopped(engine), ThreadPoolExecutor(100) as pool, httpx2.Client(base_url=service.url, timeout=60) as client:
        answers = pool.map(lambda _: client.get("/metrics").status_code, range(500))
        assert set(answers) == {200}
    assert service.children("engine") == [engine]
    check_serving(service)
