"""CPU time of the hand-over between the HTTP processes and the engine process, in microseconds per image.

    python -m tests.load.handover --http 1 4 --in-flight 1024

The code that serves runs in real processes and over real sockets: ``EngineProcess`` with its queue, and an
``EngineQueue`` in each HTTP process. The device is replaced by one that sleeps as long as a batch would take. Clients
put a decoded crop, wait for its answer, check it, and put the next one. HTTP and decoding are left out. The HTTP
processes also pay for the admission, the copy of the crop into shared memory (left out by ``--crop 8``), and the
clients themselves.

Figures are the CPU time of a whole process, divided by the images: ``user`` is mostly Python, ``system`` is mostly
sockets and the wake-up of threads. The round with the least CPU time of all processes is printed. Other load on the
machine makes the figures larger, because caches are shared.
"""

import argparse
import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn
from unittest import mock

import numpy as np
import psutil
import uvloop

from app import loading
from app.batching import Job
from app.classifier import Waiter
from app.engine.base import Pixels, Rows, Want
from app.errors import Overloaded
from app.imagenet.labels import imagenet1k
from app.images import Preprocessing
from app.models.model import Model
from app.processes import children
from app.settings import Settings
from app.telemetry.logging import configure_logging
from app.workers import child
from app.workers.client import EngineQueue
from app.workers.engine import EngineProcess, loop_factory
from app.workers.http import receive_welcome
from app.workers.wire import Messages

# Estimated for ResNet-50 in bfloat16 on an H100, not measured: seconds of a batch while two lanes share the device.
H100 = {
    1: 0.0016, 2: 0.0017, 4: 0.0018, 8: 0.0021, 16: 0.0029, 32: 0.0046,
    48: 0.0062, 64: 0.0078, 96: 0.0110, 128: 0.0140, 192: 0.0202, 256: 0.0262,
}  # fmt: skip
GREYS = 64
K = 5
WANT = Want(k=K)
PATIENT_S = 60.0
WARM_UP_S = 1.0


class SleepingEngine:
    """Takes as long as the curve says. The first class of an image is its grey level."""

    name, device, device_name, precision, compilation = "sleeping", "cuda", "none", "bfloat16", "compiled"
    streams, spreads, pads, dim, decodes_jpegs = 2, False, True, 2048, False
    inexplicable = "it computes nothing"

    def __init__(self, slower: float) -> None:
        self.buckets = tuple(H100)
        self._seconds = {bucket: slower * seconds for bucket, seconds in H100.items()}

    def memory(self) -> dict[str, int]:
        return {}

    def load(self) -> None:
        pass

    def forward(self, images: Sequence[Pixels], wants: Sequence[Want], alone: bool = False) -> Rows:
        time.sleep(next(seconds for bucket, seconds in self._seconds.items() if bucket >= len(images)))
        greys = np.array([image[0, 0, 0] for image in images], np.int64)
        scores = np.tile(np.linspace(0.5, 0.1, K, dtype=np.float32), (len(images), 1))
        return Rows(greys[:, None] + np.arange(K), scores, np.ones(len(images), np.bool_), scores[:, 0])


class Clients(child.Child):
    """Clients in closed loops, in a process of their own that stands for an HTTP process."""

    def __init__(self, control: socket.socket, in_flight: int) -> None:
        super().__init__(control)
        self._in_flight = in_flight
        self._answered = self._wrong = 0

    async def run(self) -> NoReturn:
        self._loop = asyncio.get_running_loop()
        self._connected: asyncio.Future[tuple[EngineQueue, int]] = self._loop.create_future()
        self.listen(self._on_message)
        queue, crop = await self._connected
        images = [np.full((crop, crop, 3), grey, np.uint8) for grey in range(GREYS)]
        async with asyncio.TaskGroup() as group:
            for number in range(self._in_flight):
                group.create_task(self._client(queue, images[number % GREYS], number % GREYS))
        raise AssertionError("clients never end")

    async def _client(self, queue: EngineQueue, image: Pixels, grey: int) -> None:
        while True:
            now = time.monotonic()
            deadline = now + PATIENT_S
            try:
                queue.admit(1, deadline)
            except Overloaded as refusal:
                await asyncio.sleep(refusal.retry_after_s or 0)
                continue
            waiter = Waiter()
            job = Job(image, WANT, deadline, waiter, received_at=now, caller=grey)
            queue.put(job)
            await waiter.future
            self._answered += 1
            self._wrong += job.row is None or job.row.class_ids.tolist() != list(range(grey, grey + K))

    def _on_message(self, message: dict[str, Any], descriptor: int | None) -> None:
        match message["do"]:
            case "connect":
                assert descriptor is not None
                threading.Thread(target=self._read, args=(socket.socket(fileno=descriptor),), daemon=True).start()
            case "count":
                self.send({"do": "counted", "answered": self._answered, "wrong": self._wrong})
            case "stop":
                self.exit_now(0)

    def _read(self, sock: socket.socket) -> None:
        welcome = receive_welcome(sock)
        queue = EngineQueue(sock, welcome.slots, welcome.board, welcome.facts, lambda: 0.0)
        self._loop.call_soon_threadsafe(self._connected.set_result, (queue, welcome.slots.crop))
        queue.read()


class Process:
    """A child, as the supervisor sees it."""

    def __init__(self, role: str, *arguments: str) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            descriptor = theirs.fileno()
            self._popen = children.start(
                "tests.load.handover", f"--{role}", str(descriptor), *arguments, descriptors=[descriptor]
            )
        assert self._popen.stdin
        self._popen.stdin.close()
        self._messages = Messages(ours)
        self._process = psutil.Process(self._popen.pid)

    def send(self, message: dict[str, Any], descriptor: int | None = None) -> None:
        self._messages.send(message, descriptor)

    def wait_for(self, what: str) -> dict[str, Any]:
        while True:
            for message, _ in self._messages.read():
                if message["do"] == what:
                    return message

    def check(self) -> None:
        """Raise RuntimeError if the process has exited."""
        if (code := self._popen.poll()) is not None:
            raise RuntimeError(f"a process of the benchmark exited with {code}")

    def cpu_s(self) -> "np.typing.NDArray[np.float64]":
        """Seconds in user and in system mode."""
        times = self._process.cpu_times()
        return np.array([times.user, times.system])

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.send({"do": "stop"})
        with self._messages.socket, self._popen:
            try:
                self._popen.wait(10)
            except subprocess.TimeoutExpired:
                self._popen.kill()


@dataclass(frozen=True)
class Figures:
    """``engine`` and ``http``: microseconds per image in user and in system mode, the latter of all HTTP processes."""

    images: int
    wrong: int
    rate: float
    engine: tuple[float, float]
    http: tuple[float, float]


@contextlib.contextmanager
def running(http: int, in_flight: int, crop: int, slower: float) -> Iterator[tuple[Process, list[Process]]]:
    """The engine process and the HTTP processes, connected and warm."""
    with contextlib.ExitStack() as stack:
        engine = Process("engine", "--crop", str(crop), "--slower", str(slower))
        stack.callback(engine.stop)
        engine.wait_for("ready")
        clients = []
        for _ in range(http):
            clients.append(Process("clients", "--in-flight", str(in_flight // http)))
            stack.callback(clients[-1].stop)
            clients[-1].wait_for("started")
        for one in clients:
            for process, end in zip((engine, one), socket.socketpair(), strict=True):
                with end:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
                    process.send({"do": "connect"}, end.fileno())
        yield engine, clients


def measure(http: int, in_flight: int, crop: int, slower: float, seconds: float, rounds: int) -> Figures:
    """Run ``rounds`` of so many seconds. Returns the round with the least CPU time per image."""
    with running(http, in_flight, crop, slower) as (engine, clients):
        while not _count(clients).answered:
            engine.check()
            time.sleep(WARM_UP_S)
        return min(
            (_round(engine, clients, seconds) for _ in range(rounds)), key=lambda one: sum(one.engine) + sum(one.http)
        )


def _round(engine: Process, clients: list[Process], seconds: float) -> Figures:
    before = _count(clients), engine.cpu_s(), sum(one.cpu_s() for one in clients), time.monotonic()
    time.sleep(seconds)
    after = _count(clients), engine.cpu_s(), sum(one.cpu_s() for one in clients), time.monotonic()
    images = after[0].answered - before[0].answered
    engine_us, http_us = (tuple(1e6 * (after[place] - before[place]) / images) for place in (1, 2))
    return Figures(images, after[0].wrong, images / (after[3] - before[3]), engine_us, http_us)


class Count(NamedTuple):
    answered: int
    wrong: int


def _count(clients: list[Process]) -> Count:
    """Answers so far, and wrong ones."""
    for one in clients:
        one.send({"do": "count"})
    counts = [one.wait_for("counted") for one in clients]
    return Count(sum(one["answered"] for one in counts), sum(one["wrong"] for one in counts))


def run_engine(control: socket.socket, crop: int, slower: float) -> int:
    preprocessing = Preprocessing(crop, crop, "bilinear", (0.5,) * 3, (0.5,) * 3)
    model = Model("sleeping", "sleeping", "none", "", preprocessing, imagenet1k(), lambda: NotImplemented)

    async def run() -> int:
        return await EngineProcess(control, Settings()).run()

    configure_logging("text", "warning")
    with (
        mock.patch.object(loading, "resolve", return_value=(model, SleepingEngine(slower))),
        asyncio.Runner(loop_factory=loop_factory()) as runner,
    ):
        return runner.run(run())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--http", type=int, nargs="+", default=[1, 4], help="HTTP processes")
    parser.add_argument("--in-flight", type=int, default=1024, help="images of all HTTP processes")
    parser.add_argument("--crop", type=int, default=224, help="side of a crop in pixels; 8 leaves out the copy")
    parser.add_argument("--slower", type=float, default=1.0, help="factor on the cost curve")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--clients", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        return run_engine(socket.socket(fileno=options.engine), options.crop, options.slower)
    if options.clients:
        clients = Clients(socket.socket(fileno=options.clients), options.in_flight)
        uvloop.run(clients.run())
    print("CPU microseconds per image: user + system = all")
    for http in options.http:
        figures = measure(http, options.in_flight, options.crop, options.slower, options.seconds, options.rounds)
        print(
            f"{http:>2} HTTP processes, {options.in_flight} in flight, {figures.rate:>6.0f} images/s:"
            f"  engine {_sum(figures.engine)}  http {_sum(figures.http)}  wrong answers {figures.wrong}",
            flush=True,
        )
    return 0


def _sum(us: tuple[float, float]) -> str:
    return f"{us[0]:5.1f} + {us[1]:4.1f} = {sum(us):5.1f}"


if __name__ == "__main__":
    sys.exit(main())
