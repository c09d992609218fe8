"""A connection between two requests: empty lines, how long it may be idle, and who makes room."""

import contextlib
import select
import signal
from collections.abc import Iterator

import pytest

from app.server import connections
from tests import tiny
from tests.api.conftest import InProcess, served
from tests.api.wire import Wire
from tests.conftest import CAT, Server

PHOTO = CAT.read_bytes()
GET = b"GET /livez HTTP/1.1\r\nHost: topk\r\n\r\n"
POST = f"POST /v1/predict HTTP/1.1\r\nHost: topk\r\nContent-Length: {len(PHOTO)}\r\n\r\n".encode() + PHOTO
LAST = GET.replace(b"Host: topk", b"Host: topk\r\nConnection: close")
HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def server() -> Iterator[InProcess]:
    """A server that waits half a second for a head, and an hour for another request."""
    with served(upload_idle_ms=500, keep_alive_ms=HOUR_MS) as server:
        yield server


def statuses(received: bytes) -> list[bytes]:
    return [answer[:3] for answer in received.split(b"HTTP/1.1 ")[1:]]


def answered(wire: Wire, request: bytes = GET) -> bytes:
    """The response to a request, which is read completely."""
    wire.received = b""
    wire.send(request)
    assert wire.status() == 200
    head, _, body = wire.received.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += wire.socket.recv(65536)
    return body


def test_empty_lines_before_the_first_request_are_ignored(server: InProcess) -> None:
    with Wire(server.port) as wire:
        wire.send(b"\r\n" * 3 + LAST)
        assert statuses(wire.read_all()) == [b"200"]


@pytest.mark.parametrize("request_bytes", [GET, POST], ids=["GET", "POST"])
def test_empty_lines_between_requests_are_ignored(server: InProcess, request_bytes: bytes) -> None:
    with Wire(server.port) as wire:
        plain = answered(wire, request_bytes)
        assert answered(wire, request_bytes + b"\r\n") == plain
        assert answered(wire, b"\r\n" + request_bytes) == plain
        wire.send(b"\r\n")
        assert answered(wire, b"\r\n\r\n" + request_bytes) == plain


def test_so_are_those_between_pipelined_requests(server: InProcess) -> None:
    with Wire(server.port) as wire:
        wire.send(b"\r\n" + POST + b"\r\n" + GET + b"\r\n\r\n" + POST + b"\r\n" + LAST + b"\r\n")
        assert statuses(wire.read_all()) == [b"200"] * 4


def test_so_are_those_that_come_byte_by_byte(server: InProcess) -> None:
    with Wire(server.port) as wire:
        for byte in b"\r\n\r\n" + LAST:
            wire.send(bytes([byte]))
        assert statuses(wire.read_all()) == [b"200"]


def test_an_empty_line_alone_gets_no_response(server: InProcess) -> None:
    with Wire(server.port) as wire:
        answered(wire, GET + b"\r\n")
        with Wire(server.port) as silent:  # the server closes it after half a second
            assert silent.read_all() == b""
        assert not wire.answered(0)
        assert answered(wire)


def test_empty_lines_without_end_are_refused(server: InProcess) -> None:
    with Wire(server.port) as wire:
        with contextlib.suppress(OSError):
            wire.send(b"\r\n" * 200_000 + GET)
        assert wire.status() == 400
        assert statuses(wire.read_all()) == [b"400"]


@pytest.mark.parametrize("junk", [b"\n", b"\r", b"\r\r\n", b" \r\n", b"\r\n ", b"\0"])
@pytest.mark.parametrize("first", [b"", GET], ids=["before the first", "between"])
def test_other_bytes_are_refused(server: InProcess, first: bytes, junk: bytes) -> None:
    with Wire(server.port) as wire:
        wire.send(first + junk + GET + GET)
        assert statuses(wire.read_all()) == [b"200"] * bool(first) + [b"400"]


def test_what_can_be_read_in_two_ways_is_refused_after_empty_lines_too(server: InProcess) -> None:
    head = b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
    with Wire(server.port) as wire:
        wire.send(b"\r\n\r\n" + head + b"0\r\n\r\n" + GET)
        assert statuses(wire.read_all()) == [b"400"]


def test_an_idle_connection_stays_open_for_longer_than_a_head_may_take(server: InProcess) -> None:
    with Wire(server.port) as idle:
        before = answered(idle, POST)
        with Wire(server.port) as silent:  # the server closes it after half a second
            assert silent.read_all() == b""
        assert answered(idle, POST) == before


def test_the_next_head_must_be_whole_in_time_once_it_has_begun(server: InProcess) -> None:
    with Wire(server.port) as wire:
        answered(wire)
        wire.received = b""
        wire.send(GET[:10])
        assert statuses(wire.read_all()) == [b"408"]


def test_an_idle_connection_is_closed_in_the_end_and_a_first_head_has_its_own_time() -> None:
    with served(upload_idle_ms=HOUR_MS, keep_alive_ms=200) as server, Wire(server.port) as first:
        with Wire(server.port) as idle:
            idle.send(GET + b"\r\n" * 3)
            assert statuses(idle.read_all()) == [b"200"]
        assert answered(first)


MOST = 6


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    """A server of few connections."""
    monkeypatch.setattr(connections, "_MAX_CONNECTIONS", MOST)
    with served(keep_alive_ms=HOUR_MS) as server:
        yield server


def test_idle_connections_make_room_first_the_longest_idle_before_the_others(few: InProcess) -> None:
    with contextlib.ExitStack() as stack:
        slow = stack.enter_context(Wire(few.port))
        slow.send(POST[:-1])
        silent = stack.enter_context(Wire(few.port))
        idle = [stack.enter_context(Wire(few.port)) for _ in range(MOST - 2)]
        for wire in idle:
            answered(wire)
        answered(idle[0])  # it is now the one that was used last
        for longest in (*idle[1:], idle[0]):
            newcomer = stack.enter_context(Wire(few.port))
            newcomer.send(POST[:-1])
            longest.received = b""
            assert longest.read_all() == b""
        assert not select.select([slow.socket, silent.socket], [], [], 0)[0]
        slow.send(POST[-1:])
        assert slow.status() == 200


def test_an_idle_connection_whose_next_head_has_begun_is_no_longer_idle(few: InProcess) -> None:
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(few.port)) for _ in range(MOST)]
        for wire in wires:
            answered(wire)
        begun, longest, *_, other = wires
        begun.send(GET[:10])
        answered(other)  # the server has read what came before
        answered(stack.enter_context(Wire(few.port)))
        longest.received = b""
        assert longest.read_all() == b""
        assert answered(begun, GET[10:])


def test_draining_closes_idle_connections() -> None:
    server = Server(*tiny.model(), env={"TOPK_KEEP_ALIVE_MS": str(HOUR_MS)})
    with Wire(server.port) as idle:
        answered(idle)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("draining")
        assert idle.socket.recv(1) == b""
    assert server.stop() == 0
