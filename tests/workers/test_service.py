"""Several processes answer as one: the same answers, batches across them, one sum of metrics, refusals, abandonment."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

from tests.api.wire import Wire, multipart
from tests.conftest import Server
from tests.workers.conftest import PHOTO, Service, wait_until


@contextmanager
def stopped_engine(service: Service) -> Iterator[None]:
    """The engine process stands still inside."""
    [engine] = service.children("engine")
    engine.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        engine.send_signal(signal.SIGCONT)


def scores(answer: dict[str, Any]) -> dict[int, float]:
    return {prediction["class_id"]: prediction["score"] for prediction in answer["predictions"]}


def test_predictions_are_those_of_one_process(service: Service, embedded_server: Server) -> None:
    wanted = httpx2.post(f"{embedded_server.url}/v1/predict?top_k=1000", content=PHOTO).json()
    got = httpx2.post(f"{service.url}/v1/predict?top_k=1000", content=PHOTO).json()
    assert (got["model"], got["weights"]) == (wanted["model"], wanted["weights"])
    assert scores(got) == pytest.approx(scores(wanted), abs=0.02)
    assert got["predictions"][0].keys() == wanted["predictions"][0].keys()


def test_embeddings_are_those_of_one_process(service: Service, embedded_server: Server) -> None:
    wanted, got = (httpx2.post(f"{server.url}/v1/embed", content=PHOTO).json() for server in (embedded_server, service))
    assert got["dim"] == len(got["embedding"]) == wanted["dim"]
    assert got["embedding"] == pytest.approx(wanted["embedding"], abs=0.2)


def test_answers_from_wordnet_are_those_of_one_process(service: Service, embedded_server: Server) -> None:
    servers = (embedded_server, service)
    query = "/v1/predict?taxonomy=true"
    wanted, got = (httpx2.post(f"{server.url}{query}", content=PHOTO).json() for server in servers)
    assert got["answer"] | {"score": None} == wanted["answer"] | {"score": None}
    assert got["answer"]["score"] == pytest.approx(wanted["answer"]["score"], abs=0.02)
    wanted, got = (httpx2.get(f"{server.url}/v1/taxonomy/n02084071").json() for server in servers)
    assert got == wanted


def test_a_bad_image_of_a_batch_fails_alone(service: Service) -> None:
    kind, body = multipart(("file", "a.jpg", PHOTO), ("file", "b.txt", b"no image"), ("file", "c.jpg", PHOTO))
    answer = httpx2.post(f"{service.url}/v1/predict/batch", content=body, headers={"Content-Type": kind}).json()
    first, second, third = answer["results"]
    assert second["error"]["code"] == "unsupported_media_type"
    assert scores(first) == pytest.approx(scores(third), abs=0.02)


def test_info_is_that_of_one_process(service: Service, embedded_server: Server) -> None:
    wanted, got = (httpx2.get(f"{server.url}/v1/info").json() for server in (embedded_server, service))
    measured = ("batching", "decode", "limits")
    assert {k: v for k, v in got.items() if k not in measured} == {k: v for k, v in wanted.items() if k not in measured}
    assert got["batching"]["cost_ms"].keys() == wanted["batching"]["cost_ms"].keys()
    assert got["limits"]["max_pixels"] == wanted["limits"]["max_pixels"]


def test_batches_form_across_processes(service: Service) -> None:
    before = {name: service.metric(f"topk_batch_size_{name}") for name in ("sum", "count")}
    worked = {child.pid: child.cpu_times().user for child in service.children("http")}
    patient = {"X-Request-Timeout-Ms": "60000"}
    with ThreadPoolExecutor(16) as pool:
        with stopped_engine(service):  # on a slow machine the clients alone do not fill a batch
            waiting = [pool.submit(service.predict, **patient) for _ in range(16)]
            wait_until(lambda: service.metric("topk_inflight_bytes") == 16 * len(PHOTO))
        answers = [answer.result() for answer in waiting]
        answers += pool.map(lambda _: service.predict(**patient), range(160))
    assert {answer.status_code for answer in answers} == {200}
    images, batches = (service.metric(f"topk_batch_size_{name}") - before[name] for name in ("sum", "count"))
    assert images == 176
    assert images / batches > 1
    assert all(child.cpu_times().user > worked[child.pid] for child in service.children("http"))


def test_every_process_tells_the_sum(service: Service) -> None:
    before = service.metric("topk_images_total", outcome="accepted")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: service.predict(), range(20)))
    sums = {service.metric("topk_images_total", outcome="accepted") for _ in range(10)}
    assert sums == {before + 20}
    assert service.metric("topk_model_info") == service.metric("topk_ready") == 1


def test_what_would_come_too_late_is_refused_in_every_process(service: Service) -> None:
    assert service.predict().status_code == 200  # a service that was idle for long would try 1 ms
    for _ in range(8):
        refused = service.predict(**{"X-Request-Timeout-Ms": "1"})
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"] == "1"


@pytest.mark.slow
def test_a_queue_that_is_too_long_refuses(service: Service) -> None:
    kind, body = multipart(*[("file", "a.jpg", PHOTO)] * 32)
    with ThreadPoolExecutor(16) as pool:
        waiting = []
        with stopped_engine(service):
            waiting = [
                pool.submit(
                    httpx2.post,
                    f"{service.url}/v1/predict/batch",
                    content=body,
                    headers={"Content-Type": kind},
                    timeout=60,
                )
                for _ in range(12)
            ]
            wait_until(lambda: service.predict(**{"X-Request-Timeout-Ms": "300"}).status_code == 503)
        assert {answer.result().status_code for answer in waiting} <= {200, 503}
    assert service.predict().status_code == 200


@pytest.mark.slow
def test_a_client_that_leaves_never_reaches_the_device(service: Service) -> None:
    abandoned = service.metric("topk_images_total", outcome="abandoned")
    computed = service.metric("topk_batch_size_sum")
    with stopped_engine(service):
        with Wire(service.port) as wire:
            wire.head("/v1/predict", f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg")
            wire.send(PHOTO)
            wait_until(lambda: service.metric("topk_inflight_bytes") == len(PHOTO))
        wait_until(lambda: service.metric("topk_images_total", outcome="abandoned") == abandoned + 1)
    assert service.predict().status_code == 200
    assert service.metric("topk_batch_size_sum") == computed + 1
