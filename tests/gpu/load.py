"""Load from several client processes, with `topk bench`'s own client, and the CPU time that the server spends on it."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import NamedTuple

import psutil

from app.commands.bench import points
from app.commands.bench.bodies import Body
from app.commands.bench.client import Client, Record, session
from app.commands.bench.loads import Closed, Load, Open
from app.commands.bench.points import Point, Window

SLO_S = 1.0
_SETTLES_S = 0.2  # until all client processes have their share
_KINDS = ("engine", "http")


@dataclass(frozen=True, slots=True)
class Measured:
    """One point, its requests, and the CPU seconds of the server's processes by kind while it lasted.

    ``busy`` has the share of a core that each client process used.
    """

    point: Point
    records: list[Record]
    window: Window
    cpu_s: dict[str, float]
    busy: list[float]

    def micros(self, kind: str) -> float:
        """CPU microseconds per answered image of the processes of a kind."""
        answered = self.point.throughput * self.point.seconds
        return self.cpu_s.get(kind, 0.0) / answered * 1e6 if answered else 0.0


class Share(NamedTuple):
    """What a client process sends, from ``begin`` to ``end``, in seconds of ``time.monotonic``."""

    url: str
    files: list[bytes]
    load: Load
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Clients:
    """Client processes that send ``files`` to ``url``."""

    url: str
    files: Sequence[bytes]
    processes: int
    warmup: float
    seconds: float

    def closed(self, clients: int, pid: int) -> Measured:
        """Measure a closed loop of so many clients. ``pid`` is the server's."""
        return self._measure(Closed(clients), [Closed(max(1, clients // self.processes))] * self.processes, pid)

    def open(
        self, rate: float, pid: int, patience_s: float = SLO_S, during: Callable[[], None] = lambda: None
    ) -> Measured:
        """Measure Poisson arrivals of clients with some patience. ``during`` is called as the measured time begins."""
        shares = [Open(rate / self.processes, patience_s, seed=place) for place in range(self.processes)]
        return self._measure(Open(rate, patience_s), shares, pid, during)

    def _measure(
        self, load: Load, shares: Sequence[Load], pid: int, during: Callable[[], None] = lambda: None
    ) -> Measured:
        """Run a share of the load in each process, at the same time."""
        with _started(self.processes) as pipes:
            begin = time.monotonic() + _SETTLES_S
            window = Window(begin + self.warmup, begin + self.warmup + self.seconds)
            for place, (pipe, share) in enumerate(zip(pipes, shares, strict=True)):
                pipe.send(Share(self.url, [*self.files[place:], *self.files[:place]], share, begin, window.end))
            time.sleep(max(0.0, window.start - time.monotonic()))
            before = cpu_seconds(pid)
            during()
            time.sleep(max(0.0, window.end - time.monotonic()))
            after = cpu_seconds(pid)
            found = [pipe.recv() for pipe in pipes]
        records = [record for sent, _ in found for record in sent]
        spent = {kind: after[kind] - before.get(kind, 0.0) for kind in after}
        busy = [share for _, share in found]
        return Measured(points.point(load, records, window, SLO_S), records, window, spent, busy)


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


@contextmanager
def _started(count: int) -> Iterator[list[Connection]]:
    """Pipes to so many client processes, which have imported what they need."""
    context = get_context("spawn")
    ends = [context.Pipe() for _ in range(count)]
    processes = [context.Process(target=_drive, args=(theirs,)) for _, theirs in ends]
    for process in processes:
        process.start()
    try:
        for ours, theirs in ends:
            theirs.close()
            ours.recv()
        yield [ours for ours, _ in ends]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _drive(pipe: Connection) -> None:
    """Send the requests of a share, then their records and the used share of a core over the pipe. In a process."""
    pipe.send("ready")
    share: Share = pipe.recv()

    async def drive() -> list[Record]:
        async with session({}) as connections:
            client = Client(connections, share.url, [Body(file, "image/jpeg") for file in share.files])
            await asyncio.sleep(share.begin - asyncio.get_running_loop().time())
            await share.load.drive(client, share.end)
            return client.records

    before = time.process_time()
    records = asyncio.run(drive())
    pipe.send((records, (time.process_time() - before) / (time.monotonic() - share.begin)))
