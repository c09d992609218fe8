"""A whole run in order: check the server, measure the client's own cost, measure each point."""

import asyncio
import contextlib
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.client import responses
from typing import Any

from app import machine
from app.commands.bench import capacity, overhead, points
from app.commands.bench.bodies import bodies
from app.commands.bench.client import Client, Record, session
from app.commands.bench.loads import TIMEOUT_S, Closed, Load, Open
from app.commands.bench.overhead import Overhead
from app.commands.bench.plan import LoadPlan
from app.commands.bench.points import Point, Window
from app.commands.bench.target import Target
from app.errors import LoadTestError

Watch = Callable[[Load, float, Sequence[Record]], None]
"""Called about four times a second with the load, the elapsed share of its point, and its records so far."""

_TICK_S = 0.25
_CLIENT_LIMIT = 0.8  # of the client's highest rate: above it, a search would find the limit of the client
_FAILURES = {
    "connect": "cannot be reached",
    "timeout": f"did not respond within {TIMEOUT_S:.0f} s",
    "reset": "closed the connection without a response",
    "protocol": "does not speak HTTP",
}


@dataclass(slots=True)
class LoadResult:
    """The result of a run. ``server`` is the target's ``/v1/info``, ``capacity`` the highest sustained rate.

    ``notes`` say what was left out of the folder of images.
    """

    url: str
    plan: LoadPlan
    started: datetime
    machine: dict[str, Any] = field(default_factory=machine.description)
    server: dict[str, Any] | None = None
    client: Overhead | None = None
    points: list[Point] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    capacity: float | None = None
    interrupted: bool = False

    @property
    def warnings(self) -> list[str]:
        return [*self.notes, *(warning for point in self.points for warning in point.warnings(self.plan.slo_ms))]

    @property
    def ordered(self) -> list[Point]:
        """The points by load, closed loops first."""
        return sorted(self.points, key=lambda point: (isinstance(point.load, Open), point.load.size))

    @property
    def best(self) -> Point | None:
        """The point with the highest goodput; after a search, the point at the capacity."""
        held = [p for p in self.points if isinstance(p.load, Open) and p.load.rate == self.capacity]
        return max(held or self.points, key=lambda point: point.goodput, default=None)

    def as_dict(self) -> dict[str, Any]:
        """The object that ``--json`` prints.

        ``url``, ``mode`` (closed, open or capacity), ``slo_ms``, ``started`` (ISO 8601); ``points`` as measured, see
        ``Point``; ``capacity`` in requests per second or null; ``client``: ``cpu_ms`` per request and
        ``largest_rate`` against a constant response, ``cpu_share`` of a core at its busiest point; ``machine`` of the
        client; ``server``: its ``/v1/info`` or null; ``warnings``; ``interrupted`` by Ctrl-C.
        """
        client = {} if self.client is None else self.client.as_dict()
        return {
            "url": self.url,
            "mode": self.plan.mode,
            "slo_ms": self.plan.slo_ms,
            "started": self.started.isoformat(timespec="seconds"),
            "points": [point.as_dict() for point in self.points],
            "capacity": self.capacity,
            "client": client | {"cpu_share": round(max((p.client_cpu for p in self.points), default=0.0), 3)},
            "machine": self.machine,
            "server": self.server,
            "warnings": self.warnings,
            "interrupted": self.interrupted,
        }


def run(target: Target, plan: LoadPlan, watch: Watch) -> LoadResult:
    """Measure. Raises LoadTestError. Ctrl-C ends the run early, with the points measured so far."""
    result = LoadResult(target.url, plan, datetime.now(UTC))
    _allow_many_connections()
    try:
        asyncio.run(_run(target, plan, watch, result))
    except KeyboardInterrupt:
        result.interrupted = True
    return result


async def _run(target: Target, plan: LoadPlan, watch: Watch, result: LoadResult) -> None:
    request_bodies, result.notes = bodies(plan.images, plan.multipart)
    async with session(plan.headers) as connections:
        client = Client(connections, target.url, request_bodies)
        await _check(client)
        result.server = await target.info(connections)
        result.client = await overhead.measure(request_bodies, plan.headers)
        measurement = Measurement(target, client, plan, watch, result.points)
        if plan.mode == "capacity":
            await _search(measurement, result)
            return
        loads: list[Load] = [*map(Closed, plan.clients), *(_open(plan, rate) for rate in plan.rates)]
        for load in loads:
            await measurement.point(load)


def _open(plan: LoadPlan, rate: float) -> Open:
    return Open(rate, plan.slo_s, plan.send_timeout)


async def _check(client: Client) -> None:
    """Raise LoadTestError if the server does not respond, or rejects the request itself."""
    now = asyncio.get_running_loop().time()
    record = await client.send(now, now + TIMEOUT_S)
    if record.error:
        reason = f": {client.connect_error}" if record.error == "connect" else ""
        raise LoadTestError(f"{client.url} {_FAILURES[record.error]}{reason}")
    if 300 <= record.status < 500 and record.status not in points.REFUSALS:
        raise LoadTestError(f"{client.url} answered {record.status} {responses.get(record.status, '')}")


async def _search(measurement: "Measurement", result: LoadResult) -> None:
    """Search the highest sustained rate, starting from the throughput of a short closed loop."""
    assert result.client
    plan, trials = measurement.plan, list[capacity.Trial]()
    first = await measurement.point(Closed(plan.clients[0]), plan.seconds / 2)
    ceiling = result.client.largest_rate * _CLIENT_LIMIT
    while first.throughput and (rate := capacity.next_rate(first.throughput, trials, ceiling)):
        point = await measurement.point(_open(plan, rate))
        trials.append(capacity.Trial(rate, point.good_share >= capacity.SUSTAINED))
        result.capacity = capacity.capacity(trials)


@dataclass(frozen=True, slots=True)
class Measurement:
    """Measures one point after the other and appends them to ``found``."""

    target: Target
    client: Client
    plan: LoadPlan
    watch: Watch
    found: list[Point]

    async def point(self, load: Load, seconds: float | None = None) -> Point:
        """Warm up, measure, and wait for the requests in progress. If cancelled, it still appends a point."""
        loop, records = asyncio.get_running_loop(), self.client.records
        records.clear()
        start = loop.time() + self.plan.warmup
        end = start + (seconds or self.plan.seconds)
        window, cpu = Window(start, end), time.process_time()
        driving = asyncio.ensure_future(load.drive(self.client, end))
        try:
            self.watch(load, 0.0, records)
            await asyncio.sleep(self.plan.warmup)
            cpu = time.process_time()
            window = replace(window, before=await self.target.batches(self.client.session))
            while (now := loop.time()) < end:
                self.watch(load, (now - start) / (end - start), records)
                await asyncio.sleep(min(_TICK_S, end - now))
            window = replace(window, cpu_s=time.process_time() - cpu)
            await driving
            self.watch(load, 1.0, records)
            window = replace(window, after=await self.target.batches(self.client.session))
        except asyncio.CancelledError:
            window = replace(window, end=min(end, loop.time()), cpu_s=time.process_time() - cpu)
            raise
        finally:
            driving.cancel()
            await asyncio.wait([driving])
            if window.seconds > 0:
                self.found.append(points.point(load, records, window, self.plan.slo_s))
        return self.found[-1]


def _allow_many_connections() -> None:
    """Raise the limit on file descriptors: each request in progress needs one, and the usual limit is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS reports "unlimited" but does not grant it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
