"""What a connection may do: how long, how many, and what is read in one way only."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

from tests.api.conftest import InProcess, served
from tests.api.wire import Wire
from tests.conftest import CAT
from tests.workers.conftest import wait_until

PHOTO = CAT.read_bytes()
GET = b"GET /livez HTTP/1.1\r\nHost: topk\r\n\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[InProcess]:
    """One that waits half a second for a head."""
    with served(upload_idle_ms=500) as server:
        yield server


def test_a_head_that_comes_byte_by_byte_must_be_whole_in_time(server: InProcess) -> None:
    with Wire(server.port) as wire:
        with contextlib.suppress(OSError):
            for byte in GET[:-1] * 100:
                wire.send(bytes([byte]))
                if wire.answered(0.02):
                    break
        assert wire.status() == 408
        wire.read_all()


def test_a_connection_that_says_nothing_is_closed(server: InProcess) -> None:
    with Wire(server.port) as wire:
        assert wire.read_all() == b""


def test_so_is_one_that_stops_after_its_first_request(server: InProcess) -> None:
    with Wire(server.port) as wire:
        wire.send(GET + GET[:10])
        answers = wire.read_all()
    assert (answers.count(b"HTTP/1.1 200"), answers.count(b"HTTP/1.1 408")) == (1, 1)


def test_a_request_may_wait_longer_than_its_head_was_waited_for(server: InProcess) -> None:
    with Wire(server.port) as wire, server.held() as engine:
        wire.head("/v1/predict", f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg")
        wire.send(PHOTO)
        assert engine.entered.acquire(timeout=30)
        assert not wire.answered(1)
        engine.gate.set()
        assert wire.status() == 200


def test_a_client_that_takes_no_answer_is_left(server: InProcess) -> None:
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", server.port))
        deaf.settimeout(60)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            deaf.sendall(GET.replace(b"/livez", b"/openapi.json") * 200_000)


def test_a_client_that_closes_its_sending_side_is_answered(server: InProcess) -> None:
    with Wire(server.port) as wire, server.held() as engine:
        wire.head("/v1/predict", f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg")
        wire.send(PHOTO)
        wire.socket.shutdown(socket.SHUT_WR)
        assert engine.entered.acquire(timeout=30)
        assert wire.status() == 100  # it is asked whether it is still there
        engine.gate.set()
        answer = wire.read_all().rpartition(b"HTTP/1.1 ")[2]
    assert answer.startswith(b"200")
    assert b'"predictions"' in answer


def test_what_it_had_sent_before_is_answered_in_order(server: InProcess) -> None:
    with Wire(server.port) as wire:
        wire.send(GET + GET.replace(b"livez", b"nonesuch") + GET)
        wire.socket.shutdown(socket.SHUT_WR)
        statuses = [answer[:3] for answer in wire.read_all().split(b"HTTP/1.1 ")[1:]]
    assert [status for status in statuses if status != b"100"] == [b"200", b"404", b"200"]


def test_one_that_leaves_is_found_to_have_left(server: InProcess) -> None:
    abandoned = server.outcome("abandoned")
    with server.held() as engine:
        wires = [Wire(server.port) for _ in range(4)]
        for wire in wires:
            wire.head("/v1/predict", f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg")
            wire.send(PHOTO)
        wait_until(lambda: engine.images + len(server.app.state.classifier.queue) == 4)
        for wire in wires:
            wire.socket.close()
        wait_until(lambda: server.outcome("abandoned") == abandoned + 4)


@pytest.mark.parametrize(
    "closing", ["shutdown in mid-body", "HTTP/1.0"], ids=["in mid-body", "in HTTP/1.0, as proxies close"]
)
def test_others_that_close_their_sending_side_have_left(server: InProcess, closing: str) -> None:
    version, sent = ("1.0", PHOTO) if closing == "HTTP/1.0" else ("1.1", PHOTO[:-1])
    with Wire(server.port) as wire, server.held():
        wire.send(f"POST /v1/predict HTTP/{version}\r\nHost: a\r\nContent-Length: {len(PHOTO)}\r\n\r\n".encode())
        wire.send(sent)
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.read_all() == b""


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked",
        b"transfer-encoding: chunked\r\ncontent-length: 4",
        b"Content-Length: 4\r\nX: a\r\n b",
        b"Content-Length: 4\r\nX: a\n\tb",
        b"Content-Length: 4\r\nX: a\nY: b",
        b"Content-Length: 4\r\nX: a\rY: b",
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(server: InProcess, head: bytes) -> None:
    with Wire(server.port) as wire:
        wire.send(b"POST /v1/predict HTTP/1.1\r\nHost: a\r\n" + head + b"\r\n\r\n0\r\n\r\n" + GET)
        assert wire.status() == 400
        assert wire.read_all().count(b"HTTP/1.1") == 1


def test_also_as_a_second_request(server: InProcess) -> None:
    with Wire(server.port) as wire:
        wire.send(GET + GET[:-2] + b"X: a\n b\r\n\r\n" + GET)
        statuses = [answer[:3] for answer in wire.read_all().split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"400"]


def test_a_body_that_breaks_while_its_refusal_is_under_way_is_no_defect(
    server: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    with Wire(server.port) as wire:
        wire.head("/v1/predict", "Transfer-Encoding: chunked", "Content-Encoding: gzip")
        assert wire.status() == 415
        wire.send(b"no size of a chunk\r\n")
        wire.read_all()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
