"""Load from several client processes, with `topk bench`'s own client, and the CPU time that the server spends on it."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import psutil

from app.commands.bench import points
from app.commands.bench.bodies import Body
from app.commands.bench.client import Client, Record, session
from app.commands.bench.loads import Closed, Open
from app.commands.bench.points import Point, Window

SLO_S = 1.0
_STARTS_S = 3.0  # for the client processes to import what they need
_KINDS = ("engine", "http")


@dataclass(frozen=True, slots=True)
class Measured:
    """One point, its requests, and the CPU seconds of the server's processes by kind while it lasted."""

    point: Point
    records: list[Record]
    window: Window
    cpu_s: dict[str, float]

    def micros(self, kind: str) -> float:
        """CPU microseconds per answered image of the processes of a kind."""
        answered = self.point.throughput * self.point.seconds
        return self.cpu_s.get(kind, 0.0) / answered * 1e6 if answered else 0.0


@dataclass(frozen=True, slots=True)
class Clients:
    """Client processes that send ``files`` to ``url``."""

    url: str
    files: Sequence[bytes]
    processes: int
    warmup: float
    seconds: float

    def closed(self, clients: int, pid: int, during: Callable[[], None] = lambda: None) -> Measured:
        """Measure a closed loop of so many clients. ``during`` is called when the measured time begins."""
        return self._measure(Closed(clients), Closed(max(1, clients // self.processes)), pid, during)

    def open(self, rate: float, pid: int) -> Measured:
        """Measure Poisson arrivals at this rate."""
        return self._measure(Open(rate, SLO_S), Open(rate / self.processes, SLO_S), pid, lambda: None)

    def _measure(self, load: Closed | Open, each: Closed | Open, pid: int, during: Callable[[], None]) -> Measured:
        """Run a share of the load in each process, at the same time. ``pid`` is the server's."""
        begin = time.monotonic() + _STARTS_S
        window = Window(begin + self.warmup, begin + self.warmup + self.seconds)
        with ProcessPoolExecutor(self.processes, get_context("spawn")) as pool:
            running = [
                pool.submit(_drive, self.url, self.files, each, place, begin, window.end)
                for place in range(self.processes)
            ]
            time.sleep(max(0.0, window.start - time.monotonic()))
            before = cpu_seconds(pid)
            during()
            time.sleep(max(0.0, window.end - time.monotonic()))
            after = cpu_seconds(pid)
            records = [record for future in running for record in future.result()]
        spent = {kind: after[kind] - before.get(kind, 0.0) for kind in after}
        return Measured(points.point(load, records, window, SLO_S), records, window, spent)


def cpu_seconds(pid: int) -> Counter[str]:
    """CPU seconds of a process and its children so far, by kind: ``engine``, ``http`` or ``main``."""
    found: Counter[str] = Counter()
    for process in [main := psutil.Process(pid), *main.children(recursive=True)]:
        try:
            times, command = process.cpu_times(), " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        kind = next((kind for kind in _KINDS if f"app.workers.{kind}" in command), "main")
        found[kind] += times.user + times.system
    return found


def _drive(url: str, files: Sequence[bytes], load: Closed | Open, place: int, begin: float, end: float) -> list[Record]:
    """Send requests from ``begin`` to ``end``, in seconds of ``time.monotonic``. In a process of its own."""
    bodies = [Body(file, "image/jpeg") for file in [*files[place:], *files[:place]]]

    async def drive() -> list[Record]:
        async with session({}) as connections:
            client = Client(connections, url, bodies)
            await asyncio.sleep(begin - asyncio.get_running_loop().time())
            await load.drive(client, end)
            return client.records

    return asyncio.run(drive())
