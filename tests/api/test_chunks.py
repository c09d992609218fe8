"""Bodies in chunks: tiny ones are refused soon and in full words, all others are read whatever way they come."""

import asyncio
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import h11
import httpx2
import pytest

from app.api.chunks import ChunkReader, Flow, Turns
from tests.api.conftest import InProcess
from tests.api.wire import Wire
from tests.conftest import CAT, slow

PHOTO = CAT.read_bytes()
JPEG = {"Content-Type": "image/jpeg"}
HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
Wait = Callable[[Callable[[], bool]], None]


def chunked(body: bytes, size: int) -> bytes:
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def seconds(data: bytes) -> float:
    """CPU time that it takes to read this body in one go, as long as anything of it is read."""
    reader = ChunkReader(h11.SERVER)
    reader.receive_data(HEAD)
    reader.next_event()
    started = time.process_time()
    reader.receive_data(data)
    while True:
        reader.next_turn()
        event = reader.next_event()
        while event is not h11.NEED_DATA and not isinstance(event, h11.EndOfMessage):
            event = reader.next_event()
        if reader.tiny or not reader.exhausted:
            return time.process_time() - started


@pytest.mark.parametrize("size", [1, slow(8), 63])
def test_a_body_in_tiny_chunks_is_refused_with_advice(app_server: InProcess, size: int) -> None:
    with Wire(app_server.port) as wire:
        wire.head("/v1/predict", "Content-Type: image/jpeg", "Transfer-Encoding: chunked")
        wire.send(chunked(PHOTO * (1 + 1100 * size // len(PHOTO)), size))
        assert wire.status() == 400
        answer = wire.read_all()
    assert b'"code":"malformed_request"' in answer
    assert b"send larger chunks" in answer
    assert b"connection: close" in answer.lower()


def test_so_it_is_in_the_shape_of_a_protocol(app_server: InProcess) -> None:
    with Wire(app_server.port) as wire:
        wire.head("/v2/models/efficientnet_lite0/infer", "Transfer-Encoding: chunked")
        wire.send(chunked(b"x" * 3000, 1))
        assert wire.status() == 400
        assert b'{"error":"after 1000 chunks' in wire.read_all()


def test_a_thousand_tiny_chunks_are_read(app_server: InProcess) -> None:
    image = chunked(PHOTO[:1000], 1)[:-5] + chunked(PHOTO[1000:] + bytes(70_000), 100_000)
    with Wire(app_server.port) as wire:
        wire.head("/v1/predict", "Content-Type: image/jpeg", "Transfer-Encoding: chunked")
        wire.send(image)
        assert wire.status() == 200


@pytest.mark.parametrize("size", [64, 100, 4096, 10**6])
def test_others_are_read_over_several_turns(app_server: InProcess, size: int) -> None:
    """A second request on the same connection shows that the reading goes on where it stopped."""
    with Wire(app_server.port) as wire:
        for _ in range(2):
            wire.received = b""
            wire.head("/v1/predict", "Content-Type: image/jpeg", "Transfer-Encoding: chunked")
            wire.send(chunked(PHOTO + bytes(300_000), size))
            assert wire.status() == 200


def test_small_segments_of_a_body_of_known_length_are_read(app_server: InProcess, wait_until: Wait) -> None:
    """As a slow device sends them: byte by byte, two thousand times, each waited for."""
    uploads = app_server.app.state.service.uploads
    with Wire(app_server.port) as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.head("/v1/predict", f"Content-Length: {len(PHOTO)}", "Content-Type: image/jpeg")
        for number in range(1100):
            wire.send(PHOTO[number : number + 1])
            wait_until(lambda sent=number + 1: uploads.inflight >= sent)  # type: ignore[misc]
        wire.send(PHOTO[1100:])
        assert wire.status() == 200


def test_refusing_costs_less_than_reading_as_many_bytes_in_large_chunks() -> None:
    body = bytes(300_000)
    tiny, large = chunked(body, 1), chunked(bytes(1_800_000), 1000)
    assert min(seconds(tiny) for _ in range(3)) < 2 * min(seconds(large) for _ in range(3)) + 0.02


def test_a_turn_of_the_event_loop_reads_so_many_chunks() -> None:
    reader = ChunkReader(h11.SERVER)
    reader.receive_data(HEAD + chunked(bytes(64 * 5000), 64))
    reader.next_event()
    read = []
    while not read or reader.exhausted:
        reader.next_turn()
        events = iter(reader.next_event, h11.NEED_DATA)
        read.append(sum(isinstance(event, h11.Data) for event in (next(events, None) for _ in range(300))))
    assert sum(read) == 5000
    assert max(read) == 64


def test_what_comes_after_a_refusal_is_not_read(app_server: InProcess) -> None:
    """The same connection: nothing in it passes for a second request."""
    with Wire(app_server.port) as wire:
        wire.head("/v1/predict", "Content-Type: image/jpeg", "Transfer-Encoding: chunked")
        wire.send(chunked(b"x" * 2000, 1) + b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert wire.read_all().count(b"HTTP/1.1 ") == 1
    assert httpx2.get(f"{app_server.url}/livez").status_code == 200


@pytest.mark.slow
def test_attackers_in_tiny_chunks_hold_up_nobody(app_server: InProcess) -> None:
    """CPU time of this process, which attacks itself; wall-clock figures are only printed."""
    body = chunked(bytes(300_000), 1)
    started, calm = time.process_time(), 0.0
    for _ in range(4):
        assert httpx2.post(f"{app_server.url}/v1/predict", content=bytes(1_800_000)).status_code == 415
    calm = time.process_time() - started
    started = time.process_time()
    wires = [Wire(app_server.port) for _ in range(4)]
    for wire in wires:
        wire.head("/v1/predict", "Content-Type: image/jpeg", "Transfer-Encoding: chunked")
        wire.send(body)
    assert [wire.status() for wire in wires] == [400] * 4
    attacked = time.process_time() - started
    for wire in wires:
        wire.socket.close()
    print(f"{calm=:.2f} {attacked=:.2f}")
    assert attacked < 10 * calm + 0.5


def test_a_client_that_leaves_amid_its_chunks_is_let_go(
    app_server: InProcess, wait_until: Wait, caplog: pytest.LogCaptureFixture
) -> None:
    uploads = app_server.app.state.service.uploads
    for _ in range(5):
        with Wire(app_server.port) as wire:
            wire.head("/v1/predict", "Content-Type: image/jpeg", "Transfer-Encoding: chunked")
            wire.send(chunked(bytes(1_000_000), 64)[:-5])
            wait_until(lambda: uploads.inflight > 0)
        wait_until(lambda: uploads.inflight == 0)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


class Transport:
    """The part of an asyncio transport that flow control uses."""

    reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def test_a_held_connection_reads_once_it_is_released_and_its_app_has_room() -> None:
    transport = Transport()
    flow = Flow(transport)  # type: ignore[arg-type]
    flow.hold()
    flow.pause_reading()
    flow.release()
    assert not transport.reading
    flow.resume_reading()
    assert transport.reading
    flow.hold()
    flow.resume_reading()
    assert not transport.reading
    flow.release()
    assert transport.reading


@pytest.mark.anyio
async def test_so_many_connections_read_on_in_one_turn_of_the_event_loop() -> None:
    loop, turns, turn = asyncio.get_running_loop(), Turns(2), 0
    read: list[int] = []
    for _ in range(5):
        turns.add(lambda: read.append(turn), loop)
    while turn < 4:
        await asyncio.sleep(0)
        turn += 1
    assert [read.count(number) for number in range(4)] == [2, 2, 1, 0]


def test_large_bodies_that_come_at_once_are_all_read(app_server: InProcess) -> None:
    body = PHOTO + bytes(5_000_000)

    def upload(_: int) -> list[int]:
        with httpx2.Client(timeout=60, base_url=app_server.url) as client:
            # The second request shows that the connection reads on.
            return [client.post("/v1/predict", content=body, headers=JPEG).status_code for _ in "ab"]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(upload, range(4))) == [[200, 200]] * 4
