"""Clients in processes of their own, so that no client measures another one's interpreter lock.

``Beside`` runs the prober and the ordinary client while something else happens. ``Attacker`` runs one attack.
Times are in seconds of ``time.monotonic``, which all processes of a machine share.
"""

import contextlib
import io
import itertools
import multiprocessing
import queue
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import NamedTuple

from PIL import Image

from tests.conftest import CAT

PROBE_S = 0.02
PREPARED = "prepared"  # what an attack yields first, once its bytes exist
RESET, TIMEOUT = "reset", "timeout"
_LOOK_S = 0.1
_PIECE = 1 << 20
_SPAWN = multiprocessing.get_context("spawn")


class Sample(NamedTuple):
    """A request that began ``at`` and took ``seconds``; ``status`` is that of the response, RESET or TIMEOUT."""

    at: float
    seconds: float
    status: str


@dataclass(frozen=True, slots=True)
class Target:
    """The attacked service."""

    port: int
    pid: int


Attacking = Callable[[Target], Iterator[str]]
"""Yields PREPARED, then the status of each response as it comes. Runs in a process of its own, and is pickled."""


def photograph() -> bytes:
    """An ordinary JPEG, 500x375."""
    file = io.BytesIO()
    with Image.open(CAT) as image:
        image.convert("RGB").resize((500, 375)).save(file, "JPEG", quality=90)
    return file.getvalue()


def head(path: str, method: str = "POST", length: int | None = None, headers: Mapping[str, str] | None = None) -> bytes:
    """A request's head. ``length`` is that of the body."""
    lines = [f"{method} {path} HTTP/1.1", "Host: topk"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def post(path: str, body: bytes, content_type: str, **headers: str) -> bytes:
    """A whole request."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return head(path, length=len(body), headers={"Content-Type": content_type} | named) + body


class Wire:
    """A connection that is opened when it is needed, and kept."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    def close(self) -> None:
        if self._socket:
            self._socket.close()
        self._socket = None

    def ask(self, request: bytes, timeout: float = 30, over: Callable[[], bool] = lambda: False) -> str:
        """Send a request and read its response whole: the status, RESET or TIMEOUT. A refused one is not sent whole.

        ``over`` ends the wait early.
        """
        try:
            status = self._exchange(request, time.monotonic() + timeout, over)
        except OSError:
            status = RESET
        if not status.isdigit():
            self.close()
        return status

    def _exchange(self, request: bytes, end: float, over: Callable[[], bool]) -> str:
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=_LOOK_S * 20)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        left, received, wanted = memoryview(request), bytearray(), -1
        while time.monotonic() < end and not over():
            readable, writable, _ = select.select([self._socket], [self._socket] if left else [], [], _LOOK_S)
            if readable:
                with contextlib.suppress(BlockingIOError):
                    data = self._socket.recv(_PIECE)
                    if not data:
                        return self._ended(received)
                    if wanted < 0:
                        received += data
                        wanted = _body_bytes(received)
                    else:
                        wanted -= len(data)
                    if wanted == 0:
                        return self._ended(received, close=bool(left))
            if writable:
                try:
                    left = left[self._socket.send(left[:_PIECE]) :]
                except BlockingIOError:
                    pass
                except OSError:
                    left = left[:0]  # refused and closed: the response may have come all the same
        return TIMEOUT

    def _ended(self, received: bytearray, close: bool = True) -> str:
        if close or b"connection: close" in received[:2000].lower():
            self.close()
        return received[9:12].decode() if received.startswith(b"HTTP/1.1 ") else RESET


def _body_bytes(received: bytearray) -> int:
    """Bytes of the body that are still to come; -1 while the head is not whole, or says no length."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return -1
    start = received[:end].lower().find(b"\r\ncontent-length:")
    if start < 0:
        return -1
    length = int(received[start + 17 : end].split(b"\r\n", 1)[0])
    return max(0, length - (len(received) - end - 4))


def at_once(requests: Iterable[bytes], target: Target, connections: int, timeout: float = 60) -> Iterator[str]:
    """The statuses of these requests, over so many connections at once, each with a thread."""
    left, answers, lock = iter(requests), queue.Queue[str](), threading.Lock()

    def work() -> None:
        wire = Wire(target.port)
        while True:
            with lock:
                request = next(left, None)
            if request is None:
                break
            answers.put(wire.ask(request, timeout))
        wire.close()
        answers.put("")

    for _ in range(connections):
        threading.Thread(target=work, daemon=True).start()
    running = connections
    while running:
        status = answers.get()
        running -= not status
        if status:
            yield status


def sent(make: Callable[[], bytes], count: int, connections: int, target: Target) -> Iterator[str]:
    """An attack: the same request so many times."""
    request = make()
    yield PREPARED
    yield from at_once(itertools.repeat(request, count), target, connections)


def probe(port: int, over: Callable[[], bool]) -> Iterator[Sample]:
    """Ask ``/livez`` every 20 ms on a connection of its own."""
    wire, request = Wire(port), head("/livez", "GET")
    due = time.monotonic()
    while not over():
        at = time.monotonic()
        status = wire.ask(request, over=over)
        yield Sample(at, time.monotonic() - at, status)
        due = max(due + PROBE_S, time.monotonic())
        time.sleep(due - time.monotonic() if due > time.monotonic() else 0.001)


def ordinary(port: int, over: Callable[[], bool]) -> Iterator[Sample]:
    """Classify the same photograph again and again, one at a time; pause as asked to when refused."""
    wire, request = Wire(port), post("/v1/predict", photograph(), "image/jpeg")
    while not over():
        at = time.monotonic()
        status = wire.ask(request, over=over)
        yield Sample(at, time.monotonic() - at, status)
        if status != "200":
            time.sleep(0.05)


class Beside:
    """One of these clients in a process of its own, from ``with`` to its end; then what it saw is in ``samples``."""

    def __init__(self, client: Callable[[int, Callable[[], bool]], Iterator[Sample]], port: int) -> None:
        self.samples: list[Sample] = []
        self._over = _SPAWN.Event()
        self._ours, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_beside, args=(client, port, self._over, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._ours.recv()  # it has begun

    def __enter__(self) -> "Beside":
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.samples = self._ours.recv()
        self._process.join()
        self._ours.close()


def _beside(
    client: Callable[[int, Callable[[], bool]], Iterator[Sample]], port: int, over: Event, pipe: Connection
) -> None:
    samples: list[Sample] = []
    for sample in client(port, over.is_set):
        if not samples:
            pipe.send("begun")
        samples.append(sample)
    pipe.send(samples)


class Attacker:
    """One attack in a process of its own, which is prepared when this returns."""

    def __init__(self, attacking: Attacking, target: Target) -> None:
        self._go = _SPAWN.Event()
        self._ours, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(target=_attack, args=(attacking, target, self._go, theirs), daemon=True)
        self._process.start()
        theirs.close()
        if not self._ours.poll(60) or self._ours.recv() != PREPARED:
            raise RuntimeError(f"the attack {attacking} could not be prepared")

    def run(self, seconds: float) -> tuple[list[str], bool]:
        """Let it attack for so long at most: the statuses it got, and whether it came to its end."""
        self._go.set()
        end = time.monotonic() + seconds
        statuses: list[str] = []
        whole = False
        while not whole and self._ours.poll(max(0.0, end - time.monotonic())):
            try:
                statuses.append(self._ours.recv())
            except EOFError:
                whole = True
        return statuses, whole

    def close(self) -> None:
        """End it, and with it its connections."""
        self._process.kill()
        self._process.join()
        self._ours.close()


def _attack(attacking: Attacking, target: Target, go: Event, pipe: Connection) -> None:
    for status in attacking(target):
        pipe.send(status)
        if status == PREPARED:
            go.wait()
    pipe.close()
