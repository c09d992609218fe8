"""How long clients wait, learned through a real server from those that hang up, and what follows from it."""

import base64
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx2
import orjson
import pytest

from app.batching import Backlog, BatchQueue, Job
from app.engine import Want
from tests import tiny
from tests.api.conftest import InProcess, served
from tests.api.wire import Wire, multipart
from tests.conftest import CAT, slow

PHOTO = CAT.read_bytes()
BASE64 = base64.b64encode(PHOTO).decode()
LONG_MS = 600_000
WAITED_S = 0.5
CLIENTS = 12
Wait = Callable[[Callable[[], bool]], None]


@pytest.fixture(scope="module")
def own_server() -> Iterator[InProcess]:
    with served(request_timeout_ms=LONG_MS) as server:
        yield server


@pytest.fixture
def server(own_server: InProcess) -> InProcess:
    """Nobody has hung up or was refused yet."""
    queue = queue_of(own_server)
    queue.backlog = Backlog(queue.costs, len(queue.runs), queue.ahead_s)
    return own_server


def queue_of(server: InProcess) -> BatchQueue:
    queue: BatchQueue = server.app.state.service.classifier.served.queue
    return queue


def predict(server: InProcess, **headers: str) -> httpx2.Response:
    return httpx2.post(f"{server.url}/v1/predict", content=PHOTO, headers=headers, timeout=60)


def shown(server: InProcess) -> float | None:
    """The patience in ``/v1/info``."""
    patience: float | None = httpx2.get(f"{server.url}/v1/info").json()["batching"]["patience"]
    return patience


def measured(server: InProcess) -> float:
    [line] = [
        line for line in httpx2.get(f"{server.url}/metrics").text.splitlines() if line.startswith("topk_patience_s")
    ]
    return float(line.split()[1])


def lose_patience(server: InProcess, wait_until: Wait, seconds: float) -> None:
    """Many clients hang up after so many seconds."""
    for caller in range(50):
        queue_of(server).forget(Job(b"", Want(), math.inf, received_at=time.monotonic() - seconds, caller=caller))
    wait_until(lambda: shown(server) is not None)


@contextmanager
def busy(server: InProcess) -> Iterator[None]:
    """Every stream holds an image inside."""
    with ThreadPoolExecutor() as pool, server.held() as engine:
        holders = []
        for _ in range(engine.streams):
            holders.append(pool.submit(predict, server))
            assert engine.entered.acquire(timeout=30)
        yield
        engine.gate.set()
        assert {holder.result().status_code for holder in holders} == {200}


@contextmanager
def hang_up(
    server: InProcess, wait_until: Wait, path: str, kind: str, body: bytes, *headers: str
) -> Iterator[Callable[[], float]]:
    """Clients send this, wait for ``WAITED_S``, and half of them hang up; the others wait until the block ends.

    Yields a function: the seconds since they have sent it.
    """
    queue, abandoned = queue_of(server), server.outcome("abandoned")
    for _ in range(2 * CLIENTS):  # the hang-ups of an address count as far as there are answers to it
        assert predict(server).status_code == 200
    with ExitStack() as stack:
        with busy(server):
            sent = time.monotonic()
            wires = [stack.enter_context(Wire(server.port)) for _ in range(2 * CLIENTS)]
            for wire in wires:
                wire.head(path, f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers)
                wire.send(body)
            wait_until(lambda: len(queue) == 2 * CLIENTS)
            pass_time(wait_until, WAITED_S)
            for wire in wires[::2]:
                wire.socket.close()
            wait_until(lambda: server.outcome("abandoned") == abandoned + CLIENTS)
            yield lambda: time.monotonic() - sent
        assert {wire.status() for wire in wires[1::2]} == {200}


def pass_time(wait_until: Wait, seconds: float) -> None:
    """Until that much time has passed, which is what these clients wait for."""
    until = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= until)


def document(**members: Any) -> tuple[str, bytes]:
    return "application/json", orjson.dumps(members)


TENSOR = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [BASE64]}


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/v1/predict", ("image/jpeg", PHOTO)),
        (f"/v2/models/{tiny.NAME}/infer", document(inputs=[TENSOR])),
        slow("/v1/embed", ("image/jpeg", PHOTO)),
        slow("/v1/predict/batch", multipart(("file", "a.jpg", PHOTO))),
        slow(f"/v1/models/{tiny.NAME}:predict", document(instances=[{"b64": BASE64}])),
        slow(f"/predictions/{tiny.NAME}", ("image/jpeg", PHOTO)),
        slow("/", ("image/jpeg", PHOTO)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_clients_that_hang_up_reveal_how_long_clients_wait(
    server: InProcess, wait_until: Wait, path: str, content: tuple[str, bytes]
) -> None:
    assert (shown(server), measured(server)) == (None, math.inf)
    with hang_up(server, wait_until, path, *content) as waited_s:
        wait_until(lambda: shown(server) is not None)
        patience = shown(server)
        assert patience is not None
        assert 0.9 * WAITED_S < patience <= waited_s()
        assert measured(server) == pytest.approx(patience, abs=0.01)


def test_clients_that_state_their_deadline_reveal_nothing(server: InProcess, wait_until: Wait) -> None:
    stated = f"X-Request-Timeout-Ms: {LONG_MS}"
    with hang_up(server, wait_until, "/v1/predict", "image/jpeg", PHOTO, stated):
        pass_time(wait_until, 0.5)  # who has left counts a moment later
        assert (shown(server), measured(server)) == (None, math.inf)


def test_who_states_no_deadline_is_refused_beyond_the_patience_of_others(
    server: InProcess, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_of(server).backlog, "ahead_s", lambda: 20.0)
    assert predict(server).status_code == 200
    lose_patience(server, wait_until, 5.0)
    refused = predict(server)
    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert predict(server, **{"X-Request-Timeout-Ms": "60000"}).status_code == 200
    assert predict(server, **{"X-Request-Timeout-Ms": "15000"}).status_code == 503


@pytest.mark.parametrize(("patience", "least", "most"), [(2.0, 18, 20), (15.0, 5, 8)])
def test_retry_after_is_the_time_until_clients_would_wait(
    server: InProcess, wait_until: Wait, monkeypatch: pytest.MonkeyPatch, patience: float, least: int, most: int
) -> None:
    monkeypatch.setattr(queue_of(server).backlog, "ahead_s", lambda: 20.0)
    lose_patience(server, wait_until, patience)
    refused = predict(server)
    assert refused.status_code == 503
    assert least <= int(refused.headers["retry-after"]) <= most
    assert 1000 * (least - 1) < refused.json()["retry_after_ms"] <= 1000 * most


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that were put into a queue since the test has begun."""
    found: list[Job] = []
    put = Backlog.put
    monkeypatch.setattr(Backlog, "put", lambda backlog, jobs, now: found.extend(jobs) or put(backlog, jobs, now))
    return found


def test_the_wait_begins_with_the_last_byte_of_the_body(server: InProcess, wait_until: Wait, jobs: list[Job]) -> None:
    uploads = server.app.state.service.uploads
    with Wire(server.port) as wire:
        wire.head("/v1/predict", "Content-Type: image/jpeg", f"Content-Length: {len(PHOTO)}")
        wire.send(PHOTO[:-1])
        wait_until(lambda: uploads.inflight == len(PHOTO) - 1)
        before = time.monotonic()
        wire.send(PHOTO[-1:])
        assert wire.status() == 200
    [job] = jobs
    assert before <= job.received_at <= job.waiting_since


def test_a_caller_is_known_by_its_key(jobs: list[Job]) -> None:
    with served(api_keys="first-key,second-key") as keyed:
        for key in ("first-key", "second-key", "first-key"):
            assert predict(keyed, **{"X-API-Key": key}).status_code == 200
    first, second, again = (job.caller for job in jobs)
    assert first == again != second


def test_a_waiting_request_is_refused_as_soon_as_its_deadline_cannot_be_met(
    server: InProcess, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    shed = server.outcome("shed")
    with ThreadPoolExecutor() as pool:
        with busy(server):
            waiting = pool.submit(predict, server, **{"X-Request-Timeout-Ms": "60000"})
            wait_until(lambda: len(queue_of(server)) == 1)
            monkeypatch.setattr(Backlog, "fastest_s", 1000.0)
        refused = waiting.result()
    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert server.outcome("shed") == shed + 1
