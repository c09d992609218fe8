"""The batching policy on a simulated clock: the code that serves, its costs drawn from recorded curves.

Discrete events, no threads, no real time. ``app.batching.Backlog`` decides, beside the fixed window that most servers
have. Clients come as a seeded Poisson process or in closed loops, and each hangs up when its patience ends.

    python -m tests.simulation --plot docs/simulation.svg

prints goodput (answers to clients that still wait, as a fraction of the capacity) by machine, patience and load, and
draws it.
"""

import argparse
import asyncio
import dataclasses
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from app.batching import Backlog, CostCurve
from app.errors import Overloaded
from tests.batching.jobs import Numbered, job

SILENT_S = 10.0  # TOPK_REQUEST_TIMEOUT_MS: the deadline of a request that states none
START = 1000.0  # of the clock
DRAIN_S = 30.0  # until everybody has left
LATE_REFUSAL_S = 1.0  # of the refusals of a caller that comes back at once
ADDRESSES = 50  # that the clients share
LOADS = (1.0, 2.0, 4.0, 8.0)
CLIENTS = (1, 16, 64, 128, 256)


@dataclass(frozen=True)
class Machine:
    """``seconds``: the time of a batch on one stream, by size. ``refusal_s``: the time of a refusal on one core.

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


AVX2 = Machine(
    # ResNet-50 in float32, decoding included, one single-threaded stream a core; recorded on 2 cores with AVX2 only.
    "CPU with AVX2",
    streams=2,
    seconds={1: 0.115, 2: 0.228, 4: 0.452, 8: 0.900, 16: 1.800},
    buckets=(1, 2, 4, 8),
    refusal_s=0.0003,
)
AVX512 = Machine(
    # The same in bfloat16, recorded on 2 cores with AVX-512 bfloat16. 16 is what the fixed window would run.
    "CPU with AVX-512",
    streams=2,
    seconds={1: 0.022, 2: 0.043, 4: 0.085, 8: 0.170, 16: 0.340},
    buckets=(1, 2, 4, 8),
    refusal_s=0.0003,
)
GPU = Machine(
    # An assumed curve in the shape of an A100's or H100's. Not a measurement.
    "GPU (assumed)",
    streams=1,
    seconds={1: 0.0022, 2: 0.0023, 4: 0.0025, 8: 0.0029, 16: 0.0038, 32: 0.0056, 64: 0.0095},
    buckets=(1, 2, 4, 8, 16, 32, 64),
)
MACHINES = (AVX2, AVX512, GPU)

Patience = Callable[[random.Random], float]
"""Draws the seconds that a client waits."""


def uniform(seconds: float) -> Patience:
    """All clients wait equally long."""
    return lambda chance: seconds


def mixed(chance: random.Random) -> float:
    return chance.choice((0.3, 1.0, 3.0, 9.0))


def exponential(chance: random.Random) -> float:
    return chance.expovariate(1.0)


EARLY_S, LATE_S = 0.1, 5.0


def early_leavers(chance: random.Random) -> float:
    """Four of five clients leave at once."""
    return EARLY_S if chance.random() < 0.8 else LATE_S


PATIENCE: dict[str, Patience] = {
    "0.3 s": uniform(0.3),
    "0.5 s": uniform(0.5),
    "1 s": uniform(1.0),
    "3 s": uniform(3.0),
    "0.3, 1, 3 or 9 s": mixed,
    "exponential, mean 1 s": exponential,
    "80 % leave at 0.1 s, the rest at 5 s": early_leavers,
    "unlimited": uniform(math.inf),
}


class Policy(Protocol):
    def admits(self, now: float, deadline: float, stated: bool) -> float:
        """0 to admit; else the seconds after which a refused client is to come back."""

    def put(self, job: Numbered, now: float) -> None: ...
    def take(self, now: float, stream: int) -> list[Numbered]:
        """The next batch of a free stream; empty if there is nothing to run yet."""

    def due(self, now: float) -> float | None:
        """When ``take`` is to be called again though nothing happens."""

    def finished(self, stream: int, n: int, seconds: float) -> None: ...
    def computed(self, job: Numbered, now: float) -> None: ...
    def left(self, job: Numbered, now: float) -> None: ...


class TopK:
    """What serves: ``Backlog`` and ``CostCurve``, warmed up with the cost of each bucket times ``warmth``.

    Without a ``warmth``, only the smallest bucket is measured.
    """

    name = "topk"

    def __init__(self, machine: Machine, warmth: float | None = 1.0) -> None:
        self.costs = CostCurve(machine.buckets)
        for bucket in machine.buckets[:1] if warmth is None else machine.buckets:
            self.costs.observe(bucket, (warmth or 1.0) * machine.seconds[bucket])
        self.backlog = Backlog(self.costs, machine.streams)

    def admits(self, now: float, deadline: float, stated: bool) -> float:
        try:
            self.backlog.check(now, 1, deadline, stated)
        except Overloaded as refusal:
            return max(refusal.retry_after_s, 1e-3)
        return 0.0

    def put(self, job: Numbered, now: float) -> None:
        self.backlog.put([job], now)

    def take(self, now: float, stream: int) -> list[Numbered]:
        if not len(self.backlog):
            return []
        batch, late = self.backlog.take(now, stream)
        for one in late:
            one.future.cancel()
        return batch

    def due(self, now: float) -> float | None:
        return None

    def finished(self, stream: int, n: int, seconds: float) -> None:
        if n in self.costs.buckets:
            self.costs.observe(n, seconds)
        self.backlog.finished(stream)

    def computed(self, job: Numbered, now: float) -> None:
        self.backlog.computed(job, now)

    def left(self, job: Numbered, now: float) -> None:
        self.backlog.left(job, now)


class FixedWindow:
    """16 at most, or what has come 10 ms after the first one; an unbounded queue by arrival."""

    name = "fixed window"

    def __init__(self, most: int = 16, window_s: float = 0.010) -> None:
        self.most, self.window_s = most, window_s
        self._waiting: deque[Numbered] = deque()

    def admits(self, now: float, deadline: float, stated: bool) -> float:
        return 0.0

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

    def computed(self, job: Numbered, now: float) -> None:
        pass

    def left(self, job: Numbered, now: float) -> None:
        pass


@dataclass(frozen=True)
class Arrival:
    """A client that comes ``at`` a time of the clock and waits for ``patience`` seconds."""

    at: float
    patience: float


@dataclass
class Outcome:
    """What became of all clients. ``answers``: with the time of the answer, for those who still waited."""

    arrivals: int = 0
    answers: list[tuple[Arrival, float]] = field(default_factory=list)
    refused: list[Arrival] = field(default_factory=list)
    left: list[Arrival] = field(default_factory=list)

    def goodput(self, start: float, end: float, patience: float = 0.0) -> float:
        """Answers a second from ``start`` to ``end``, both after START, to clients of at least this patience."""
        times = [at - START for client, at in self.answers if client.patience >= patience]
        return sum(start <= at < end for at in times) / (end - start)

    @property
    def unanswered(self) -> float:
        """The fraction of all arrivals that were accepted and left without an answer."""
        return len(self.left) / max(1, self.arrivals)

    def latency(self, fraction: float, start: float = 0.0, end: float = math.inf) -> float:
        """A quantile of the seconds to the answer, of those who came from ``start`` to ``end`` after START."""
        seconds = sorted(at - client.at for client, at in self.answers if start <= client.at - START < end)
        return seconds[min(len(seconds) - 1, int(fraction * len(seconds)))]


def poisson(rate: float, seconds: float, patience: Patience, seed: int = 0, start: float = 0.0) -> Iterator[Arrival]:
    """Independent clients, from ``start`` seconds after START."""
    chance = random.Random(seed)
    now = start + chance.expovariate(rate)
    while now < start + seconds:
        yield Arrival(START + now, patience(chance))
        now += chance.expovariate(rate)


@dataclass(frozen=True)
class Loop:
    """Clients that come back as soon as they have their answer, until ``seconds`` after START.

    A refused client waits as long as it is told. If it is not ``polite``, it comes back at once, but the service sends
    it the next refusal late.
    """

    clients: int
    seconds: float
    polite: bool = True

    def arrivals(self) -> list[Arrival]:
        return [Arrival(START + 0.05 * client / self.clients, math.inf) for client in range(self.clients)]

    def back(self, now: float, refused_s: float = 0.0) -> Arrival | None:
        """When a client comes back that was answered now, or refused."""
        at = now + (refused_s if self.polite else LATE_REFUSAL_S * bool(refused_s))
        return Arrival(at, math.inf) if at < START + self.seconds else None


def simulate(
    machine: Machine,
    policy: Policy,
    clients: Iterator[Arrival] | list[Arrival] | Loop,
    stated_s: float | None = None,
    seed: int = 0,
    weather: Callable[[float], float] = lambda now: 1.0,
) -> Outcome:
    """Serve all clients. ``stated_s``: the deadline in seconds that they state.

    ``weather`` is a factor on the cost of a batch by the seconds since START. A refusal lengthens a running batch.
    """
    return _Simulation(machine, policy, stated_s, seed, weather).run(clients)


class _Simulation:
    def __init__(
        self,
        machine: Machine,
        policy: Policy,
        stated_s: float | None,
        seed: int,
        weather: Callable[[float], float],
    ) -> None:
        self.machine, self.policy, self.weather = machine, policy, weather
        self.stated = stated_s is not None
        self.deadline_s = SILENT_S if stated_s is None else stated_s
        self.chance = random.Random(seed)
        self.event_loop = asyncio.new_event_loop()  # never runs; futures want one
        self.outcome = Outcome()
        self.running: dict[int, tuple[float, list[Numbered]]] = {}  # stream -> start, batch
        self.ends: dict[int, float] = {}
        self.events: list[tuple[float, int, Callable[[float, Any], None], Any]] = []
        self.order = itertools.count()
        self.turn = 0
        self.closed: Loop | None = None

    def run(self, clients: Iterator[Arrival] | list[Arrival] | Loop) -> Outcome:
        self.closed = clients if isinstance(clients, Loop) else None
        for client in clients.arrivals() if isinstance(clients, Loop) else clients:
            self.at(client.at, self.arrive, client)
        while self.events:
            now, _, happen, what = heapq.heappop(self.events)
            happen(now, what)
        self.event_loop.close()
        return self.outcome

    def at(self, now: float, happen: Callable[[float, Any], None], what: Any = None) -> None:
        heapq.heappush(self.events, (now, next(self.order), happen, what))

    def come_back(self, now: float, refused_s: float = 0.0) -> None:
        if self.closed and (client := self.closed.back(now, refused_s)):
            self.at(client.at, self.arrive, client)

    def arrive(self, now: float, client: Arrival) -> None:
        self.outcome.arrivals += 1
        deadline = now + self.deadline_s
        if retry_s := self.policy.admits(now, deadline, self.stated):
            self.outcome.refused.append(client)
            self.refuse()
            self.come_back(now, retry_s)
            return
        one = job(client, deadline, self.event_loop)
        one.stated, one.received_at, one.caller = self.stated, now, self.chance.randrange(ADDRESSES)
        self.policy.put(one, now)
        self.at(now + min(client.patience, self.deadline_s), self.leave, one)
        self.dispatch(now)

    def refuse(self) -> None:
        """A refusal takes its share of a core from the streams in turn."""
        if self.machine.refusal_s and self.ends:
            self.turn = (self.turn + 1) % self.machine.streams
            if self.turn in self.ends:
                self.ends[self.turn] += self.machine.refusal_s

    def leave(self, now: float, one: Numbered) -> None:
        """A client that has waited too long hangs up. If its image runs already, nobody gets the result."""
        if one.future.done():
            return
        one.future.cancel()
        self.outcome.left.append(one.number)
        self.policy.left(one, now)
        self.come_back(now)

    def end(self, now: float, stream: int) -> None:
        if self.ends[stream] > now:
            self.at(self.ends[stream], self.end, stream)
            return
        started, batch = self.running.pop(stream)
        del self.ends[stream]
        self.policy.finished(stream, len(batch), now - started)
        for one in batch:
            self.policy.computed(one, now)
            if not one.future.done():
                one.future.set_result(one)
                self.outcome.answers.append((one.number, now))
                self.come_back(now)
        self.dispatch(now)

    def dispatch(self, now: float, _: None = None) -> None:
        for stream in range(self.machine.streams):
            if stream not in self.running and (batch := self.policy.take(now, stream)):
                noise = self.machine.noise
                factor = math.exp(self.chance.gauss(-(noise**2) / 2, noise)) * self.weather(now - START)
                self.running[stream] = now, batch
                self.ends[stream] = now + factor * self.machine.cost(len(batch))
                self.at(self.ends[stream], self.end, stream)
        due = self.policy.due(now)
        if due is not None and due > now and len(self.running) < self.machine.streams:
            self.at(due, self.dispatch)


def seconds_of(machine: Machine) -> float:
    """How long a simulation takes on the simulated clock: 20 s, or as long as 20 000 images."""
    return min(20.0, 20_000 / machine.capacity)


def measure(machine: Machine, make: Callable[[Machine], Policy], patience: Patience, load: float) -> tuple[float, ...]:
    """Goodput / capacity, the fraction that left unanswered, and p99 in seconds, at ``load`` times the capacity."""
    seconds = seconds_of(machine)
    outcome = simulate(machine, make(machine), poisson(load * machine.capacity, seconds, patience))
    return outcome.goodput(0, seconds) / machine.capacity, outcome.unanswered, outcome.latency(0.99)


Results = dict[tuple[str, str, str], list[tuple[float, ...]]]
POLICIES: dict[str, Callable[[Machine], Policy]] = {TopK.name: TopK, FixedWindow.name: lambda machine: FixedWindow()}
DRAWN = ("0.5 s", "1 s", "3 s")


def plot(results: Results, path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "topk"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(9.6, 5.4), sharex=True, sharey="row", layout="constrained")
    shades = {"0.5 s": "#9ec5fe", "1 s": "#4c8dff", "3 s": "#1648a8"}
    for column, machine in enumerate(MACHINES):
        goodput, left = axes[:, column]
        for patience in DRAWN:
            for policy, style in ((TopK.name, "-"), (FixedWindow.name, ":")):
                good, unanswered, _ = zip(*results[machine.name, patience, policy], strict=True)
                look: dict[str, Any] = {"color": shades[patience] if style == "-" else "#c2410c", "linestyle": style}
                alpha = 1.0 if style == "-" else {"0.5 s": 0.35, "1 s": 0.6, "3 s": 1.0}[patience]
                for axis, values in ((goodput, good), (left, unanswered)):
                    label = f"{policy}, {patience}"
                    axis.plot(LOADS, values, marker="o", markersize=4, linewidth=2, alpha=alpha, label=label, **look)
        goodput.set_title(machine.name, fontsize=10)
        left.set_xscale("log", base=2)
        left.set_xticks(LOADS, [f"{load:g}x" for load in LOADS])
        left.set_xlabel("load / capacity")
    axes[0, 0].set_ylabel("goodput / capacity")
    axes[0, 0].set_ylim(0, 1.15)
    axes[1, 0].set_ylabel("left without an answer")
    axes[1, 0].set_ylim(0, 1)
    axes[1, 0].yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1, decimals=0))
    for one in axes.flat:
        one.grid(alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=3, fontsize=9)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description="Goodput by load and patience, on a simulated clock.")
    parser.add_argument("--plot", type=Path, help="SVG file to draw")
    path = parser.parse_args().plot
    results: Results = {}
    print("goodput / capacity (left without an answer), by load / capacity")
    print(f"{'':18}{'patience':38}{'':14}" + "".join(f"{load:>13g}x" for load in LOADS))
    for machine in MACHINES:
        for who, patience in PATIENCE.items():
            for name, make in POLICIES.items():
                row = [measure(machine, make, patience, load) for load in LOADS]
                results[machine.name, who, name] = row
                cells = "".join(f"{good:>7.2f} ({left:>3.0%})" for good, left, _ in row)
                print(f"{machine.name:18}{who:38}{name:14} {cells}", flush=True)
    print("\nclosed loops of patient clients: goodput / capacity, refusals (with and without waiting after a refusal)")
    for machine in MACHINES:
        for clients in CLIENTS:
            cells = []
            for polite in (True, False):
                seconds = seconds_of(machine)
                outcome = simulate(machine, TopK(machine), Loop(clients, seconds, polite))
                cells.append(f"{outcome.goodput(0, seconds) / machine.capacity:.2f}, {len(outcome.refused)}")
            print(f"{machine.name:18}{clients:>4} clients   {cells[0]:>14}   {cells[1]:>14}", flush=True)
    if path:
        plot(results, path)


if __name__ == "__main__":
    main()
