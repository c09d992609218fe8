"""Processes that die: who notices, what is lost, and that all is there again."""

import contextlib
import signal
import time
from collections.abc import Callable

import httpx2
import psutil
import pytest

from tests.api.wire import Wire
from tests.workers.conftest import PHOTO, Service, wait_until

pytestmark = pytest.mark.slow

Start = Callable[..., Service]


def ask(wire: Wire) -> None:
    wire.head("/v1/predict", f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg")
    wire.send(PHOTO)


def shared_maps(process: psutil.Process) -> int:
    return sum("memfd:topk" in mapped.path for mapped in process.memory_maps(grouped=False))


def test_an_http_process_that_is_killed_takes_only_its_own_requests_along(start: Start) -> None:
    service = start()
    service.wait_for("ready")
    doomed, other = service.children("http")
    [engine] = service.children("engine")
    assert service.predict().status_code == 200
    counted = service.metric("topk_images_total", outcome="accepted")
    maps = shared_maps(engine)
    with contextlib.ExitStack() as stack:
        wires: list[Wire] = []

        def of(process: psutil.Process) -> list[Wire]:
            ports = {c.raddr.port for c in process.net_connections() if c.raddr and c.status == "ESTABLISHED"}
            return [wire for wire in wires if wire.socket.getsockname()[1] in ports]

        def both_have_some() -> bool:
            wires.append(stack.enter_context(Wire(service.port)))
            return len(of(doomed)) >= 4 and len(of(other)) >= 4

        wait_until(both_have_some, 300)
        kept = of(other)
        for wire in wires:
            ask(wire)
        doomed.kill()
        assert [wire.status() for wire in kept] == [200] * len(kept)
    service.wait_for("ready again")
    assert len(service.children("http")) == 2
    assert other in service.children("http")
    assert service.children("engine") == [engine]
    assert shared_maps(engine) == maps
    assert service.metric("topk_images_total", outcome="accepted") >= counted + len(kept)
    assert {service.predict().status_code for _ in range(10)} == {200}
    assert service.stop() == 0


def test_an_engine_that_is_killed_while_nothing_waits_makes_the_service_unready(start: Start) -> None:
    service = start()
    service.wait_for("ready")
    [engine] = service.children("engine")
    engine.kill()
    wait_until(lambda: httpx2.get(f"{service.url}/readyz").status_code == 503)
    service.wait_for("ready again")
    assert service.predict().status_code == 200
    assert service.stop() == 0


def test_an_engine_that_is_killed_is_told_to_who_waits_and_comes_back(start: Start) -> None:
    service = start()
    service.wait_for("ready")
    assert service.predict().status_code == 200
    requests = service.metric("topk_requests_total", route="/v1/predict", status="200")
    batches = service.metric("topk_batch_size_count")
    [engine] = service.children("engine")
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(service.port)) for _ in range(16)]
        engine.send_signal(signal.SIGSTOP)
        for wire in wires:
            ask(wire)
        wait_until(lambda: service.metric("topk_inflight_bytes") == 16 * len(PHOTO))
        engine.kill()
        killed = time.monotonic()
        wait_until(lambda: httpx2.get(f"{service.url}/readyz").status_code == 503)
        answers = [(wire.status(), wire.received) for wire in wires]
        assert time.monotonic() - killed < 5
    assert {status for status, _ in answers} == {503}
    assert all(b"retry-after: 1" in head.lower() for _, head in answers)
    service.wait_for("ready again")
    assert {service.predict().status_code for _ in range(10)} == {200}
    assert {httpx2.get(f"{service.url}/readyz").status_code for _ in range(6)} == {200}
    assert service.metric("topk_requests_total", route="/v1/predict", status="200") == requests + 10
    assert service.metric("topk_batch_size_count") >= batches + 1
    assert service.stop() == 0


def test_without_the_main_process_none_is_left(start: Start) -> None:
    service = start()
    service.wait_for("ready")
    children = service.children()
    assert len(children) == 3
    service.process.kill()
    assert psutil.wait_procs(children, 20)[1] == []
    assert service.stop() == -signal.SIGKILL
