"""The connections of the engine process to HTTP processes, which the test plays."""

import asyncio
import math
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from app.batching import BatchQueue, CostCurve, Job
from app.engine import Jpeg, Row, Want
from app.workers import memory, wire
from app.workers.engine import HttpConnection
from app.workers.memory import Slots
from tests.workers.conftest import wait_until

CROP, SLOTS, CALLER = 8, 200, 7
NOW = 1000.0


class Device:
    """Every image is of class 1. A batch with an image of ``CALLER`` waits until the gate lets it pass."""

    def __init__(self) -> None:
        self.now = NOW
        self.images: list[Any] = []
        self.gate = threading.Semaphore(0)
        self.batches: list[int] = []
        self._entered = threading.Semaphore(0)
        self.queue = BatchQueue([self._run], CostCurve((SLOTS,)), clock=lambda: self.now)
        self.served: Any = SimpleNamespace(queue=self.queue)

    def connect(self, connection: HttpConnection) -> None:
        """The test reads the queue itself."""

    def disconnect(self, connection: HttpConnection) -> None:
        pass

    def publish_soon(self) -> None:
        pass

    async def started(self) -> None:
        """Wait for a batch at the gate."""
        assert await asyncio.to_thread(self._entered.acquire, timeout=30)

    @property
    def patience(self) -> float:
        self.now += 1  # an estimate may be a moment old
        return self.queue.outlook().patience

    def _run(self, jobs: Sequence[Job]) -> list[Row]:
        self.images += [job.image for job in jobs]
        self.batches.append(len(jobs))
        if any(job.caller == CALLER for job in jobs):
            self._entered.release()
            assert self.gate.acquire(timeout=30)
        return [Row(np.array([1]), np.ones(1, np.float32)) for _ in jobs]


@contextmanager
def started() -> Iterator[Device]:
    device = Device()
    device.queue.start()
    try:
        yield device
    finally:
        device.gate.release(SLOTS)
        device.queue.close()


class Peer:
    """An HTTP process that is connected to the device."""

    async def connect(self, device: Any) -> "Peer":
        ours, theirs = socket.socketpair()
        descriptor = memory.create(Slots.size(SLOTS, CROP))
        slots = Slots(descriptor, SLOTS, CROP)
        os.close(descriptor)
        await asyncio.get_running_loop().create_connection(lambda: HttpConnection(device, slots), sock=theirs)
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        self.slots = slots
        self._frames = wire.Frames()
        self._sent = 0
        return self

    def send(self, count: int, received_at: float, caller: int | None = None) -> list[int]:
        """Tasks of one caller, or each of another one. Returns their numbers."""
        numbers = [self._sent + place for place in range(count)]
        self._sent += count
        tasks = []
        for number in numbers:
            terms = Want(k=1), math.inf, received_at, False, 100 + number if caller is None else caller
            tasks.append(wire.ImageTask(number, number % SLOTS, False, *terms))
        self.write(wire.tasks(tasks))
        return numbers

    def write(self, *frames: bytes) -> None:
        for frame in frames:
            self._writer.write(frame)

    async def replies(self, count: int) -> list[int]:
        """The kinds of so many replies."""
        kinds: list[int] = []
        while len(kinds) < count:
            for kind, payload in self._frames.feed(await self._reader.read(1 << 16)):
                kinds += [kind] * (len(wire.read_answers(payload)) if kind == wire.ANSWERS else 1)
        return kinds

    async def frame(self) -> tuple[int, bytes]:
        """The only frame that has come."""
        frames: list[tuple[int, bytes]] = []
        while not frames:
            frames += self._frames.feed(await self._reader.read(1 << 16))
        [frame] = frames
        return frame

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


def test_the_hang_ups_that_all_processes_report_are_learned() -> None:
    async def go() -> None:
        peers = [await Peer().connect(device) for _ in range(2)]
        for place, peer in enumerate(peers):
            assert (device.patience == math.inf) == (place == 0)
            for caller in range(30):
                peer.write(wire.left([(device.now - 2.0 + place, 1000 * place + caller)]))
            peer.send(1, device.now)
            assert await peer.replies(1) == [wire.ANSWERS]
            assert 1.8 < device.patience + place <= 2.0
            await peer.close()

    with started() as device:
        asyncio.run(go())


def test_a_file_in_a_slot_is_a_jpeg_for_the_device() -> None:
    async def go() -> None:
        peer = await Peer().connect(device)
        peer.slots.file(3, 4)[:] = b"data"
        terms = Want(k=1), math.inf, device.now, False, 0
        peer.write(wire.tasks([wire.ImageTask(0, 3, False, *terms, wire.JpegFile(4, 300, 200, 6))]))
        assert await peer.replies(1) == [wire.ANSWERS]
        await peer.close()

    with started() as device:
        asyncio.run(go())
    [image] = device.images
    assert isinstance(image, Jpeg)
    assert (bytes(image.data), image.width, image.height, image.orientation) == (b"data", 300, 200, 6)


@pytest.mark.parametrize("leave", [False, True], ids=["stay", "leave"])
def test_a_client_that_leaves_while_its_image_runs_is_not_answered(leave: bool) -> None:
    """The hang-ups of a caller count as far as there are answers to it."""

    async def go() -> None:
        peer = await Peer().connect(device)
        peer.send(100, device.now - 5)
        assert await peer.replies(100) == [wire.ANSWERS] * 100
        peer.send(1, device.now, CALLER)
        await device.started()
        sent = peer.send(40, device.now, CALLER)
        await asyncio.to_thread(wait_until, lambda: len(device.queue) == 40)
        device.gate.release()
        await device.started()
        if leave:
            peer.write(wire.cancel(sent))
        peer.send(1, device.now)
        await asyncio.to_thread(wait_until, lambda: len(device.queue) == 1)
        device.gate.release()
        assert await peer.replies(42) == [wire.ANSWERS] * 42
        peer.write(wire.left([(device.now - 1, CALLER)] * 40))
        peer.send(1, device.now)
        await peer.replies(1)
        assert (device.patience < math.inf) == (not leave)
        await peer.close()

    with started() as device:
        asyncio.run(go())


def test_the_answers_of_a_batch_come_in_one_frame() -> None:
    async def go() -> None:
        peer = await Peer().connect(device)
        sent = peer.send(100, device.now)
        kind, payload = await peer.frame()
        assert kind == wire.ANSWERS
        assert [answer.number for answer in wire.read_answers(payload)] == sent
        await peer.close()

    with started() as device:
        asyncio.run(go())


def test_a_task_that_comes_with_its_cancellation_is_not_run() -> None:
    async def go() -> None:
        peer = await Peer().connect(device)
        task = wire.ImageTask(5, 0, False, Want(k=1), math.inf, device.now, False, CALLER)
        peer.write(wire.tasks([task]) + wire.cancel([5]))
        kind, payload = await peer.frame()
        assert kind == wire.FAILURE
        assert wire.read_failure(payload)[0] == 5
        peer.send(1, device.now)
        assert await peer.replies(1) == [wire.ANSWERS]
        assert device.batches == [1]
        await peer.close()

    with started() as device:
        asyncio.run(go())
