"""What a connection may do: how long, how many, how large a head, and what is read in one way only."""

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterator

import httpx2
import psutil
import pytest

from app.server import connections
from tests import tiny
from tests.api.conftest import InProcess, served
from tests.api.wire import Wire
from tests.conftest import CAT, Server
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


def test_a_silent_connection_is_closed(server: InProcess) -> None:
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
        wait_until(lambda: engine.images + len(server.app.state.service.classifier.served.queue) == 4)
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


HOST = b"Host: topk\r\n\r\n"
FIELD = b"X: y\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /livez HTTP/1.1\r\n" + FIELD * 99 + HOST, 200),
        (b"GET /livez HTTP/1.1\r\n" + FIELD * 100 + HOST, 431),
        (b"GET /livez HTTP/1.1\r\n" + FIELD * 101, 431),  # before it is complete
        (b"GET /" + b"%41" * 2700 + b" HTTP/1.1\r\n" + HOST, 404),
        (b"GET /" + b"%41" * 2800 + b" HTTP/1.1\r\n" + HOST, 414),
        (b"GET /livez HTTP/9.9\r\n" + HOST, 505),
        (b"GET /livez HTTP/0.9\r\n" + HOST, 505),
        (b"GET /livez HTTP/12.0\r\n" + HOST, 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET /livez HTTP/1.0\r\n\r\n", 200),
        (b"GET /livez HTTP/1.7\r\n" + HOST, 200),
        (b"GET /livez HTTP/1.x\r\n" + HOST, 400),
    ],
    ids=lambda value: value[:24] if isinstance(value, bytes) else None,
)
def test_heads_are_counted_before_they_are_parsed(server: InProcess, head: bytes, status: int) -> None:
    with Wire(server.port) as wire:
        wire.send(head)
        assert wire.status() == status
        if status >= 431:
            assert wire.read_all().rpartition(b"\r\n\r\n")[2]


def test_a_refused_version_is_named(server: InProcess) -> None:
    with Wire(server.port) as wire:
        wire.send(b"GET /livez HTTP/9.9\r\n" + HOST)
        assert wire.read_all().endswith(b"HTTP/9.9 is not supported. Use HTTP/1.1.")


def test_also_the_head_of_a_second_request_is_counted(server: InProcess) -> None:
    with Wire(server.port) as wire:
        wire.send(GET + GET[:-2] + FIELD * 100 + b"\r\n" + GET)
        statuses = [answer[:3] for answer in wire.read_all().split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"431"]


def cpu_of(server: InProcess, request: bytes, times: int = 20) -> float:
    """Seconds of this process's CPU for so many requests, each on a connection of its own."""
    started = time.process_time()
    for _ in range(times):
        with Wire(server.port) as wire:
            wire.send(request)
            wire.status()
    return time.process_time() - started


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /v1/info HTTP/1.1\r\n" + FIELD * 8138 + HOST,
        b"GET /" + b"%41" * 20_000 + b" HTTP/1.1\r\n" + HOST,
        b"POST /v1/predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HOST + b"0\r\n" + FIELD * 8138 + b"\r\n",
    ],
    ids=["fields", "path", "trailers"],
)
def test_thousands_of_fields_cost_no_more_than_an_ordinary_request(server: InProcess, request_bytes: bytes) -> None:
    ordinary = cpu_of(server, b"GET /v1/info HTTP/1.1\r\n" + HOST)
    assert cpu_of(server, request_bytes) < 5 * ordinary


MOST = 6  # connections of ``few``
BODY = f"POST /v1/predict HTTP/1.1\r\nHost: topk\r\nContent-Length: {10**6}\r\n\r\n".encode()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    """A server of few connections, and one more while nobody can make room."""
    monkeypatch.setattr(connections, "_MAX_CONNECTIONS", MOST)
    monkeypatch.setattr(connections, "_EXTRA_CONNECTIONS", 1)
    with served() as server:
        yield server


def in_mid_body(stack: contextlib.ExitStack, server: InProcess, count: int, sent: int = 200_000) -> list[Wire]:
    """Clients that have sent a part of a body; the server has it."""
    wires = []
    for _ in range(count):
        wire = stack.enter_context(Wire(server.port))
        wire.send(BODY + bytes(sent))
        wires.append(wire)
    wait_until(lambda: server.app.state.service.uploads.inflight >= sent * count)
    return wires


def is_served(server: InProcess) -> None:
    with Wire(server.port) as wire:
        wire.send(GET)
        assert wire.status() == 200


def test_slow_bodies_make_room_for_newcomers_the_slowest_first(few: InProcess) -> None:
    with contextlib.ExitStack() as stack:
        [slowest] = in_mid_body(stack, few, 1, sent=1)
        others = in_mid_body(stack, few, MOST - 1)
        is_served(few)
        assert slowest.status() == 408
        assert slowest.read_all().endswith(b"while all connections were in use. Retry later.")
        assert not select.select([wire.socket for wire in others], [], [], 0)[0]


@pytest.mark.slow
def test_newcomers_are_not_what_makes_room(few: InProcess) -> None:
    with contextlib.ExitStack() as stack:
        slow = in_mid_body(stack, few, MOST, sent=1)
        newcomers = [stack.enter_context(Wire(few.port)) for _ in range(MOST)]
        for wire in newcomers:
            wire.send(GET)
            assert wire.status() == 200
        assert all(wire.status() == 408 for wire in slow)


def test_nor_is_what_is_computed(few: InProcess) -> None:
    request = f"POST /v1/predict HTTP/1.1\r\nHost: topk\r\nContent-Length: {len(PHOTO)}\r\n\r\n".encode() + PHOTO
    with contextlib.ExitStack() as stack, few.held() as engine:
        waiting: list[Wire] = []
        queue = few.app.state.service.classifier.served.queue
        while len(waiting) < MOST + 1:  # one by one: an idle connection would make room for the next
            waiting.append(stack.enter_context(Wire(few.port)))
            waiting[-1].send(request)
            wait_until(lambda: engine.images + len(queue) == len(waiting))
        with Wire(few.port) as newcomer:  # beyond the limit, and beyond what is kept beyond it
            assert newcomer.status() == 503
            newcomer.read_all()
        engine.gate.set()
        assert [wire.status() for wire in waiting] == [200] * (MOST + 1)


def test_a_health_check_is_served_while_all_connections_compute(few: InProcess) -> None:
    request = f"POST /v1/predict HTTP/1.1\r\nHost: topk\r\nContent-Length: {len(PHOTO)}\r\n\r\n".encode() + PHOTO
    with contextlib.ExitStack() as stack, few.held() as engine:
        waiting = [stack.enter_context(Wire(few.port)) for _ in range(MOST)]
        for wire in waiting:
            wire.send(request)
        wait_until(lambda: engine.images + len(few.app.state.service.classifier.served.queue) == MOST)
        for _ in range(3):
            is_served(few)
        engine.gate.set()
        assert [wire.status() for wire in waiting] == [200] * MOST


@pytest.mark.slow
def test_bodies_in_all_the_files_there_are_keep_nobody_out() -> None:
    server = Server(*tiny.model(), under=("prlimit", "--nofile=60:160"))
    try:
        server.wait_for("ready")
        with contextlib.ExitStack() as stack:
            for _ in range(300):  # there is room for 96
                wire = stack.enter_context(Wire(server.port))
                with contextlib.suppress(OSError):
                    wire.send(BODY + b"slow")
                assert httpx2.get(f"{server.url}/livez", timeout=30).status_code == 200
            assert httpx2.post(f"{server.url}/v1/predict", content=PHOTO, timeout=30).status_code == 200
        warning = server.wait_for("all connections are in use; the slowest one is closed")
        assert warning["connections"] == 96
    finally:
        assert server.stop() == 0


RESET = struct.pack("ii", 1, 0)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


@pytest.mark.slow
def test_after_a_storm_of_resets_a_newcomer_is_served_first_and_the_reset_cost_little() -> None:
    server = Server(*tiny.model())
    process = psutil.Process(server.process.pid)

    def cpu() -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    def ask() -> None:
        with Wire(server.port) as wire:
            wire.send(GET.replace(b"/livez", b"/v1/info"))
            assert wire.status() == 200

    try:
        server.wait_for("ready")
        ask()
        before = cpu()
        for _ in range(500):
            ask()
        ordinary = (cpu() - before) / 500

        process.suspend()  # so that the server meets them all at once, as after a storm that it cannot follow
        for _ in range(2000):
            sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)
            sock.sendall(BODY)
            reset(sock)
        before, started = cpu(), time.monotonic()
        process.resume()
        ask()
        took, spent = time.monotonic() - started, (cpu() - before) / 2000
        print(f"\n2000 resets before they are accepted: {spent / ordinary:.2f} of a request each, {took:.2f} s")
        assert spent < 0.5 * ordinary

        storm = []
        for _ in range(400):
            sock = socket.create_connection(("127.0.0.1", server.port), timeout=30)
            sock.sendall(BODY)
            storm.append(sock)
        wait_until(lambda: process.num_fds() > 400)
        ask()
        known = len(server.log)
        process.suspend()
        for sock in storm:
            reset(sock)
        with Wire(server.port) as newcomer:
            newcomer.send(GET.replace(b"/livez", b"/v1/info"))
            process.resume()
            assert newcomer.status() == 200
        wait_until(lambda: len([line for line in server.log[known:] if line.get("status") == 499]) == 400)
        lines = [line for line in server.log[known:] if line["event"] == "request"]
        place = [line["path"] for line in lines].index("/v1/info")
        print(f"400 resets in mid-body: {place} of them are ended before a newcomer is answered")
        assert place < 200

        for _ in range(3):  # reset while they wait for their turn
            storm = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(300)]
            for sock in storm:
                sock.sendall(GET)
            for sock in storm:
                reset(sock)
            ask()
        assert not [line for line in server.log if line.get("level") == "error"]
    finally:
        assert server.stop() == 0
