"""Attacks on a real server's sockets, while an ordinary client is served."""

import contextlib
import resource
import select
import socket
import threading
from collections import Counter
from collections.abc import Iterator

import httpx2
import psutil
import pytest

from tests.api.wire import Wire
from tests.conftest import CAT, Server
from tests.workers.conftest import wait_until

PHOTO = CAT.read_bytes()
GET = b"GET /v1/info HTTP/1.1\r\nHost: topk\r\n\r\n"
HEAD = f"POST /v1/predict HTTP/1.1\r\nHost: topk\r\nContent-Length: {len(PHOTO)}\r\n\r\n".encode()
MIB = 2**20
IDLE_S = 4

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("priority")]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server("--model", "efficientnet_lite0", "--upload-idle-ms", str(IDLE_S * 1000))
    yield server
    assert server.stop() == 0
    assert not [line for line in server.log if line.get("level") in ("warning", "error")]


class Ordinary:
    """A client that asks on and on, beside whatever the test does; what it was answered is in ``answers``."""

    def __init__(self, server: Server, *also: int) -> None:
        self.url = server.url
        self.right = {200, *also}
        self.answers: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Ordinary":
        self._thread.start()
        self.is_served()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def is_served(self) -> None:
        """Wait for ten more answers, all of which must be right."""
        before = len(self.answers)
        wait_until(lambda: len(self.answers) >= before + 10 or set(self.answers) - self.right)
        assert set(self.answers) <= self.right

    def _ask(self) -> None:
        while not self._over.is_set():
            try:  # a connection each, since new clients must get in
                answer = httpx2.post(f"{self.url}/v1/predict", content=PHOTO, timeout=20)
            except httpx2.HTTPError:
                self.answers.append(0)
                return
            self.answers.append(answer.status_code)


@pytest.fixture
def ordinary(server: Server) -> Iterator[Ordinary]:
    with Ordinary(server) as ordinary:
        yield ordinary
        ordinary.is_served()


@pytest.fixture
def files() -> Iterator[None]:
    """Room for many connections in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def ended(sockets: list[socket.socket]) -> Counter[bytes]:
    """What each connection was told before it was closed: its statuses. Waits until all are closed."""
    told = {sock.fileno(): b"" for sock in sockets}
    by_number = {sock.fileno(): sock for sock in sockets}
    poll = select.poll()
    for number in told:
        poll.register(number, select.POLLIN)
    left = set(told)
    while left:
        ready = poll.poll(60_000)
        assert ready, f"{len(left)} connections stay open"
        for number, _ in ready:
            data = b""
            with contextlib.suppress(ConnectionResetError):
                data = by_number[number].recv(65536)
            told[number] += data
            if not data:
                poll.unregister(number)
                left.discard(number)
    return Counter(b" ".join(part[:3] for part in answers.split(b"HTTP/1.1 ")[1:]) for answers in told.values())


def connected(stack: contextlib.ExitStack, server: Server, count: int, first: bytes = b"") -> list[socket.socket]:
    sockets = []
    for _ in range(count):
        sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
        sock.sendall(first)
        sockets.append(sock)
    return sockets


@pytest.mark.parametrize(
    ("count", "first", "told"),
    [(2000, b"", b""), (2000, HEAD[:30], b"408"), (500, HEAD, b"408"), (500, HEAD + PHOTO[:5000], b"408")],
    ids=["mute", "in mid-head", "before a body", "in mid-body"],
)
def test_idle_connections_are_ended_in_time(
    server: Server, ordinary: Ordinary, files: None, count: int, first: bytes, told: bytes
) -> None:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    with contextlib.ExitStack() as stack:
        idle = connected(stack, server, count, first)
        wait_until(lambda: process.num_fds() > count)
        grown = process.memory_info().rss - before
        ordinary.is_served()
        assert ended(idle) == {told: count}
    print(f"\n{count} connections: {grown / count / 1024:.0f} KiB each")
    assert grown / count < 100 * 1024
    wait_until(lambda: process.num_fds() < 100)


def trickle(sockets: list[socket.socket], data: bytes, size: int) -> None:
    """Send on all of them a little at a time, until the server ends them."""
    pause = threading.Event()
    open_ones = dict.fromkeys(sockets)
    for start in range(0, len(data), size):
        for sock in list(open_ones):
            try:
                sock.sendall(data[start : start + size])
            except OSError:
                del open_ones[sock]
        if not open_ones:
            return
        pause.wait(0.05)
    raise AssertionError(f"{len(open_ones)} connections could go on for ever")


def test_heads_byte_by_byte_end_in_time(server: Server, ordinary: Ordinary) -> None:
    with contextlib.ExitStack() as stack:
        slow = connected(stack, server, 50)
        trickle(slow, b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000, 1)
        ordinary.is_served()


def test_bodies_byte_by_byte_end_in_time(ordinary: Ordinary) -> None:
    with contextlib.ExitStack() as stack:
        server = Server("--model", "efficientnet_lite0", "--upload-ms", str(IDLE_S * 1000))
        stack.callback(server.stop)
        with Ordinary(server) as beside:
            slow = connected(stack, server, 50, HEAD)
            trickle(slow, PHOTO, 1)
            beside.is_served()
        assert server.metric("topk_inflight_bytes") == 0


def test_clients_that_take_no_answer_are_left(server: Server, ordinary: Ordinary) -> None:
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    ask = GET.replace(b"/v1/info", b"/openapi.json") * 20_000
    with contextlib.ExitStack() as stack:
        deaf = connected(stack, server, 20)
        for sock in deaf:
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.send(ask)
        ordinary.is_served()
        for sock in deaf:
            sock.settimeout(60)
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                sock.sendall(ask * 20)
    assert process.memory_info().rss - before < 100 * MIB


def test_half_closed_clients_are_answered(server: Server, ordinary: Ordinary) -> None:
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(server.port)) for _ in range(20)]
        for wire in wires:
            wire.send(HEAD + PHOTO)
            wire.socket.shutdown(socket.SHUT_WR)
        answers = [wire.read_all().rpartition(b"HTTP/1.1 ")[2] for wire in wires]
    assert {answer[:3] for answer in answers} == {b"200"}
    assert all(b'"predictions"' in answer for answer in answers)


def test_clients_that_half_close_in_mid_body_are_dropped(server: Server, ordinary: Ordinary) -> None:
    with contextlib.ExitStack() as stack:
        halves = connected(stack, server, 100, HEAD + PHOTO[:-1])
        for sock in halves:
            sock.shutdown(socket.SHUT_WR)
        assert ended(halves) == {b"": 100}
    wait_until(lambda: server.metric("topk_inflight_bytes") <= len(PHOTO))


def test_pipelined_requests_are_answered_in_order(server: Server, ordinary: Ordinary) -> None:
    requests = [
        HEAD.replace(b"\r\n\r\n", f"\r\nX-Request-ID: {number}\r\n\r\n".encode()) + PHOTO
        if number % 3
        else GET.replace(b"\r\n\r\n", f"\r\nX-Request-ID: {number}\r\n\r\n".encode())
        for number in range(60)
    ]
    with Wire(server.port) as wire:
        sender = threading.Thread(
            target=wire.send, args=(b"".join(requests) + GET[:-2] + b"Connection: close\r\n\r\n",)
        )
        sender.start()
        answers = wire.read_all().split(b"HTTP/1.1 ")[1:]
        sender.join()
    assert {answer[:3] for answer in answers} == {b"200"}
    for number, answer in enumerate(answers[:-1]):
        assert f"x-request-id: {number}\r\n".encode() in answer.lower()
        assert (b'"predictions"' if number % 3 else b'"preprocessing"') in answer
    assert len(answers) == 61


def post(*lines: bytes, body: bytes = b"", start: bytes = b"POST /v1/predict HTTP/1.1") -> bytes:
    return b"\r\n".join((start, b"Host: topk", *lines, b"", body))


SMUGGLED = {
    "length and chunked": post(b"Content-Length: 4", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "chunked and length": post(b"Transfer-Encoding: chunked", b"Content-Length: 4", body=b"0\r\n\r\n"),
    "two lengths": post(b"Content-Length: 4", b"Content-Length: 5", body=b"abcd"),
    "a list of lengths": post(b"Content-Length: 4, 5", body=b"abcd"),
    "a signed length": post(b"Content-Length: +4", body=b"abcd"),
    "a negative length": post(b"Content-Length: -4", body=b"abcd"),
    "a hexadecimal length": post(b"Content-Length: 0x4", body=b"abcd"),
    "an unknown coding": post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "a quoted coding": post(b'Transfer-Encoding: "chunked"', body=b"0\r\n\r\n"),
    "two codings": post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "chunked and identity": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=b"0\r\n\r\n"),
    "a vertical tab before chunked": post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"),
    "a space before the colon": post(b"Content-Length : 4", body=b"abcd"),
    "a space before chunked's colon": post(b"Transfer-Encoding : chunked", body=b"0\r\n\r\n"),
    "a folded line": post(b"Transfer-Encoding:", b" chunked", body=b"0\r\n\r\n"),
    "a line that begins with a space": post(b" Content-Length: 4", body=b"abcd"),
    "bare line feeds": post(b"Content-Length: 4", body=b"abcd").replace(b"\r", b""),
    "one bare line feed": post(b"X: a\nTransfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "a bare carriage return": post(b"X: a\rContent-Length: 4", body=b"abcd"),
    "NUL in a value": post(b"Content-Length: 4", b"X: a\0b", body=b"abcd"),
    "NUL in a name": post(b"Content-Length\0: 4", body=b"abcd"),
    "no colon": post(b"Content-Length 4", body=b"abcd"),
    "no name": post(b": 4", body=b"abcd"),
    "no host": b"GET /v1/info HTTP/1.1\r\n\r\n",
    "two hosts": post(b"Host: other", start=b"GET /v1/info HTTP/1.1"),
    "a space before the method": b" " + GET,
    "no version": b"GET /v1/info\r\n\r\n",
    "a TLS greeting": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",
    "a chunk of no size": post(b"Transfer-Encoding: chunked", body=b"\r\nabcd\r\n0\r\n\r\n"),
    "a chunk of a negative size": post(b"Transfer-Encoding: chunked", body=b"-4\r\nabcd\r\n0\r\n\r\n"),
    "a chunk of a prefixed size": post(b"Transfer-Encoding: chunked", body=b"0x4\r\nabcd\r\n0\r\n\r\n"),
    "a chunk larger than 64 bits": post(b"Transfer-Encoding: chunked", body=b"f" * 25 + b"\r\nabcd\r\n0\r\n\r\n"),
    "a chunk that is longer than it says": post(b"Transfer-Encoding: chunked", body=b"4\r\nabcdef\r\n0\r\n\r\n"),
    "chunks that end in line feeds": post(b"Transfer-Encoding: chunked", body=b"4\nabcd\n0\n\n"),
    "a space before a chunk's size": post(b"Transfer-Encoding: chunked", body=b" 4\r\nabcd\r\n0\r\n\r\n"),
    "an extension of megabytes": post(
        b"Transfer-Encoding: chunked", body=b"4;" + b"x" * 3 * MIB + b"\r\nabcd\r\n0\r\n\r\n"
    ),
    "chunked in HTTP/1.0": post(b"Transfer-Encoding: chunked", body=b"0\r\n\r\n", start=b"POST /v1/predict HTTP/1.0"),
    "a header of megabytes": post(b"X: " + b"x" * 3 * MIB),
    "headers of megabytes": post(*[b"X: y"] * 500_000),
    "trailers of megabytes": post(b"Transfer-Encoding: chunked", body=b"0\r\n" + b"X: y\r\n" * 500_000 + b"\r\n"),
}


@pytest.mark.parametrize("hidden", SMUGGLED.values(), ids=SMUGGLED)
def test_a_request_that_hides_another_is_refused_and_its_connection_closed(server: Server, hidden: bytes) -> None:
    with Wire(server.port) as wire:
        wire.send(hidden + GET)
        wire.read_all()
        statuses = [answer[:3] for answer in wire.received.split(b"HTTP/1.1 ")[1:]]
    assert statuses in ([b"400"], [b"431"])
    assert b"preprocessing" not in wire.received


def test_all_of_them_at_once_disturb_nobody(server: Server, ordinary: Ordinary) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            for request in SMUGGLED.values():
                sock = connected(stack, server, 1)[0]
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    sock.sendall(request + GET)
        ordinary.is_served()


def test_the_body_of_a_request_without_need_of_one_is_no_request(server: Server, ordinary: Ordinary) -> None:
    with Wire(server.port) as wire:
        wire.send(post(f"Content-Length: {len(GET)}".encode(), body=GET, start=b"GET /livez HTTP/1.1"))
        wire.send(b"GET /livez HTTP/1.1\r\nHost: topk\r\nConnection: close\r\n\r\n")
        wire.read_all()
        assert wire.received.count(b"HTTP/1.1 ") == 2
        assert b"preprocessing" not in wire.received


def test_at_its_limit_of_files_a_server_warns_and_continues(files: None) -> None:
    server = Server("--model", "efficientnet_lite0", under=("prlimit", "--nofile=60:160"))
    process = psutil.Process(server.process.pid)
    with contextlib.ExitStack() as stack:
        server.wait_for("ready")
        assert process.rlimit(psutil.RLIMIT_NOFILE) == (160, 160)  # it takes what it may have
        with Ordinary(server) as ordinary:
            idle = connected(stack, server, 400)
            warning = server.wait_for("all connections are in use; the slowest one is closed")
            assert (warning["level"], warning["connections"]) == ("warning", 96)
            assert process.num_fds() < 160
            ordinary.is_served()
            assert ended(idle[:300]) == {b"": 300}
            assert httpx2.get(f"{server.url}/docs").status_code == 200
    assert len([line for line in server.log if line["event"] == warning["event"]]) < 10
    assert server.stop() == 0
