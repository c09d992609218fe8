"""Explanations in several processes: a connection of their own leads to a queue of their own."""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests import tiny
from tests.api.wire import Wire, multipart
from tests.conftest import Server
from tests.engine.test_activation_tail import coarse
from tests.workers.conftest import PHOTO, Service, stopped, wait_until

pytestmark = pytest.mark.slow

EXPLAIN = "/v1/predict?explain=true"


@pytest.fixture(scope="module")
def explaining() -> Iterator[Service]:
    service = Service()
    service.wait_for("ready")
    yield service
    assert service.stop() == 0


def ask(service: Server, path: str = EXPLAIN) -> httpx2.Response:
    return httpx2.post(service.url + path, content=PHOTO, timeout=60)


def test_explanations_are_those_of_one_process(explaining: Service) -> None:
    single = Server(*tiny.model())
    wanted, got = (ask(server).json() for server in (single, explaining))
    assert single.stop() == 0
    assert got["explanation"].keys() == wanted["explanation"].keys()
    assert got["explanation"]["box"] == wanted["explanation"]["box"]
    for mine, theirs in zip(got["explanation"]["grid"], wanted["explanation"]["grid"], strict=True):
        assert mine == pytest.approx(theirs, abs=0.02)


def test_a_batch_is_explained(explaining: Service) -> None:
    kind, body = multipart(("file", "a.jpg", PHOTO), ("file", "b.txt", b"no image"), ("file", "c.jpg", PHOTO))
    url, headers = f"{explaining.url}/v1/predict/batch?explain=3", {"Content-Type": kind}
    first, second, third = httpx2.post(url, content=body, headers=headers, timeout=60).json()["results"]
    assert second["error"]["code"] == "unsupported_media_type"
    assert first["explanation"] == third["explanation"]
    assert first["explanation"]["class_id"] == 3


def test_predictions_do_not_wait_behind_explanations(explaining: Service) -> None:
    """More explanations than their queue has slots do not take those of the predictions."""
    [engine] = explaining.children("engine")
    with ThreadPoolExecutor(90) as pool:
        with stopped(engine):
            waiting = [pool.submit(ask, explaining) for _ in range(80)]
            wait_until(lambda: explaining.metric("topk_inflight_bytes") == 80 * len(PHOTO))
            plain = pool.submit(explaining.predict)
            wait_until(lambda: explaining.metric("topk_inflight_bytes") == 81 * len(PHOTO))
        assert plain.result().status_code == 200
        assert {answer.result().status_code for answer in waiting} <= {200, 503, 504}


def test_a_client_that_leaves_is_forgotten(explaining: Service) -> None:
    [engine] = explaining.children("engine")
    before = explaining.metric("topk_images_total", outcome="abandoned")
    with stopped(engine), Wire(explaining.port) as wire:
        wire.head(EXPLAIN, f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg")
        wire.send(PHOTO)
        wait_until(lambda: explaining.metric("topk_inflight_bytes") == len(PHOTO))
        wire.socket.close()
        wait_until(lambda: explaining.metric("topk_images_total", outcome="abandoned") == before + 1)
    assert ask(explaining).status_code == 200


def test_explanations_fail_with_their_engine_and_work_with_the_next(start: Callable[..., Service]) -> None:
    service = start()
    assert ask(service).status_code == 200
    [engine] = service.children("engine")
    engine.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(ask, service) for _ in range(4)]
        wait_until(lambda: service.metric("topk_inflight_bytes") == 4 * len(PHOTO))
        engine.send_signal(signal.SIGKILL)
        answers = [answer.result() for answer in waiting]
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(503, "not_ready")}
    wait_until(lambda: ask(service).status_code == 200)
    assert service.stop() == 0


def test_a_network_whose_maps_do_not_explain_it_is_refused_with_the_reason(
    start: Callable[..., Service], tmp_path: Path
) -> None:
    tiny.write(tmp_path, coarse())
    service = start("--model", str(tmp_path), "--precision", "float32")
    for _ in range(2):
        answer = ask(service)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter")
        assert "deviate from its logits" in answer.json()["detail"]
    assert service.predict().status_code == 200
