"""The batching policy on a simulated clock: the code that serves, its costs drawn from recorded curves.

Discrete events, no threads, no real time. ``app.batching.Backlog`` decides, beside the fixed window that most servers
have; what comes is a seeded Poisson process, and every client leaves after a second, whether it said so or not.

    python -m tests.simulation --plot docs/simulation.svg

prints goodput (answers within that second, as a fraction of the capacity) and p99 by load, and draws them.
"""

import argparse
import asyncio
import dataclasses
import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from app.batching import Backlog, CostCurve
from app.errors import Overloaded
from tests.batching.jobs import Numbered, job

PATIENCE_S = 1.0
SILENT_S = 10.0  # TOPK_REQUEST_TIMEOUT_MS: the deadline of a request that states none
LOADS = (0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Machine:
    """``seconds``: what a batch takes on one stream, by size. ``refusal_s``: what a refusal takes of one core.

    ``noise`` is the sigma of the lognormal factor (mean 1) on each batch.
    """

    name: str
    streams: int
    seconds: Mapping[int, float]
    buckets: tuple[int, ...]
    refusal_s: float = 0.0
    noise: float = 0.1

    @property
    def capacity(self) -> float:
        """Images a second, all streams at the size of the best throughput."""
        return self.streams * max(b / self.seconds[b] for b in self.buckets)

    def cost(self, n: int) -> float:
        return self.seconds[min(size for size in self.seconds if size >= n)]

    def slower(self, factor: float) -> "Machine":
        seconds = {size: factor * one for size, one in self.seconds.items()}
        return dataclasses.replace(self, name=f"{self.name}, 1/{factor:g}", seconds=seconds)


CPU = Machine(
    # ResNet-50 in bfloat16, decoding included, one single-threaded stream a core; recorded on 2 cores with
    # AVX-512 bfloat16. 16 is what the fixed window would run: twice the cost of 8.
    "CPU, 2 streams",
    streams=2,
    seconds={1: 0.022, 2: 0.043, 4: 0.085, 8: 0.170, 16: 0.340},
    buckets=(1, 2, 4, 8),
    refusal_s=0.0003,
)
GPU = Machine(
    # An assumed curve in the shape of an A100's or H100's. Not a measurement.
    "GPU (assumed), 1 stream",
    streams=1,
    seconds={1: 0.0022, 2: 0.0023, 4: 0.0025, 8: 0.0029, 16: 0.0038, 32: 0.0056, 64: 0.0095},
    buckets=(1, 2, 4, 8, 16, 32, 64),
)


class Policy(Protocol):
    def admits(self, now: float, deadline: float) -> bool: ...
    def put(self, job: Numbered, now: float) -> None: ...
    def take(self, now: float, stream: int) -> list[Numbered]:
        """The next batch of a free stream; none where there is nothing to run yet."""

    def due(self, now: float) -> float | None:
        """When ``take`` is to be asked again though nothing happens."""

    def finished(self, stream: int, n: int, seconds: float) -> None: ...


class TopK:
    """What serves: ``Backlog`` and ``CostCurve``, warmed up with what each bucket costs times ``warmth``."""

    name = "topk"

    def __init__(self, machine: Machine, warmth: float = 1.0) -> None:
        self.costs = CostCurve(machine.buckets)
        for bucket in machine.buckets:
            self.costs.observe(bucket, warmth * machine.seconds[bucket])
        self.backlog = Backlog(self.costs, machine.streams)

    def admits(self, now: float, deadline: float) -> bool:
        try:
            self.backlog.check(now, 1, deadline)
        except Overloaded:
            return False
        return True

    def put(self, job: Numbered, now: float) -> None:
        self.backlog.put(job, now)

    def take(self, now: float, stream: int) -> list[Numbered]:
        if not len(self.backlog):
            return []
        batch, _ = self.backlog.take(now, stream)
        return batch

    def due(self, now: float) -> float | None:
        return None

    def finished(self, stream: int, n: int, seconds: float) -> None:
        self.costs.observe(n, seconds)
        self.backlog.finished(stream)


class FixedWindow:
    """16 at most, or what has come 10 ms after the first one; an unbounded queue by arrival."""

    name = "fixed window"

    def __init__(self, most: int = 16, window_s: float = 0.010) -> None:
        self.most, self.window_s = most, window_s
        self._waiting: deque[Numbered] = deque()

    def admits(self, now: float, deadline: float) -> bool:
        return True

    def put(self, job: Numbered, now: float) -> None:
        job.waiting_since = now
        self._waiting.append(job)

    def take(self, now: float, stream: int) -> list[Numbered]:
        due = self.due(now)
        if due is None or due > now:
            return []
        return [self._waiting.popleft() for _ in range(min(self.most, len(self._waiting)))]

    def due(self, now: float) -> float | None:
        if not self._waiting:
            return None
        return now if len(self._waiting) >= self.most else self._waiting[0].waiting_since + self.window_s

    def finished(self, stream: int, n: int, seconds: float) -> None:
        pass


@dataclass
class Outcome:
    """What became of everybody. ``answers``: (arrived, answered); ``refused``: arrived."""

    arrivals: int = 0
    answers: list[tuple[float, float]] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def goodput(self, start: float, end: float) -> float:
        """Answers a second within the patience, of those given from ``start`` to ``end``."""
        good = sum(start <= answered < end and in_time(arrived, answered) for arrived, answered in self.answers)
        return good / (end - start)

    @property
    def late(self) -> float:
        """The fraction of all arrivals that were accepted and then answered too late or never."""
        good = sum(in_time(arrived, answered) for arrived, answered in self.answers)
        return 1 - (good + len(self.refused)) / self.arrivals

    def latency(self, fraction: float, start: float = 0.0, end: float = math.inf) -> float:
        """A quantile of the seconds to the answer, of what arrived from ``start`` to ``end`` and was run."""
        seconds = sorted(answered - arrived for arrived, answered in self.answers if start <= arrived < end)
        return seconds[min(len(seconds) - 1, int(fraction * len(seconds)))]


def in_time(arrived: float, answered: float) -> bool:
    return answered - arrived <= PATIENCE_S


def poisson(rate: float, seconds: float, seed: int = 0, start: float = 0.0) -> Iterator[float]:
    """Arrivals of independent clients."""
    chance = random.Random(seed)
    now = start + chance.expovariate(rate)
    while now < start + seconds:
        yield now
        now += chance.expovariate(rate)


def simulate(
    machine: Machine,
    policy: Policy,
    arrivals: Iterable[float],
    stated: bool = True,
    seed: int = 0,
    weather: Callable[[float], float] = lambda now: 1.0,
) -> Outcome:
    """Serve all of ``arrivals``, in order of time. ``stated``: the clients tell their patience.

    ``weather`` is a factor on the cost of a batch that starts now. A refusal lengthens one of the running batches.
    """
    return _Simulation(machine, policy, stated, seed, weather).run(arrivals)


class _Simulation:
    def __init__(
        self, machine: Machine, policy: Policy, stated: bool, seed: int, weather: Callable[[float], float]
    ) -> None:
        self.machine, self.policy, self.weather = machine, policy, weather
        self.deadline_s = PATIENCE_S if stated else SILENT_S
        self.chance = random.Random(seed)
        self.loop = asyncio.new_event_loop()  # never runs; futures want one
        self.outcome = Outcome()
        self.leaving: deque[Numbered] = deque()  # by the time they leave
        self.running: dict[int, tuple[float, list[Numbered]]] = {}  # stream -> start, batch
        self.ends: dict[int, float] = {}
        self.events: list[tuple[float, int]] = []  # time, stream; -1 is the window's timer
        self.turn = 0

    def run(self, arrivals: Iterable[float]) -> Outcome:
        for now in arrivals:
            while self.events and self.events[0][0] <= now:
                self.happen()
            self.arrive(now)
        while self.events:
            self.happen()
        self.loop.close()
        return self.outcome

    def arrive(self, now: float) -> None:
        self.outcome.arrivals += 1
        deadline = now + self.deadline_s
        if not self.policy.admits(now, deadline):
            self.outcome.refused.append(now)
            self.refuse()
            return
        one = job(now, deadline, self.loop)
        self.policy.put(one, now)
        self.leaving.append(one)
        self.dispatch(now)

    def refuse(self) -> None:
        """A refusal takes its share of a core from the streams in turn."""
        if self.machine.refusal_s and self.ends:
            self.turn = (self.turn + 1) % self.machine.streams
            if self.turn in self.ends:
                self.ends[self.turn] += self.machine.refusal_s

    def happen(self) -> None:
        now, stream = heapq.heappop(self.events)
        if stream < 0:
            self.dispatch(now)
        elif self.ends[stream] > now:
            heapq.heappush(self.events, (self.ends[stream], stream))
        else:
            self.finish(now, stream)
            self.dispatch(now)

    def finish(self, now: float, stream: int) -> None:
        started, batch = self.running.pop(stream)
        del self.ends[stream]
        self.policy.finished(stream, len(batch), now - started)
        for each in batch:
            self.outcome.answers.append((each.number, now))
            each.future.cancel()

    def dispatch(self, now: float) -> None:
        self.leave(now)
        for stream in range(self.machine.streams):
            if stream not in self.running and (batch := self.policy.take(now, stream)):
                noise = self.machine.noise
                factor = math.exp(self.chance.gauss(-(noise**2) / 2, noise)) * self.weather(now)
                self.running[stream] = now, batch
                self.ends[stream] = now + factor * self.machine.cost(len(batch))
                heapq.heappush(self.events, (self.ends[stream], stream))
        due = self.policy.due(now)
        if due is not None and due > now and len(self.running) < self.machine.streams:
            heapq.heappush(self.events, (due, -1))

    def leave(self, now: float) -> None:
        """Whoever has waited too long hangs up. What runs already is answered to nobody."""
        while self.leaving and self.leaving[0].number + PATIENCE_S <= now:
            self.leaving.popleft().future.cancel()


def measure(machine: Machine, make: Callable[[Machine], Policy], load: float) -> tuple[float, float]:
    """Goodput as a fraction of the capacity, and p99 in seconds; silent clients at ``load`` times the capacity."""
    seconds = min(20.0, 40_000 / machine.capacity)
    outcome = simulate(machine, make(machine), poisson(load * machine.capacity, seconds), stated=False)
    return outcome.goodput(0, seconds) / machine.capacity, outcome.latency(0.99)


Results = dict[tuple[str, str], list[tuple[float, float]]]
POLICIES: dict[str, Callable[[Machine], Policy]] = {TopK.name: TopK, FixedWindow.name: lambda machine: FixedWindow()}


def plot(results: Results, path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "topk"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 5.6), sharex=True, sharey="row", layout="constrained")
    looks = {TopK.name: ("#1f6feb", "o"), FixedWindow.name: ("#c2410c", "s")}
    for column, machine in enumerate((CPU, GPU)):
        goodput, p99 = axes[:, column]
        for policy, (colour, marker) in looks.items():
            good, slow = zip(*results[machine.name, policy], strict=True)
            goodput.plot(LOADS, good, color=colour, marker=marker, label=policy, linewidth=2)
            p99.plot(LOADS, slow, color=colour, marker=marker, label=policy, linewidth=2)
        goodput.plot(LOADS, [min(1.0, load) for load in LOADS], color="#888", linestyle=":", label="ideal")
        goodput.set_title(machine.name)
        p99.axhline(PATIENCE_S, color="#888", linestyle=":", label="the client leaves")
        p99.set_xscale("log", base=2)
        p99.set_yscale("log")
        p99.set_xticks(LOADS, [f"{load:g}x" for load in LOADS])
        p99.set_xlabel("load / capacity")
    axes[0, 0].set_ylabel("answered within 1 s\n/ capacity")
    axes[0, 0].set_ylim(0, 1.08)
    axes[1, 0].set_ylabel("p99 of what is run, s")
    for one in axes.flat:
        one.grid(alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, loc="center right")
    axes[1, 1].legend(frameon=False, loc="lower right")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description="Goodput and p99 by load, on a simulated clock.")
    parser.add_argument("--plot", type=Path, help="SVG file to draw")
    path = parser.parse_args().plot
    results: Results = {}
    print(f"{'':26}{'':14}" + "".join(f"{load:>16g}x" for load in LOADS))
    for machine in (CPU, GPU):
        for name, make in POLICIES.items():
            row = results[machine.name, name] = [measure(machine, make, load) for load in LOADS]
            cells = "".join(f"{good:>9.2f}{slow:>7.2f}s" for good, slow in row)
            print(f"{machine.name:26}{name:14}{cells}", flush=True)
    if path:
        plot(results, path)


if __name__ == "__main__":
    main()
