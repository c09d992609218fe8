"""Clients that ask again at once after a refusal."""

import itertools
import tracemalloc
from collections.abc import Callable, Iterator

import httpx2
import pytest

from app.api import refusals
from app.api.refusals import Delays, Pace, Refusals
from app.errors import Overloaded
from tests.api.conftest import InProcess, served
from tests.api.wire import Wire, multipart
from tests.conftest import CAT

PHOTO = CAT.read_bytes()
RAW = [f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg"]
LONG_S = 60.0
Wait = Callable[[Callable[[], bool]], None]


def test_the_first_refusals_of_a_caller_are_not_delayed_and_no_delay_exceeds_a_second() -> None:
    pace = Pace()
    delays = [pace.delay("a", 100.0) for _ in range(200)]
    assert delays[:20] == pytest.approx([0.0] * 20)
    assert all(0 < delay <= 1 for delay in delays[21:])
    assert all(delay >= 0.7 for delay in delays[45:])


def test_clients_that_were_refused_together_do_not_come_back_together() -> None:
    pace = Pace()
    delays = sorted([pace.delay("a", 100.0) for _ in range(300)][100:])
    assert max(later - earlier for earlier, later in itertools.pairwise(delays)) < 0.01


def test_a_caller_with_few_refusals_a_second_is_never_delayed() -> None:
    pace = Pace()
    assert all(pace.delay("a", 100 + n / 19) == 0 for n in range(500))


def test_a_caller_is_forgiven_within_two_seconds() -> None:
    pace = Pace()
    for _ in range(1000):
        pace.delay("a", 100.0)
    assert pace.delay("a", 100.5) > 0.4
    assert pace.delay("a", 102.6) == 0


def test_one_caller_does_not_delay_another() -> None:
    pace = Pace()
    for _ in range(1000):
        pace.delay("a", 100.0)
    assert pace.delay("b", 100.0) == 0


def test_the_callers_refused_longest_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_MOST_CALLERS", 2)
    pace = Pace()
    for caller in ("a", "b"):
        for _ in range(100):
            pace.delay(caller, 100.0)
    pace.delay("c", 100.0)
    assert pace.delay("b", 100.0) > 0.7
    assert pace.delay("a", 100.0) == 0


class Refusing:
    """A server that admits nothing. ``seconds``: of each delay. ``callers``: those of the refusals so far.

    ``retry_after_s``: the time after which clients are told to come back.
    """

    def __init__(self, server: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = server
        self.seconds = 0.0
        self.retry_after_s = 1000.0
        self.callers: list[str] = []
        middleware = next(each for each in server.app.user_middleware if each.cls is Refusals)
        self.delays: Delays = middleware.kwargs["delays"]
        monkeypatch.setattr(self.delays._pace, "delay", self._delay)
        self.admit_single = False
        monkeypatch.setattr(server.app.state.service.classifier, "admit", self._admit)

    def _delay(self, caller: str, now: float) -> float:
        self.callers.append(caller)
        return self.seconds

    def _admit(self, count: int, deadline: float, stated: bool = False, explain: bool = False) -> None:
        if count > 1 or not self.admit_single:
            raise Overloaded("the answer would come too late", retry_after_s=self.retry_after_s)


@pytest.fixture(scope="module")
def server() -> Iterator[InProcess]:
    with served(api_keys="first-key,second-key") as server:
        yield server


@pytest.fixture
def refusing(server: InProcess, monkeypatch: pytest.MonkeyPatch) -> Refusing:
    return Refusing(server, monkeypatch)


KEY = "X-API-Key: first-key"


def test_a_refused_request_whose_body_has_arrived_keeps_its_connection(refusing: Refusing) -> None:
    with httpx2.Client(base_url=refusing.server.url, headers={"X-API-Key": "first-key"}) as client:
        for _ in range(5):
            answer = client.post("/v1/predict", content=b"\xff\xd8\xff")
            assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
    with Wire(refusing.server.port) as wire:
        lines = ["POST /v1/predict HTTP/1.1", "Host: topk", KEY, *RAW]
        for _ in range(5):
            wire.received = b""
            wire.send("\r\n".join(lines).encode() + b"\r\n\r\n" + PHOTO)
            assert wire.status() == 503
            head, _, body = wire.received.partition(b"\r\n\r\n")
            assert b"connection: close" not in head.lower()
            length = int(head.lower().partition(b"content-length: ")[2].split()[0])
            while len(body) < length:
                body += wire.socket.recv(65536)


def test_a_refusal_in_any_protocol_counts_for_its_key(refusing: Refusing) -> None:
    name = refusing.server.app.state.service.classifier.model.name
    kind, several = multipart(("file", "a.jpg", PHOTO), ("file", "b.jpg", PHOTO))
    with httpx2.Client(base_url=refusing.server.url) as client:
        for key in ("first-key", "second-key"):
            headers = {"X-API-Key": key}
            asked = [
                client.post("/v1/predict", content=PHOTO, headers=headers),
                client.post("/v1/predict/batch", content=several, headers=headers | {"Content-Type": kind}),
                client.post("/v1/embed", content=PHOTO, headers=headers),
                client.post(f"/v2/models/{name}/infer", content=PHOTO, headers=headers),
                client.post(f"/v1/models/{name}:predict", json={"instances": [{"b64": "AAAA"}]}, headers=headers),
                client.post(f"/predictions/{name}", content=PHOTO, headers=headers),
                client.post("/invocations", content=PHOTO, headers=headers),
            ]
            assert [answer.status_code for answer in asked] == [503] * 7
    assert len(refusing.callers) == 14
    first, second = refusing.callers[0], refusing.callers[7]
    assert refusing.callers == [first] * 7 + [second] * 7
    assert first != second


def test_what_is_refused_for_another_reason_is_not_delayed(refusing: Refusing) -> None:
    refusing.seconds = LONG_S
    url = f"{refusing.server.url}/v1/predict"
    assert httpx2.post(url, content=PHOTO).status_code == 401
    assert httpx2.post(url, content=b"", headers={"X-API-Key": "first-key"}).status_code == 400
    assert refusing.callers == []


ARRIVALS = {
    "whole": (RAW, PHOTO),
    "a part": (RAW, PHOTO[:9000]),
    "none": (RAW, b""),
    "expecting": ([*RAW, "Expect: 100-continue"], b""),
    "expecting, sent nevertheless": ([*RAW, "Expect: 100-continue"], PHOTO),
    "chunked": (["Transfer-Encoding: chunked", "Content-Type: image/jpeg"], b"3\r\n\xff\xd8\xff\r\n"),
    "large": (["Content-Length: 3000000", "Content-Type: image/jpeg"], b"\xff\xd8\xff" + b"x" * 2_000_000),
}


@pytest.mark.parametrize("arrived", ARRIVALS)
def test_a_delay_ends_when_its_client_leaves(refusing: Refusing, wait_until: Wait, arrived: str) -> None:
    headers, body = ARRIVALS[arrived]
    refusing.seconds = LONG_S
    with Wire(refusing.server.port) as wire:
        wire.head("/v1/predict", KEY, *headers)
        wire.send(body)
        wait_until(lambda: len(refusing.delays) == 1)
    wait_until(lambda: len(refusing.delays) == 0)


@pytest.mark.parametrize("arrived", ARRIVALS)
def test_a_delayed_refusal_arrives(refusing: Refusing, arrived: str) -> None:
    headers, body = ARRIVALS[arrived]
    refusing.seconds, refusing.retry_after_s = 0.05, 0.4
    with Wire(refusing.server.port) as wire:
        wire.head("/v1/predict", KEY, *headers)
        wire.send(body)
        status = wire.status()
        if arrived == "expecting, sent nevertheless":
            assert status in (100, 503)
        else:
            assert status == 503
        while b'"overloaded"' not in wire.received:
            wire.received += wire.socket.recv(65536)
        assert b"retry-after: 1\r\n" in wire.received.lower()
        assert b'"retry_after_ms":400' in wire.received


def test_a_refusal_beyond_the_bound_is_not_delayed(
    refusing: Refusing, wait_until: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "_MOST_DELAYED", 2)
    refusing.seconds = LONG_S
    with Wire(refusing.server.port) as one, Wire(refusing.server.port) as two, Wire(refusing.server.port) as three:
        for wire in (one, two):
            wire.head("/v1/predict", KEY, *RAW)
        wait_until(lambda: len(refusing.delays) == 2)
        three.head("/v1/predict", KEY, *RAW)
        assert three.status() == 503
        assert len(refusing.delays) == 2
    wait_until(lambda: len(refusing.delays) == 0)


def test_a_delay_ends_before_the_client_was_told_to_come_back(refusing: Refusing) -> None:
    refusing.seconds, refusing.retry_after_s = 1000.0, 0.02
    answer = httpx2.post(f"{refusing.server.url}/v1/predict", content=PHOTO, headers={"X-API-Key": "first-key"})
    assert answer.json()["code"] == "overloaded"


def test_a_delayed_refusal_holds_no_images(refusing: Refusing, wait_until: Wait) -> None:
    refusing.admit_single = True  # a batch is refused after its upload
    refusing.seconds = LONG_S
    image = b"\xff\xd8\xff" + b"x" * 3_000_000
    kind, body = multipart(*[("file", f"{n}.jpg", image) for n in range(8)])
    tracemalloc.start()
    try:
        with Wire(refusing.server.port) as wire:
            wire.head("/v1/predict/batch", KEY, f"Content-Type: {kind}", f"Content-Length: {len(body)}")
            wire.send(body)
            wait_until(lambda: len(refusing.delays) == 1)
            held, peak = tracemalloc.get_traced_memory()
            assert peak > len(body)
            assert held < len(body) / 10
            assert refusing.server.app.state.service.uploads.inflight == 0
    finally:
        tracemalloc.stop()
    wait_until(lambda: len(refusing.delays) == 0)


def test_draining_ends_all_delays(wait_until: Wait, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(api_keys="first-key") as server:
        refusing = Refusing(server, monkeypatch)
        refusing.seconds = LONG_S
        wires = [Wire(server.port) for _ in range(3)]
        for wire, (headers, body) in zip(wires, [*ARRIVALS.values()][:3], strict=True):
            wire.head("/v1/predict", KEY, *headers)
            wire.send(body)
        wait_until(lambda: len(refusing.delays) == 3)
        server.app.state.service.readiness.drain()
        for wire in wires:
            with wire:
                assert wire.status() == 503
                assert b"connection: close" in wire.received.lower()
        with Wire(server.port) as wire:
            wire.head("/v1/predict", KEY, *RAW)
            assert wire.status() == 503
