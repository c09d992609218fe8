"""What happens to requests that wait: deadlines, clients that leave, company in a batch."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx2

from tests.api.conftest import InProcess
from tests.api.wire import Wire
from tests.conftest import CAT, overloaded_ms

PHOTO = CAT.read_bytes()
Wait = Callable[[Callable[[], bool]], None]


def predict(server: InProcess, **headers: str) -> httpx2.Response:
    return httpx2.post(f"{server.url}/v1/predict", content=PHOTO, headers=headers, timeout=60)


def hold_all_streams(pool: ThreadPoolExecutor, server: InProcess, engine: object) -> list[object]:
    """One request on each stream, and the device holding them."""
    holders = []
    for _ in range(server.app.state.service.classifier.engine.streams):
        holders.append(pool.submit(predict, server))
        assert engine.entered.acquire(timeout=30)  # type: ignore[attr-defined]
    return holders


def test_a_client_that_leaves_while_queued_never_reaches_the_device(app_server: InProcess, wait_until: Wait) -> None:
    abandoned = app_server.outcome("abandoned")
    with ThreadPoolExecutor() as pool, app_server.held() as engine:
        holders = hold_all_streams(pool, app_server, engine)
        with Wire(app_server.port) as wire:
            wire.head("/v1/predict", f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg")
            wire.send(PHOTO)
            wait_until(lambda: len(app_server.app.state.service.classifier.served.queue) == 1)
        wait_until(lambda: app_server.outcome("abandoned") == abandoned + 1)
        engine.gate.set()
        assert [holder.result().status_code for holder in holders] == [200] * len(holders)
        assert predict(app_server).status_code == 200
        assert engine.images == len(holders) + 1


def test_a_client_that_leaves_while_uploading_is_let_go(app_server: InProcess, wait_until: Wait) -> None:
    uploads = app_server.app.state.service.uploads
    with Wire(app_server.port) as wire:
        wire.head("/v1/predict", "Content-Length: 5000", "Content-Type: image/jpeg")
        wire.send(PHOTO[:4000])
        wait_until(lambda: uploads.inflight == 4000)
    wait_until(lambda: uploads.inflight == 0)


def test_a_deadline_that_passes_while_waiting_is_a_504(app_server: InProcess) -> None:
    expired = app_server.outcome("expired")
    with ThreadPoolExecutor() as pool, app_server.held() as engine:
        holders = hold_all_streams(pool, app_server, engine)
        late = predict(app_server, **{"X-Request-Timeout-Ms": "1500"})
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
        assert app_server.outcome("expired") == expired + 1
        engine.gate.set()
        assert {holder.result().status_code for holder in holders} == {200}


def test_one_corrupt_image_among_32_fails_alone(app_server: InProcess) -> None:
    alone = predict(app_server).json()
    together, later = threading.Barrier(32), threading.Event()

    def one(content: bytes) -> httpx2.Response:
        together.wait()
        while True:
            answer = httpx2.post(f"{app_server.url}/v1/predict", content=content, timeout=60)
            if (pause_ms := overloaded_ms(answer)) is None:
                return answer
            later.wait(pause_ms / 1000)  # a slow or busy machine may refuse some of 32 at once

    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(one, [PHOTO] * 31 + [PHOTO[:9000]]))
    assert [answer.status_code for answer in answers] == [200] * 31 + [422]
    for answer in answers[:31]:
        for got, wanted in zip(answer.json()["predictions"][:3], alone["predictions"][:3], strict=True):
            assert abs(got["score"] - wanted["score"]) < 0.02  # bfloat16 where the machine computes it
